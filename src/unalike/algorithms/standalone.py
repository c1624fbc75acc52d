"""Standalone: every client trains its own model on its own data, and nothing travels.

The reference that every federated method has to beat, client by client. It gets the same rounds and local epochs.

    client    E epochs a round:  w_k ← w_k − η ∇L(w_k)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    """The server keeps nothing."""


class Wire(TypedDict):
    """Nothing travels."""


class Private(TypedDict):
    model: Tree


@dataclass(frozen=True, kw_only=True)
class Standalone(LocalTraining, Algorithm[Server, Private, Wire]):
    """Local training alone."""

    paper: ClassVar[str] = "local training, the reference"

    def init_server(self, key: Key) -> Server:
        return {}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"model": models.initial(self.models[info.tier], key / "model" / label(info.tier))}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.models[job.info.tier], self.task)
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.state["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({}, {"model": tuned["model"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"])
