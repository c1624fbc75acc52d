"""FedPer: one base for all, personal layers on top of it.

M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary, "Federated Learning with Personalization Layers", 2019,
https://arxiv.org/abs/1912.00818

Client k predicts with h_k ∘ φ: the base φ (the extractor) is common, the personal layer h_k (the header) its own.

    server    sample S_t, send φ
    client    E epochs:  (φ_k, h_k) ← (φ_k, h_k) − η ∇L(h_k ∘ φ_k);   keep h_k, send φ_k and n_k
    server    φ ← Σ n_k φ_k / Σ n_k

Deviations
- The personal layer is the last one; the paper also tries more of them.
- All headers start alike. A client that was never visited predicts with the one it starts with.
- Momentum and weight decay are offered; BatchNorm statistics of φ are averaged with it.
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
    extractor: Tree
    """φ."""


class Wire(TypedDict):
    extractor: Tree
    """φ to the client, φ_k from it."""


class Private(TypedDict):
    header: Tree
    """h_k."""


@dataclass(frozen=True, kw_only=True)
class FedPer(LocalTraining, Algorithm[Server, Private, Wire]):
    """A shared base below personal layers, trained together."""

    paper: ClassVar[str] = "Arivazhagan et al., FedPer: Personalization Layers, 2019, arXiv:1912.00818"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True

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
        visits = self.visits(job.data, job.key / "batches")
        model = {**job.down, **job.state}
        tuned, mean = sgd(loss, {"model": model}, self.optimiser(), visits, job.key / "noise")
        base, header = (tuned["model"][part] for part in ("extractor", "header"))
        return Update({"extractor": base}, {"header": header}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"extractor": average(arrivals, "extractor")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, {**ready["down"], **ready["state"]}, batch["x"])
