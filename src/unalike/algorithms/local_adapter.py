"""Local adapter: every client tunes an adapter and a head of its own, and nothing travels. What sharing must surpass.

The adapter is that of N. Houlsby, A. Giurgiu, S. Jastrzebski, B. Morrone, Q. de Laroussilhe, A. Gesmundo, M. Attariyan,
S. Gelly, "Parameter-Efficient Transfer Learning for NLP", ICML 2019, https://arxiv.org/abs/1902.00751, where FedDAT has
its own:

    h + Up(ReLU(Down(h)))  after the feed-forward of every layer
    client    E epochs of AdamW on adapter and head, from those of its last visit:  A_k;   keep them

Deviations
- One adapter a layer, after the feed-forward only, as FedDAT has it.
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
    adapter: Tree
    """A_k."""
    head: Tree
    """Onto the client's own answers."""


@dataclass(frozen=True, kw_only=True)
class LocalAdapter(AnswerTraining, Algorithm[Server, Private, Wire]):
    """An adapter of its own for every client, trained alone."""

    paper: ClassVar[str] = "Houlsby et al., Parameter-Efficient Transfer Learning, ICML 2019, arXiv:1902.00751"
    needs: ClassVar[str] = "images and questions, and one model of both"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = answering.PRESETS

    def require(self, clients: Sequence[ClientInfo]) -> None:
        answering.require("local-adapter", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        own = self.models[info.tier]
        head = multimodal.initial_head(own, key / "head")
        return {"adapter": multimodal.initial(own, "adapter", key / "local"), "head": head}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(tuned_loss, self.models[job.info.tier], self.task, "adapter", 1.0)
        tuned, mean = self.visit(loss, job.state, job.data, job.key)
        return Update({}, {"adapter": tuned["adapter"], "head": tuned["head"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own, state = self.models[ready["info"].tier], ready["state"]
        return multimodal.logits(own, {"adapter": [state["adapter"]]}, state["head"], batch)
