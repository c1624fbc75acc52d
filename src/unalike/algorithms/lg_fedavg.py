"""LG-FedAvg: each client's own representation under one header for all.

P. P. Liang, T. Liu, L. Ziyin, N. B. Allen, R. P. Auerbach, D. Brent, R. Salakhutdinov, L.-P. Morency, "Think Locally,
Act Globally: Federated Learning with Local and Global Representations", 2020, https://arxiv.org/abs/2001.01523

Client k keeps an extractor F_k of any architecture. All clients share one header H, and only H travels. One round:

    server    sample S_t, send H
    client    H_k ← H;  E epochs:  (F_k, H_k) ← (F_k, H_k) − η ∇CE(H_k(F_k(x)), y);   send H_k and n_k
    server    H ← Σ n_k H_k / Σ n_k

Deviations
- The header is the last layer of each model. The paper may share more than one layer.
- The authors' public code starts from a model that FedAvg has trained, takes the plain mean, and reports each client's
  best model on test. Here a run starts from fresh weights, and the mean is weighted by samples.
- The paper's ensembling for new clients and its fair (adversarial) representations are left out.
- Momentum and weight decay are offered; BatchNorm statistics of an extractor stay with it.
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
    header: Tree
    """Weights of H."""


class Wire(TypedDict):
    header: Tree


class Private(TypedDict):
    extractor: Tree
    """Weights of F_k."""


@dataclass(frozen=True, kw_only=True)
class LGFedAvg(LocalTraining, Algorithm[Server, Private, Wire]):
    """Local representations, global header."""

    paper: ClassVar[str] = "Liang et al., LG-FedAvg: Think Locally, Act Globally, 2020, arXiv:2001.01523"
    needs: ClassVar[str] = "any architectures of equal feature width and header"

    def require(self, clients: Sequence[ClientInfo]) -> None:
        models.require_equal_headers("lg-fedavg", sorted({self.shared_model, *(c.tier for c in clients)}), self.models)

    def init_server(self, key: Key) -> Server:
        return {"header": models.initial(self.shared, key / "model" / label(self.shared_model))["header"]}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"extractor": models.initial(self.models[info.tier], key / "model" / label(info.tier))["extractor"]}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"header": server["header"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.models[job.info.tier], self.task)
        visits = self.visits(job.data, job.key / "batches")
        model = {"extractor": job.state["extractor"], "header": job.down["header"]}
        tuned, mean = sgd(loss, {"model": model}, self.optimiser(), visits, job.key / "noise")
        state: Private = {"extractor": tuned["model"]["extractor"]}
        return Update({"header": tuned["model"]["header"]}, state, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"header": average(arrivals, "header")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        model = {"extractor": ready["state"]["extractor"], "header": ready["down"]["header"]}
        return models.logits(self.models[ready["info"].tier], model, batch["x"])
