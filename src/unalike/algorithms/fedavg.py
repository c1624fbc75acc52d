"""FedAvg: one model for all, averaged.

H. B. McMahan, E. Moore, D. Ramage, S. Hampson, B. Agüera y Arcas, "Communication-Efficient Learning of Deep Networks
from Decentralized Data", AISTATS 2017, https://arxiv.org/abs/1602.05629

    server    sample S_t, send w
    client    E epochs:  w_k ← w_k − η ∇L(w_k);   send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

Deviations
- Where clients have different architectures, all train `shared_model`, the smallest of theirs unless told otherwise.
- Momentum and weight decay are offered (0 in the paper); BatchNorm statistics are averaged with the weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    model: Tree


class Wire(TypedDict):
    model: Tree


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class FedAvg(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of one architecture."""

    paper: ClassVar[str] = "McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017"
    needs: ClassVar[str] = "one architecture that every client can train"
    global_model: ClassVar[str] = "model"

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])
