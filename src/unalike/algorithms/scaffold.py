"""SCAFFOLD: control variates correct the drift of clients towards their own optima.

S. P. Karimireddy, S. Kale, M. Mohri, S. J. Reddi, S. U. Stich, A. T. Suresh, "SCAFFOLD: Stochastic Controlled
Averaging for Federated Learning", ICML 2020, https://arxiv.org/abs/1910.06378

c_k estimates the gradient of client k and c that of all clients; both start at 0. With option II for c_k:

    server    sample S, send x and c
    client    from y = x, E epochs (K batches):  y ← y − η (∇L(y) − c_k + c)
              c_k⁺ ← c_k − c + (x − y) / (K η);   keep c_k⁺, send y and c_k⁺ − c_k
    server    x ← x + η_g · 1/|S| Σ (y − x),   c ← c + |S|/N · 1/|S| Σ (c_k⁺ − c_k)

Deviations
- |S|/N is taken to be `fraction`, since the server does not see N when it aggregates: the two differ by the rounding of
  |S|, and when a client's answer is missing.
- Weight decay is offered: it is part of every step and thus of (x − y)/(K η), so all of it is SCAFFOLD on
  L(y) + decay/2 ‖y‖². Clipping bounds ∇L(y) − c_k + c; where it does, c_k is no longer the mean gradient.
- BatchNorm statistics have no control variate; the server takes their plain mean, as of the weights, but without η_g.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from .. import models
from ..averaging import average
from ..local import LocalTraining, Step, train, trainable
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Positive, Share, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, flatten, map_leaves, merge, unflatten


class Server(TypedDict):
    model: Tree
    """x."""
    control: Tree
    """c: one leaf for each weight, none for buffers."""


class Wire(TypedDict):
    model: Tree
    """x to the client, y from it."""
    control: Tree
    """c to the client, c_k⁺ − c_k from it."""


class Private(TypedDict):
    control: Tree
    """c_k."""


@dataclass(frozen=True, kw_only=True)
class Scaffold(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging with control variates."""

    paper: ClassVar[str] = "Karimireddy et al., SCAFFOLD: Stochastic Controlled Averaging, ICML 2020, arXiv:1910.06378"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    momentum: Share = 0.0
    """Momentum of SGD; with any, (x − y)/(K η) is many times the mean gradient and the correction overshoots."""
    lr_server: Positive = 1.0
    """η_g: step size of the server."""

    def init_server(self, key: Key) -> Server:
        return {"model": self._initial(key), "control": self._zeros(key)}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"control": self._zeros(key)}

    def _initial(self, key: Key) -> Tree:
        return models.initial(self.shared, key / "model" / label(self.shared_model))

    def _zeros(self, key: Key) -> Tree:
        return map_leaves(torch.zeros_like, unflatten(trainable(self._initial(key))))

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"], "control": server["control"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        x, c, c_k = job.down["model"], job.down["control"], job.state["control"]
        step = Step(functools.partial(corrected_loss, self.shared, self.task), {"model": self.optimiser()})
        given, counter = {"correction": map_leaves(torch.sub, c, c_k)}, itertools.count()
        visits = (batch for batch, _ in zip(self.visits(job.data, job.key / "batches"), counter, strict=False))
        tuned, mean = train([step], {"model": x}, given, visits, job.key / "noise")
        K, y = next(counter), tuned["model"]
        change = map_leaves(lambda c, x, y: (x - y) / (K * self.lr) - c, c, x, y)
        state: Private = {"control": map_leaves(torch.add, c_k, change)}
        return Update({"model": y, "control": change}, state, 1.0, {"loss": mean})  # all clients count equally

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        x, c = server["model"], server["control"]
        y, change = average(arrivals, "model"), average(arrivals, "control")
        moved = map_leaves(lambda _, x, y: x + self.lr_server * (y - x), c, x, y)
        return {
            "model": merge(y, moved),
            "control": map_leaves(lambda c, change: c + self.fraction * change, c, change),
        }

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])


def corrected_loss(spec: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L(y) with the gradient ∇L(y) − c_k + c: to it is added ⟨c − c_k, y⟩, shifted to be 0 where it is evaluated."""
    y = trainable(params["model"])
    term = torch.stack([(c * y[name]).sum() for name, c in flatten(given["correction"]).items()]).sum()
    return models.supervised_loss(spec, task, params, given, batch) + (term - term.detach())
