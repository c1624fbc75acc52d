"""A method that trains a chain block by block, and one of levels, as a plan sees them. Neither trains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

from torch import Tensor

from unalike import models, tree
from unalike.local import LocalTraining
from unalike.memory import needs, partition
from unalike.memory.plan import Stage
from unalike.models import chain, progressive
from unalike.models.progressive import SubModel
from unalike.protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from unalike.rng import Key


@dataclass(frozen=True, kw_only=True)
class _Silent(LocalTraining, Algorithm[Any, Any, Any]):
    paper: ClassVar[str] = "none"

    def init_server(self, key: Key) -> Any:
        raise AssertionError("a plan starts nothing")

    init_client = broadcast = init_server  # type: ignore[assignment]

    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        raise AssertionError("a plan trains nothing")

    def aggregate(self, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        raise AssertionError("a plan starts nothing")

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        raise AssertionError("a plan predicts nothing")


@dataclass(frozen=True, kw_only=True)
class Blockwise(_Silent):
    """Maps the last block, then grows one block after the other."""

    cuts: str = "paper"
    steps: int = 4

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        if self.cuts == "paper":
            return replace(self, cuts=",".join(map(str, chain.cuts(self.shared))))
        if self.cuts == "auto":
            found = partition.partition(self.shared, self.task, self.optimiser(), self.batch_size, self.steps)
            return replace(self, cuts=",".join(map(str, found.cuts)))
        return self

    def plan(self) -> Sequence[Stage]:
        cuts = tuple(map(int, self.cuts.split(",")))
        subs = [SubModel(self.shared, cuts, t) for t in range(1, len(cuts))]
        return [self.mapping(subs[-1]), *(self.growing(sub) for sub in subs)]

    def mapping(self, sub: SubModel) -> Stage:
        need = needs.mapping(sub, self.optimiser(), self.task, self.batch_size)
        return Stage(name="map", need=need, down=100, up=10, flops=1.0, step=sub.step, units=self.units(sub), rounds=1)

    def growing(self, sub: SubModel) -> Stage:
        weights = progressive.initial(sub, Key.root(0))
        trained = tree.nbytes({k: v for k, v in weights.items() if k != "frozen"})
        work = (sub, self.task, self.optimiser(), self.batch_size)
        return Stage(
            name=f"grow {sub.step}",
            need=needs.step(*work),
            down=trained,
            up=trained,
            flops=needs.step_flops(*work),
            turn=sub.step,
            rounds=2,
            step=sub.step,
            units=self.units(sub),
        )

    def units(self, sub: SubModel) -> tuple[str, ...]:
        return chain.units(self.shared)[sub.start : sub.stop]


@dataclass(frozen=True, kw_only=True)
class Levels(_Silent):
    """The whole model, or one a quarter as wide."""

    def plan(self) -> Sequence[Stage]:
        found = []
        for name in (self.shared.name, f"{self.shared.name.partition('(')[0]}(width=0.0625)"):
            spec = dataclasses.replace(self.shared, name=name)
            work, bytes = (
                (spec, self.task, self.optimiser(), self.batch_size),
                tree.nbytes(models.initial(spec, Key.root(0))),
            )
            found.append(
                Stage(name=name, need=needs.whole(*work), down=bytes, up=bytes, flops=needs.whole_flops(*work))
            )
        return found
