"""Ditto: beside the common model each client trains one of its own, held near the common one.

T. Li, S. Hu, A. Beirami, V. Smith, "Ditto: Fair and Robust Federated Learning Through Personalization", ICML 2021,
https://arxiv.org/abs/2012.04221

    server    sample S_t, send w_t
    client    from w_t, E epochs:     w_k ← w_k − η ∇L(w_k)
              from its own v_k:       v_k ← v_k − η (∇L(v_k) + λ (v_k − w_t))
              send w_k and n_k, predict with v_k
    server    w_t+1 ← Σ n_k w_k / Σ n_k

Deviations
- λ is one number for all clients; the paper lets each choose among a few on its own validation rows.
- The mean is weighted by samples.
- Momentum and weight decay are offered (0 in the paper). BatchNorm statistics of w are averaged with the weights, those
  of v_k stay with it, and ‖v_k − w_t‖ leaves both out.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypedDict

from annotated_types import Ge
from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, Step, sgd, squared_distance, train
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
    personal: Tree
    """v_k."""


@dataclass(frozen=True, kw_only=True)
class Ditto(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging, and beside it a personal model with a proximal term."""

    paper: ClassVar[str] = "Li et al., Ditto: Fair and Robust Federated Learning, ICML 2021, arXiv:2012.04221"
    needs: ClassVar[str] = "one architecture that every client can train twice"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    lam: NonNegative = 0.1
    """λ: pull of the common model on the personal one; 0 is local training."""
    personal_epochs: Annotated[int, Ge(0)] = 0
    """Passes of v_k over the client's training rows in a visit; 0 means as many as `local_epochs`."""

    def init_server(self, key: Key) -> Server:
        return {"model": self._initial(key)}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"personal": self._initial(key)}

    def _initial(self, key: Key) -> Tree:
        return models.initial(self.shared, key / "model" / label(self.shared_model))

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        sent, first, second = {"model": job.down["model"]}, job.key / "common", job.key / "personal"
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        tuned, _ = sgd(loss, sent, self.optimiser(), self.visits(job.data, first), first / "noise")

        step = Step(functools.partial(personal_loss, self.shared, self.task, self.lam), {"model": self.optimiser()})
        visits = self.visits(job.data, second, self.personal_epochs)
        own, mean = train([step], {"model": job.state["personal"]}, sent, visits, second / "noise")
        return Update({"model": tuned["model"]}, {"personal": own["model"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["state"]["personal"], batch["x"])


def personal_loss(spec: Spec, task: Task, lam: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L(v_k) + λ/2 ‖v_k − w_t‖², with v_k in `params` and w_t in `given`."""
    loss = models.supervised_loss(spec, task, params, given, batch)
    return loss + lam / 2 * squared_distance(params["model"], given["model"])
