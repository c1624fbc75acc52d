"""FedRep: one representation for all, a header for each.

L. Collins, H. Hassani, A. Mokhtari, S. Shakkottai, "Exploiting Shared Representations for Personalized Federated
Learning", ICML 2021, https://arxiv.org/abs/2102.07078

Client k predicts with h_k ∘ φ: the extractor φ is common, the header h_k its own.

    server    sample S_t, send φ
    client    1. φ fixed, E epochs:      h_k ← h_k − η ∇_h L(h_k ∘ φ)
              2. h_k fixed, its epochs:  φ_k ← φ_k − η ∇_φ L(h_k ∘ φ_k)
              keep h_k, send φ_k and n_k
    server    φ ← Σ n_k φ_k / Σ n_k

Deviations
- The mean is weighted by samples; the paper's clients count equally.
- All headers start alike.
- Momentum and weight decay are offered. BatchNorm statistics follow the data in both steps, whichever part is fixed;
  those of φ travel and are averaged with it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, Step, train
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    extractor: Tree
    """φ."""


class Wire(TypedDict):
    extractor: Tree
    """φ to the client, φ_k from it."""


class Private(TypedDict):
    header: Tree
    """h_k."""


@dataclass(frozen=True, kw_only=True)
class FedRep(LocalTraining, Algorithm[Server, Private, Wire]):
    """A shared representation below personal headers."""

    paper: ClassVar[str] = "Collins et al., Exploiting Shared Representations, ICML 2021, arXiv:2102.07078"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True

    body_epochs: Count = 1
    """Passes over the client's training rows for the extractor, after the header's E."""

    def init_server(self, key: Key) -> Server:
        return {"extractor": self._initial(key)["extractor"]}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"header": self._initial(key)["header"]}

    def _initial(self, key: Key) -> Tree:
        return models.initial(self.shared, key / "model" / label(self.shared_model))

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"extractor": server["extractor"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        params: Tree = {"model": {"extractor": job.down["extractor"], "header": job.state["header"]}}
        for part, epochs in (("header", self.local_epochs), ("extractor", self.body_epochs)):
            step, key = Step(loss, {f"model/{part}": self.optimiser()}), job.key / part
            params, mean = train([step], params, {}, self.visits(job.data, key, epochs), key / "noise")
        tuned = params["model"]
        return Update({"extractor": tuned["extractor"]}, {"header": tuned["header"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"extractor": average(arrivals, "extractor")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, {**ready["down"], **ready["state"]}, batch["x"])
