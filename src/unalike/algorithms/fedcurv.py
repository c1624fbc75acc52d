"""FedCurv: FedAvg whose clients keep what mattered to the others, by the curvature of the others' losses.

N. Shoham, T. Avidor, A. Keren, N. Israel, D. Benditkis, L. Mor-Yosef, I. Zeitak, "Overcoming Forgetting in Federated
Learning on Non-IID Data", 2019, https://arxiv.org/abs/1910.07796

F_k is the diagonal of the Fisher information of client k's loss at its own w_k: u_k = F_k, v_k = F_k ⊙ w_k.

    server    sample S_t, send w and the last round's sums u = Σ u_j, v = Σ v_j
    client    E epochs:  w_k ← w_k − η ∇(L(w_k) + λ Σ_j≠k (w_k − w_j)ᵀ diag(F_j) (w_k − w_j)),  which is
              L(w_k) + λ (w_kᵀ diag(u − u_k) w_k − 2 w_kᵀ (v − v_k)) and a constant;
              compute F_k at the new w_k, keep u_k and v_k, send w_k, u_k, v_k and n_k
    server    w ← Σ n_k w_k / Σ n_k,  u ← Σ u_k,  v ← Σ v_k

Deviations
- F_k is the empirical Fisher: the mean of the squared gradients of single rows with their own labels, in evaluation
  mode, over at most `fisher_rows` rows drawn anew in each visit. With a `class_balance` it is the weighted mean.
- The constant is chosen so that the penalty is 0 at the w that was sent: the loss that is told may be below L.
- The mean of the models is weighted by samples. The sums are not: each client of the last round counts once.
- Momentum, weight decay and clipping of the whole gradient are offered. BatchNorm statistics are averaged with the
  weights and have no F.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from .. import models
from ..averaging import average, summed
from ..local import LocalTraining, Step, squared_gradients, train, trainable
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, NonNegative, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, clone, flatten, map_leaves


class Server(TypedDict):
    model: Tree
    """w."""
    u: Tree
    """Σ u_j of the last round, a leaf for each weight and none for buffers; empty before the first."""
    v: Tree
    """Σ v_j, likewise."""


class Wire(TypedDict):
    model: Tree
    """w to the client, w_k from it."""
    u: Tree
    """u to the client, u_k from it."""
    v: Tree
    """v to the client, v_k from it."""


class Private(TypedDict):
    u: Tree
    """u_k that this client has last sent."""
    v: Tree
    """v_k, likewise."""
    round: Tensor
    """The round in which it was, 0 before the first visit."""


@dataclass(frozen=True, kw_only=True)
class FedCurv(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging with a penalty by the others' curvature."""

    paper: ClassVar[str] = "Shoham et al., Overcoming Forgetting in Federated Learning, 2019, arXiv:1910.07796"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    lam: NonNegative = 1.0
    """λ: weight of the penalty; 0 is FedAvg."""
    fisher_rows: Count = 64
    """Most rows of a client that F_k is computed on, each in a pass of its own (a run's FLOPs are told as of all)."""

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model)), "u": {}, "v": {}}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"u": {}, "v": {}, "round": torch.tensor(0)}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"], "u": server.get("u", {}), "v": server.get("v", {})}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(curved_loss, self.shared, self.task, self.lam)
        given = {"model": job.down["model"], **others(job)}
        visits = self.visits(job.data, job.key / "batches")
        step = Step(loss, {"model": self.optimiser()})
        tuned, mean = train([step], {"model": job.down["model"]}, given, visits, job.key / "noise")
        u = self._fisher(tuned["model"], job.data, job.key / "fisher")
        v = map_leaves(torch.mul, u, tuned["model"])
        kept: Private = {"u": clone(u), "v": clone(v), "round": torch.tensor(job.round)}
        return Update({"model": tuned["model"], "u": u, "v": v}, kept, job.info.n, {"loss": mean})

    def _fisher(self, model: Tree, data: Batch, key: Key) -> Tree:
        """F_k at `model`."""
        picked = torch.randperm(len(data["y"]), generator=key.torch())[: self.fisher_rows].to(data["y"].device)
        rows = {name: column[picked] for name, column in self.weighed(data).items()}
        found: Tree = squared_gradients(functools.partial(row_loss, self.shared, self.task), {"model": model}, rows)
        return found["model"]  # type: ignore[no-any-return]

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model"), "u": summed(arrivals, "u"), "v": summed(arrivals, "v")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])


def others(job: Job[Private, Wire]) -> dict[str, Tree]:
    """Σ_j≠k of u_j and v_j: the sums that came, without the client's own where it took part in the last round."""
    u, v = job.down.get("u", {}), job.down.get("v", {})
    if int(job.state["round"]) != job.round - 1:
        return {"u": u, "v": v}
    return {
        "u": map_leaves(torch.sub, u, job.state.get("u", {})),
        "v": map_leaves(torch.sub, v, job.state.get("v", {})),
    }


def row_loss(spec: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """−log p(y | x) in evaluation mode."""
    return task.loss(models.logits(spec, params["model"], batch["x"]), batch)


def penalty(w: Tree, sent: Tree, u: Tree, v: Tree) -> Tensor:
    """wᵀ diag(u) w − 2 wᵀ v, less what it is at `sent`: Σ (w − s) ((w + s) u − 2 v) over the weights w and s."""
    w, sent, v = trainable(w), trainable(sent), flatten(v)
    terms = [((w[n] - sent[n]) * ((w[n] + sent[n]) * leaf - 2 * v[n])).sum() for n, leaf in flatten(u).items()]
    return torch.stack(terms).sum()


def curved_loss(spec: Spec, task: Task, lam: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L(w_k) + λ penalty, with w_k in `params` and in `given` the w that was sent and the others' u and v."""
    loss = models.supervised_loss(spec, task, params, given, batch)
    if not lam or not given["u"]:
        return loss
    return loss + lam * penalty(params["model"], given["model"], given["u"], given["v"])
