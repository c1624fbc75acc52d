"""FedIT: one adapter of a frozen language model for all, averaged.

J. Zhang, S. Vahidian, M. Kuo, C. Li, R. Zhang, T. Yu, G. Wang, Y. Chen, "Towards Building the Federated GPT: Federated
Instruction Tuning", ICASSP 2024, https://arxiv.org/abs/2305.05644

    h = W x + s B A x,  W frozen, s = alpha / r
    server    sample S_t, send A, B
    client    E epochs of AdamW on the tokens of answers:  A_k, B_k;   send them and n_k
    server    A ← Σ n_k A_k / Σ n_k,   B ← Σ n_k B_k / Σ n_k

The mean of products is not the product of means: what is averaged are A and B, each by itself, as in the paper.

Deviations
- Step size and clipping are FedDPA's, whose rival it is here; the step size falls to 0 within each visit.
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
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    adapter: Tree
    """A, B of every layer."""


class Wire(TypedDict):
    adapter: Tree


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class FedIT(LoraTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of one adapter of a language model."""

    paper: ClassVar[str] = "Zhang et al., Federated Instruction Tuning, ICASSP 2024, arXiv:2305.05644"
    needs: ClassVar[str] = "texts, and one language model"
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": adapters.PAPER}

    def require(self, clients: Sequence[ClientInfo]) -> None:
        adapters.require("fedit", self.models, self.shared_model, clients)

    def init_server(self, key: Key) -> Server:
        return {"adapter": language.initial(self.shared, key / "adapter")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"adapter": server["adapter"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(language.answer_loss, self.shared, self.task)
        tuned, mean = self.visit(loss, {"global": job.down["adapter"]}, {}, job.data, job.key)
        return Update({"adapter": tuned["global"]}, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"adapter": average(arrivals, "adapter")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return self.answers(self.shared, {"global": ready["down"]["adapter"]}, batch["x"])
