"""Centralized LoRA: one adapter, trained on everybody's rows in one place. Nothing here is federated, by intent.

The adapter is that of E. J. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen, "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685

    h = W x + s B A x,  W frozen, s = alpha / r
    client    at its first visit send all training rows
    server    from A, B, E epochs of AdamW on all rows it has:  A, B

It shows what one adapter can learn where data may be pooled: **clients give their texts away**. `Wire` says so.

Deviations
- A round is E epochs over all rows, so that after equally many rounds each row was seen as often as by the others.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from .. import adapters
from ..adapters import LoraTraining
from ..models import language
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    """A, B of every layer."""
    rows: Tree
    """Client to its training rows, "x" and "y"."""
    loss: Tensor
    """Of the last round, a scalar."""


class Wire(TypedDict, total=False):
    adapter: Tree
    """A, B to the client."""
    rows: Tree
    """From the client, once: every training row that it has."""


class Private(TypedDict, total=False):
    sent: Tensor
    """There once the rows have been sent."""


@dataclass(frozen=True, kw_only=True)
class CentralizedLora(LoraTraining, Algorithm[Server, Private, Wire]):
    """One adapter trained on the rows of all clients, which they give away."""

    paper: ClassVar[str] = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685"
    needs: ClassVar[str] = "texts that may be pooled, and one language model"
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": adapters.PAPER}

    def require(self, clients: Sequence[ClientInfo]) -> None:
        adapters.require("centralized-lora", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {"adapter": language.initial(self.shared, key / "adapter"), "rows": {}, "loss": torch.zeros(())}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"adapter": server["adapter"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        if "sent" in job.state:
            return Update({}, job.state, job.info.n)
        rows = {name: job.data[name].clone() for name in ("x", "y")}
        return Update({"rows": rows}, {"sent": torch.ones(())}, job.info.n)

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        rows = {**server.get("rows", {}), **{str(a.info.id): a.up["rows"] for a in arrivals if "rows" in a.up}}
        pad = language.tokens_of(self.shared).pad
        loss = functools.partial(language.answer_loss, self.shared, self.task)
        pooled = adapters.joined([rows[client] for client in sorted(rows, key=int)], pad)
        tuned, mean = self.visit(loss, {"global": server["adapter"]}, {}, pooled, key)
        return {"adapter": tuned["global"], "rows": rows, "loss": torch.tensor(mean)}

    def report(self, server: Server, round: int) -> Mapping[str, float]:
        """The mean loss of the round's training, which is the server's here."""
        return {"loss": float(server["loss"])}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return self.answers(self.shared, {"global": ready["down"]["adapter"]}, batch["x"])
