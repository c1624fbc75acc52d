"""Who can train what within its memory: told before anything is trained.

A method describes itself by `Planned.plan`: the stages of its training, each with what a client needs for it and what
it costs. Nothing here knows a method in particular.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one client does in a visit: a phase of progressive training, or one of a method's levels (a width, a depth).

    Stages of one turn are alternatives, the best first: a client does the first whose need its memory holds, and none
    where it holds none. Turns follow one another during a run.
    """

    name: str
    need: int
    """Bytes with headroom, by the very rule by which the method chooses clients."""
    down: int
    """Bytes of tensors that travel to a client in a round, without what comes once."""
    up: int
    """Bytes of tensors that travel back."""
    flops: float
    """Floating-point operations of training, for each row."""
    once: int = 0
    """Bytes that come once to each client: blocks that are frozen from here on."""
    turn: int = 0
    step: str = ""
    """Stages of one step are told together (shrinking, mapping and growing of a block); empty: a step of its own."""
    units: tuple[str, ...] = ()
    """Names of the units that train, where the model is a chain of them."""


@runtime_checkable
class Planned(Protocol):
    """A method that describes its training to the plan."""

    def plan(self) -> Sequence[Stage]:
        """The stages of the method as it is settled, in the order of a run."""
