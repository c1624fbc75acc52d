"""FedBN: FedAvg of everything but the BatchNorm layers, which stay with the client.

X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou, "FedBN: Federated Learning on Non-IID Features via Local Batch
Normalization", ICLR 2021, https://arxiv.org/abs/2102.07623

Of the weights (w, b_k) the BatchNorm layers' b_k are the client's own: scale, shift and statistics.

    server    sample S_t, send w
    client    E epochs:  (w_k, b_k) ← (w_k, b_k) − η ∇L(w_k, b_k);   keep b_k, send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

Deviations
- The mean is weighted by samples; the paper's clients count equally.
- A client that was never visited predicts with the b it starts with: in the paper all clients take part.
- Momentum and weight decay are offered.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..errors import InputError
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Update
from ..rng import Key
from ..tree import Tree, flatten, merge, unflatten


class Server(TypedDict):
    model: Tree
    """w: the model without its BatchNorm layers."""


class Wire(TypedDict):
    model: Tree
    """w to the client, w_k from it."""


class Private(TypedDict):
    norm: Tree
    """b_k: the BatchNorm layers."""


@dataclass(frozen=True, kw_only=True)
class FedBN(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging with BatchNorm layers of each client's own."""

    paper: ClassVar[str] = "Li et al., FedBN: Federated Learning on Non-IID Features, ICLR 2021, arXiv:2102.07623"
    needs: ClassVar[str] = "one architecture with BatchNorm that every client can train"
    equal_architectures: ClassVar[bool] = True

    def require(self, clients: Sequence[ClientInfo]) -> None:
        if not models.normalisation(self.shared):
            raise InputError(
                f"fedbn keeps BatchNorm layers at the clients, but model {self.shared_model} has none: "
                "choose one that has, for example --shared-model 'cnn-5(norm=True)'"
            )

    def init_server(self, key: Key) -> Server:
        return {"model": self._initial(key)[0]}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"norm": self._initial(key)[1]}

    def _initial(self, key: Key) -> tuple[Tree, Tree]:
        model = models.initial(self.shared, key / "model" / label(self.shared_model))
        return split(model, models.normalisation(self.shared))

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits, start = self.visits(job.data, job.key / "batches"), merge(job.down["model"], job.state["norm"])
        tuned, mean = sgd(loss, {"model": start}, self.optimiser(), visits, job.key / "noise")
        model, norm = split(tuned["model"], models.normalisation(self.shared))
        return Update({"model": model}, {"norm": norm}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, merge(ready["down"]["model"], ready["state"]["norm"]), batch["x"])


def split(model: Tree, norm: frozenset[str]) -> tuple[Tree, Tree]:
    """(w, b): the leaves that are not in `norm`, and those that are."""
    flat = flatten(model)
    w, b = ({name: leaf for name, leaf in flat.items() if (name in norm) is inside} for inside in (False, True))
    return unflatten(w), unflatten(b)
