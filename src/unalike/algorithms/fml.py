"""FML: each client's own model and a travelling "meme" model teach one another.

T. Shen, J. Zhang, X. Jia, F. Zhang, G. Huang, P. Zhou, K. Kuang, F. Wu, C. Wu, "Federated Mutual Learning", 2020,
https://arxiv.org/abs/2006.16765

Client k keeps a model of any architecture. All clients share one small model, the meme, and only it travels. With
p = softmax(logits) of the two on one batch, one round is:

    server    sample S_t, send meme
    client    E epochs, both at once:
                 L_own  = α CE(p_own, y)  + (1 − α) KL(p_meme ‖ p_own),     own_k  ← own_k  − η ∇L_own
                 L_meme = β CE(p_meme, y) + (1 − β) KL(p_own ‖ p_meme),     meme_k ← meme_k − η ∇L_meme
              send meme_k and n_k
    server    meme ← Σ n_k meme_k / Σ n_k

In each loss the other model's p is a constant. The client predicts with its own model.

Deviations
- Memes are averaged by numbers of samples (the authors' code weighs all clients alike).
- Optimisers start fresh at every visit, and the step size does not decay over rounds.
- The preset `paper` has the defaults of the authors' code, that decay left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..distillation import kl_divergence, mutual
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Share, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree


class Server(TypedDict):
    meme: Tree


class Wire(TypedDict):
    meme: Tree


class Private(TypedDict):
    model: Tree
    """Weights of the client's own model."""


@dataclass(frozen=True, kw_only=True)
class FML(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated mutual learning."""

    paper: ClassVar[str] = "Shen et al., Federated Mutual Learning, 2020, arXiv:2006.16765"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"rounds": 50, "local_epochs": 5, "batch_size": 128, "lr": 0.01, "weight_decay": 5e-4}
    }

    alpha: Share = 0.5
    """α: how much the own model learns from labels; the rest is learned from the meme."""
    beta: Share = 0.5
    """β: how much the meme learns from labels; the rest is learned from the own model."""

    def init_server(self, key: Key) -> Server:
        return {"meme": models.initial(self.shared, key / "shared")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"model": models.initial(self.models[info.tier], key / "model" / label(info.tier))}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"meme": server["meme"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        own = self.models[job.info.tier]
        loss = functools.partial(mutual_loss, own, self.shared, self.task, self.alpha, self.beta)
        start = {"model": job.state["model"], "meme": job.down["meme"]}
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, start, self.optimiser(), visits, job.key / "noise")
        return Update({"meme": tuned["meme"]}, {"model": tuned["model"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"meme": average(arrivals, "meme")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"])


def lesson(task: Task, batch: Batch, share: float, student: Tensor, teacher: Tensor) -> Tensor:
    """share · CE(student, y) + (1 − share) · KL(teacher ‖ student), of logits."""
    return share * task.loss(student, batch) + (1 - share) * kl_divergence(teacher, student)


def mutual_loss(
    own: Spec, shared: Spec, task: Task, alpha: float, beta: float, params: Tree, given: Tree, batch: Batch
) -> Tensor:
    """L_own + L_meme: each model's gradient is that of its own term."""
    y_own = models.logits(own, params["model"], batch["x"], train=True)
    y_meme = models.logits(shared, params["meme"], batch["x"], train=True)
    lessons = (functools.partial(lesson, task, batch, share) for share in (alpha, beta))
    return mutual(y_own, y_meme, *lessons)
