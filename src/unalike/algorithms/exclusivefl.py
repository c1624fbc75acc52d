"""ExclusiveFL: FedAvg among the clients whose memory holds the training of the whole model.

The baseline of that name in Y. Wu, L. Li, C. Tian, C. Xu, "Breaking the Memory Wall for Heterogeneous Federated
Learning with Progressive Training", KDD 2025, https://arxiv.org/abs/2404.13349 (ProFL)

    server    sample S_t among those who can train w, send w
    client    E epochs:  w_k ← w_k − η ∇L(w_k);   send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

Where nobody can, there is no model: the method is refused (the paper: "NA").

Deviations
- Everybody predicts with w and is scored, who never trains too: few rows at a time, which takes little more than w. A
  client that cannot hold even that ends the run, as everything beyond a budget does, unless `check_memory` is off.
- Means are weighted by samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, sgd
from ..memory import eligible, needs
from ..memory.plan import Stage
from ..models.narrow import shapes
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Ready, Update
from ..rng import Key
from ..tree import Tree, nbytes, unflatten


class Server(TypedDict):
    model: Tree


class Wire(TypedDict):
    model: Tree


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class ExclusiveFL(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of those who can train the whole model."""

    paper: ClassVar[str] = "Wu et al., Breaking the Memory Wall with Progressive Training, KDD 2025, arXiv:2404.13349"
    needs: ClassVar[str] = "one architecture that the memory of some client holds"
    memory_aware: ClassVar[bool] = True
    equal_architectures: ClassVar[bool] = True

    def need(self) -> int:
        """Bytes for training and evaluating the model."""
        return needs.whole(self.shared, self.task, self.optimiser(), self.batch_size)

    def plan(self) -> Sequence[Stage]:
        size = nbytes(unflatten(shapes(self.shared)))
        flops = needs.whole_flops(self.shared, self.task, self.optimiser(), self.batch_size)
        return [Stage(name="whole model", need=self.need(), down=size, up=size, flops=flops)]

    def require(self, clients: Sequence[ClientInfo]) -> None:
        eligible.require_some("exclusivefl", clients, self.need, f"the whole of {self.shared_model}")
        eligible.require_prediction("exclusivefl", clients, lambda: needs.evaluated(self.shared, 1))

    def _takes_part(self, info: ClientInfo) -> bool:
        return eligible.fits(info, self.need)

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        drawn = super().select(server, clients, round, key)
        return eligible.instead(drawn, clients, self._takes_part, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        rows = eligible.rows_at_once(ready["info"], functools.partial(needs.evaluated, self.shared))
        logits = functools.partial(models.logits, self.shared, ready["down"]["model"])
        return eligible.in_parts(logits, batch["x"], rows)
