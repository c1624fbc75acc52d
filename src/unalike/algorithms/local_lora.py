"""Local LoRA: every client trains an adapter of its own, and nothing travels. What federated adapters must surpass.

The adapter is that of E. J. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang, W. Chen, "LoRA: Low-Rank
Adaptation of Large Language Models", ICLR 2022, https://arxiv.org/abs/2106.09685

    h = W x + s B A x,  W frozen, s = alpha / r
    client    E epochs of AdamW on the tokens of answers, from the adapter of its last visit:  A_k, B_k;   keep them

Deviations
- A round is E epochs, so that after equally many rounds it has trained as much as the methods beside it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import adapters
from ..adapters import LoraTraining
from ..models import language
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    """The server keeps nothing."""


class Wire(TypedDict):
    """Nothing travels."""


class Private(TypedDict):
    adapter: Tree
    """A_k, B_k."""


@dataclass(frozen=True, kw_only=True)
class LocalLora(LoraTraining, Algorithm[Server, Private, Wire]):
    """An adapter of its own for every client, trained alone."""

    paper: ClassVar[str] = "Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, arXiv:2106.09685"
    needs: ClassVar[str] = "texts, and one language model"
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": adapters.PAPER}

    def require(self, clients: Sequence[ClientInfo]) -> None:
        adapters.require("local-lora", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"adapter": language.initial(self.shared, key / "adapter")}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(language.answer_loss, self.shared, self.task)
        tuned, mean = self.visit(loss, {"local": job.state["adapter"]}, {}, job.data, job.key)
        return Update({}, {"adapter": tuned["local"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return server

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return self.answers(self.shared, {"local": ready["state"]["adapter"]}, batch["x"])
