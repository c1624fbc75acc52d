"""The order of progressive training: a chain of T blocks is shrunk from its end, then grown from its beginning.

shrink T, map T, shrink T − 1, map T − 1, ..., shrink 2, map 2, grow 1, grow 2, ..., grow T
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["shrink", "map", "grow"]

KINDS: tuple[Kind, ...] = ("shrink", "map", "grow")
"""In the order in which a run has them; a report knows a kind by its place here."""
SHARES: dict[Kind, float] = {"shrink": 1.0, "map": 0.5, "grow": 3.0}
"""Rounds of a phase, beside those of others."""
ENDS = ("", "rule", "limit")
"""Why a phase ends: it does not, its rule has fired, its rounds are spent."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What is done to which block, from 1."""

    kind: Kind
    step: int

    def __str__(self) -> str:
        return f"{self.kind} block {self.step}"


def order(steps: int, shrinking: bool = True, mapping: bool = True) -> tuple[Phase, ...]:
    """All phases for a chain of `steps` blocks."""
    kinds: tuple[Kind, ...] = ("shrink", "map") if mapping else ("shrink",)
    down = [Phase(kind, t) for t in range(steps, 1, -1) for kind in kinds] if shrinking else []
    return (*down, *(Phase("grow", t) for t in range(1, steps + 1)))


def share(ahead: Sequence[Phase], left: int) -> int:
    """Rounds of the first of the phases `ahead`, at least 1, when `left` are divided among all of them by `SHARES`."""
    weights = [SHARES[phase.kind] for phase in ahead]
    return max(1, int(left * weights[0] / sum(weights) + 0.5))


def limit(ahead: Sequence[Phase], left: int, most: int = 0, most_mapping: int = 10) -> int:
    """Rounds that the first of the phases `ahead` may have of the `left` ones: `most`, or its share where that is 0.

    A mapping may have its share, and `most_mapping` at most.
    """
    fair = share(ahead, left)
    if ahead[0].kind == "map":
        return min(fair, most_mapping)
    return min(most, left) if most else fair
