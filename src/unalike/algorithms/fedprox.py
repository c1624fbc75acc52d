"""FedProx: FedAvg whose clients are held near the model they were sent.

T. Li, A. K. Sahu, M. Zaheer, M. Sanjabi, A. Talwalkar, V. Smith, "Federated Optimization in Heterogeneous Networks",
MLSys 2020, https://arxiv.org/abs/1812.06127

    server    sample S_t, send w_t
    client    from w_t, E epochs:  w_k ← w_k − η ∇(L(w_k) + μ/2 ‖w_k − w_t‖²);   send w_k and n_k
    server    w_t+1 ← Σ n_k w_k / Σ n_k

Deviations
- Clients are sampled uniformly and averaged by their samples; the paper samples them by their share of the samples and
  takes the plain mean.
- Every client takes all of its E epochs; the paper lets slow ones return early.
- Momentum and weight decay are offered (0 in the paper). BatchNorm statistics are averaged with the weights, and
  ‖w_k − w_t‖ leaves them out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, Step, squared_distance, train
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, NonNegative, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree


class Server(TypedDict):
    model: Tree
    """w_t."""


class Wire(TypedDict):
    model: Tree
    """w_t to the client, w_k from it."""


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class FedProx(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging with a proximal term."""

    paper: ClassVar[str] = "Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020, arXiv:1812.06127"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    mu: NonNegative = 0.01
    """μ: pull towards the model that was sent; 0 is FedAvg."""

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(proximal_loss, self.shared, self.task, self.mu)
        sent = {"model": job.down["model"]}
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = train([Step(loss, {"model": self.optimiser()})], sent, sent, visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])


def proximal_loss(spec: Spec, task: Task, mu: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L(w_k) + μ/2 ‖w_k − w_t‖², with w_k in `params` and w_t in `given`."""
    loss = models.supervised_loss(spec, task, params, given, batch)
    return loss + mu / 2 * squared_distance(params["model"], given["model"])
