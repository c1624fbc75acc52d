"""FedAvg with local fine-tuning: each client predicts with the model that it has tuned on its own data.

G. Cheng, K. Chadha, J. Duchi, "Fine-tuning is Fine in Federated Learning", 2021, https://arxiv.org/abs/2108.07313

    server    sample S_t, send w
    client    from w, E epochs:  w_k ← w_k − η ∇L(w_k);   keep w_k, send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

The training is FedAvg's, bit for bit, and so is the traffic; what is tuned is there already and only has to be kept.

Deviations
- The paper tunes after the last round. Here w_k was tuned from the model of the client's last visit, so it lacks the
  average that it helped to make, and whatever came between. A client that was never visited predicts with w.
- The tuning has E and η of the training; the paper's ridge-tuned variant is left out.
- Momentum and weight decay are offered; BatchNorm statistics are averaged with the weights.
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
from ..tree import Tree, clone


class Server(TypedDict):
    model: Tree
    """w."""


class Wire(TypedDict):
    model: Tree
    """w to the client, w_k from it."""


class Private(TypedDict, total=False):
    model: Tree
    """w_k, absent before the first visit."""


@dataclass(frozen=True, kw_only=True)
class FedAvgFT(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging whose clients predict with their tuned models."""

    paper: ClassVar[str] = "Cheng et al., Fine-tuning is Fine in Federated Learning, 2021, arXiv:2108.07313"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {"model": clone(tuned["model"])}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        model = ready["state"].get("model") or ready["down"]["model"]
        return models.logits(self.shared, model, batch["x"])
