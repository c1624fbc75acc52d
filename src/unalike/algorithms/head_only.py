"""Head only: every client trains a linear layer onto its answers, on a frozen model. Nothing travels.

G. Alain, Y. Bengio, "Understanding Intermediate Layers Using Linear Classifier Probes", 2016,
https://arxiv.org/abs/1610.01644

    client    E epochs of AdamW on the head, from that of its last visit;   keep it

It tells what the frozen model knows already: what is tuned in it has to bring more than this.

Deviations
- The probe is of what the model pools, not of its inner layers.
- A round is E epochs, so that after equally many rounds it has trained as much as the methods beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import answering
from ..answering import AnswerTraining, tuned_loss
from ..models import multimodal
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    """The server keeps nothing."""


class Wire(TypedDict):
    """Nothing travels."""


class Private(TypedDict):
    head: Tree
    """Onto the client's own answers."""


@dataclass(frozen=True, kw_only=True)
class HeadOnly(AnswerTraining, Algorithm[Server, Private, Wire]):
    """A head of its own for every client on a model that nobody tunes."""

    paper: ClassVar[str] = "Alain and Bengio, Linear Classifier Probes, 2016, arXiv:1610.01644"
    needs: ClassVar[str] = "images and questions, and one model of both"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = answering.PRESETS

    def require(self, clients: Sequence[ClientInfo]) -> None:
        answering.require("head-only", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"head": multimodal.initial_head(self.models[info.tier], key / "head")}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(tuned_loss, self.models[job.info.tier], self.task, "", 1.0)
        tuned, mean = self.visit(loss, {"head": job.state["head"]}, job.data, job.key)
        return Update({}, {"head": tuned["head"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return multimodal.logits(self.models[ready["info"].tier], {}, ready["state"]["head"], batch)
