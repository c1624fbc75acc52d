"""AllSmall: FedAvg of one model that is as narrow as the poorest client's memory asks for.

The baseline of that name in Y. Wu, L. Li, C. Tian, C. Xu, "Breaking the Memory Wall for Heterogeneous Federated
Learning with Progressive Training", KDD 2025, https://arxiv.org/abs/2404.13349 (ProFL)

    before    r: the largest of 1, 1/2, 1/4, 1/8, 1/16 whose training everyone's memory holds; w has r times the width
    server    sample S_t, send w
    client    E epochs:  w_k ← w_k − η ∇L(w_k);   send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

Deviations
- The paper does not say which widths there are; these are HeteroFL's.
- Who does not hold even 1/16 does not count, is never drawn, and predicts with w all the same.
- Means are weighted by samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Self, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, sgd
from ..memory import eligible, needs
from ..memory.plan import Stage
from ..models.narrow import LEVELS, narrowed, shapes
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Ready, Share, Spec, Update
from ..rng import Key
from ..tree import Tree, nbytes, unflatten


class Server(TypedDict):
    model: Tree


class Wire(TypedDict):
    model: Tree


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class AllSmall(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of the model that everyone's memory holds."""

    paper: ClassVar[str] = "Wu et al., Breaking the Memory Wall with Progressive Training, KDD 2025, arXiv:2404.13349"
    needs: ClassVar[str] = "one architecture with an option `width`; a memory budget for each client"
    memory_aware: ClassVar[bool] = True
    equal_architectures: ClassVar[bool] = True

    width: Share = 0.0
    """r: share of the model's width; 0 settles it by the poorest client when the run starts."""

    @property
    def small(self) -> Spec:
        """The architecture that everyone trains."""
        return narrowed(self.shared, self.width or 1.0)

    def need(self, r: float) -> int:
        """Bytes for training and evaluating the model at `r` times its width."""
        return needs.whole(narrowed(self.shared, r), self.task, self.optimiser(), self.batch_size)

    def plan(self) -> Sequence[Stage]:
        size = nbytes(unflatten(shapes(self.small)))
        flops = needs.whole_flops(self.small, self.task, self.optimiser(), self.batch_size)
        need = self.need(self.width or 1.0)
        return [Stage(name=f"width {Fraction(self.width or 1.0)}", need=need, down=size, up=size, flops=flops)]

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        if self.width:
            return self
        found = {eligible.best(info, LEVELS, self.need) for info in clients}
        return replace(self, width=min((r for r in found if r is not None), default=LEVELS[-1]))

    def require(self, clients: Sequence[ClientInfo]) -> None:
        least = functools.partial(self.need, self.width or 1.0)
        eligible.require_some("allsmall", clients, least, f"width {self.width:g} of {self.shared_model}")

    def _takes_part(self, info: ClientInfo) -> bool:
        return eligible.fits(info, functools.partial(self.need, self.width or 1.0))

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.small, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        drawn = super().select(server, clients, round, key)
        return eligible.instead(drawn, clients, self._takes_part, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.small, self.task)
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        rows = eligible.rows_at_once(ready["info"], functools.partial(needs.evaluated, self.small))
        logits = functools.partial(models.logits, self.small, ready["down"]["model"])
        return eligible.in_parts(logits, batch["x"], rows)
