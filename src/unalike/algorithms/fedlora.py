"""FedLoRA: an adapter for all, averaged, which each client at last tunes on its own data alone.

A rival in Y. Yang, G. Long, T. Shen, J. Jiang, M. Blumenstein, "Dual-Personalizing Adapter for Federated Foundation
Models", NeurIPS 2024, https://arxiv.org/abs/2403.19211

    h = W x + s B A x,  W frozen, s = alpha / r
    rounds 1 .. R    server    sample S_t, send A, B
                     client    E epochs of AdamW on the tokens of answers:  A_k, B_k;   send them and n_k
                     server    A ← Σ n_k A_k / Σ n_k,   B ← Σ n_k B_k / Σ n_k
    round R + 1      server    send A, B to all
                     client    from A, B, E' epochs:  A_k, B_k;   keep them, send nothing

Training and traffic of the first R rounds are FedIT's, bit for bit; predicted is with what has been tuned.

Deviations
- Round R + 1 is a round of its own, so that it can be resumed. Before it clients predict with the common adapter.
- E' is E in the paper; `last_epochs` is for runs of many short rounds, where E epochs would tune nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import adapters
from ..adapters import LoraTraining
from ..averaging import average
from ..models import language
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update, Whole
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    """A, B of every layer."""


class Wire(TypedDict, total=False):
    adapter: Tree
    """A, B to the client; A_k, B_k from it, absent in the last round."""


class Private(TypedDict, total=False):
    adapter: Tree
    """A_k, B_k of the last round, absent before it."""


@dataclass(frozen=True, kw_only=True)
class FedLora(LoraTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of one adapter, tuned by each client at the end."""

    paper: ClassVar[str] = "a rival in Yang et al., Dual-Personalizing Adapter, NeurIPS 2024, arXiv:2403.19211"
    needs: ClassVar[str] = "texts, and one language model"
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": adapters.PAPER}

    last_epochs: Whole = 0
    """E': epochs of round R + 1; 0: as many as in the others."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        adapters.require("fedlora", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {"adapter": language.initial(self.shared, key / "adapter")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        return clients if round > self.rounds else super().select(server, clients, round, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"adapter": server["adapter"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(language.answer_loss, self.shared, self.task)
        last = job.round > self.rounds
        epochs = self.last_epochs if last else 0
        tuned, mean = self.visit(loss, {"global": job.down["adapter"]}, {}, job.data, job.key, epochs)
        found, told = tuned["global"], {"loss": mean}
        if last:
            return Update({}, {"adapter": found}, job.info.n, told)
        return Update({"adapter": found}, job.state, job.info.n, told)

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server if round > self.rounds else {"adapter": average(arrivals, "adapter")}

    def done(self, server: Server, round: int) -> bool:
        return round > self.rounds

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        adapter = ready["state"].get("adapter") or ready["down"]["adapter"]
        return self.answers(self.shared, {"global": adapter}, batch["x"])
