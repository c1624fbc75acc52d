"""When a phase of training has done its work: weights that no longer get anywhere, a loss that no longer falls.

A rule is a pure function from what it remembers, a tree of tensors, and what is seen to what it then remembers; and one
from that to whether training may stop.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor

from .local import trainable
from .rng import Key
from .tree import Tree

SAMPLE = 10_000
"""Scalars of a block that are followed."""
VALUES = 20
"""Values of effective movement that a slope is taken over, at most."""
FLAT = 0.05
"""How far the line through the last values may rise or fall in all while they count as level."""
WALK = 1.2
"""Factor on 1/√H, the effective movement of a random walk, below which it counts as low."""
FALL = 0.02
"""Share by which a loss must come below where it last fell to, to have fallen again."""


class Rule(Protocol):
    """Training goes on until the rule fires."""

    def start(self, seen: Any) -> dict[str, Tensor]:
        """What is remembered of the first thing seen."""

    def observe(self, known: Tree, seen: Any) -> dict[str, Tensor]:
        """What is remembered after one more round; "rounds" counts them."""

    def fires(self, known: Tree) -> bool:
        """Whether training may stop."""

    def told(self, known: Tree) -> dict[str, float]:
        """Numbers for a report."""


@dataclass(frozen=True, slots=True)
class EffectiveMovement:
    """ProFL's rule for freezing a block (arXiv 2404.13349), over successive global models θ⁰, θ¹, ...

        EM_k = ‖θᵏ − θᵏ⁻ᴴ‖₁ / Σ_{h<H} ‖θᵏ⁻ʰ − θᵏ⁻ʰ⁻¹‖₁    in [0, 1]: of the way gone, the share that led somewhere

    It is 1 on a straight line, 1/√H on a random walk and 1/H in a jitter about one place. Training may stop after
    `patience` rounds in a row in which the values were level and low: over the last Q ≤ 20 of them |slope| · Q < 0.05,
    and EM_k < 1.2 / √H. The paper's threshold on the slope alone comes without a unit; these two are ours.
    """

    window: int
    """H."""
    patience: int
    least: int = 1
    """Rounds before which training goes on in any case."""

    def start(self, seen: Tree) -> dict[str, Tensor]:
        """What is remembered of θ⁰: "history", samples of the last H + 1 models or fewer, the oldest first (h, n);
        "values", the last of EM (float64); "rounds", models after the first; "calm", rounds that were level and low."""
        values = torch.empty(0, dtype=torch.float64)
        return {"history": sample(seen)[None], "values": values, "rounds": _zero(), "calm": _zero()}

    def observe(self, known: Tree, seen: Tree) -> dict[str, Tensor]:
        """What is remembered after one more model."""
        history = torch.cat([known["history"], sample(seen)[None]])[-self.window - 1 :]
        rounds, values = known["rounds"] + 1, known["values"]
        if rounds < self.window:
            return {**known, "history": history, "rounds": rounds}
        values = torch.cat([values, movement(history)[None]])[-VALUES:]
        is_low = values[-1] < WALK / self.window**0.5
        calm = known["calm"] + 1 if is_level(values) and is_low else _zero()
        return {"history": history, "values": values, "rounds": rounds, "calm": calm}

    def fires(self, known: Tree) -> bool:
        return int(known["rounds"]) >= self.least and int(known["calm"]) >= self.patience

    def told(self, known: Tree) -> dict[str, float]:
        """Numbers for a report: "movement" EM_k, the "slope" over the last values, rounds "calm"."""
        values, found = known["values"], {"calm": float(known["calm"])}
        found |= {"movement": float(values[-1])} if len(values) else {}
        return found | ({"slope": float(slope(values))} if len(values) > 1 else {})


def movement(history: Tensor) -> Tensor:
    """EM of the models in the rows of `history` (H + 1, n), the oldest first; 0 where nothing has moved."""
    steps = history.double().diff(dim=0)
    way = steps.abs().sum()
    return steps.sum(0).abs().sum() / way if way > 0 else way


def slope(values: Tensor) -> Tensor:
    """Slope of the least-squares line through `values` (Q >= 2), one a round."""
    x = torch.arange(len(values)).double()
    x = x - x.mean()
    return (x * values).sum() / x.square().sum()


def is_level(values: Tensor) -> bool:
    """Whether the line through `values` rises or falls by less than `FLAT` in all; one value is no line."""
    return len(values) > 1 and float(slope(values).abs()) * len(values) < FLAT


def sample(block: Tree) -> Tensor:
    """`SAMPLE` scalars of the weights of a block, always the same ones: (n,) float32. Of a smaller one all."""
    flat = torch.cat([leaf.detach().flatten().float() for leaf in trainable(block).values()])
    return flat[_places(len(flat))]


@functools.lru_cache(maxsize=16)
def _places(n: int) -> Tensor:
    return torch.randperm(n, generator=(Key.root(0) / "sample").torch())[:SAMPLE].sort().values


@dataclass(frozen=True, slots=True)
class Plateau:
    """The step size is halved whenever the loss rises; training may stop when it has not fallen for some rounds."""

    lr: float
    """The first step size."""
    patience: int

    def start(self, seen: object = None) -> dict[str, Tensor]:
        """What is remembered before the first loss: "rounds"; the "last" loss, and the "least" as of the last fall
        (float64); "idle", rounds without one; "lr", the step size of the next round (float64)."""
        return {"rounds": _zero(), "last": _real(inf), "least": _real(inf), "idle": _zero(), "lr": _real(self.lr)}

    def observe(self, known: Tree, seen: float) -> dict[str, Tensor]:
        """What is remembered after one more loss."""
        loss = _real(seen)
        falls = loss < (1 - FALL) * known["least"]
        return {
            "rounds": known["rounds"] + 1,
            "last": loss,
            "least": loss.clone() if falls else known["least"],
            "idle": _zero() if falls else known["idle"] + 1,
            "lr": known["lr"] / 2 if loss > known["last"] else known["lr"],
        }

    def fires(self, known: Tree) -> bool:
        return int(known["idle"]) >= self.patience

    def told(self, known: Tree) -> dict[str, float]:
        """Numbers for a report: the last "loss" and the next "lr"."""
        return {"loss": float(known["last"]), "lr": float(known["lr"])}


def _zero() -> Tensor:
    return torch.zeros((), dtype=torch.int64)


def _real(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)
