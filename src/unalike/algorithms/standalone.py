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
from ..local import SGD, batches, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, NonNegative, Positive, Share, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    """The server keeps nothing."""


class Wire(TypedDict):
    """Nothing travels."""


class Private(TypedDict):
    model: Tree


@dataclass(frozen=True, kw_only=True)
class Standalone(Algorithm[Server, Private, Wire]):
    """Local training alone."""

    paper: ClassVar[str] = "local training, the reference"

    local_epochs: Count = 2
    batch_size: Count = 32
    lr: Positive = 0.03
    """η."""
    momentum: Share = 0.9
    weight_decay: NonNegative = 1e-3
    clip: Positive = 50.0
    """Largest gradient norm."""

    def init_server(self, key: Key) -> Server:
        return {}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"model": models.initial(self.models[info.tier], key / "model" / label(info.tier))}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.models[job.info.tier], self.task)
        optimiser = SGD(self.lr, self.momentum, self.weight_decay, self.clip)
        visits = batches(job.data, self.batch_size, self.local_epochs, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.state["model"]}, optimiser, visits, job.key / "noise")
        return Update({}, {"model": tuned["model"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"])
