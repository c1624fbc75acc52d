"""FedKD: a mentor at each client, one mentee for all, and updates of the mentee as few singular triples.

C. Wu, F. Wu, L. Lyu, Y. Huang, X. Xie, "Communication-efficient federated learning via knowledge distillation", Nature
Communications 13, 2022, https://arxiv.org/abs/2108.13323

Client k keeps a mentor t of any architecture and a matrix W_h (d_t × d_s). All clients share one small mentee s, whose
updates travel. With features H, logits y, the task's losses L_t and L_s on one batch, and c = L_t + L_s, one round is:

    server    sample S_t, send svd(Δ) of the last round; s itself to those who were not in it
    client    s ← s + Δ, then E epochs, both at once, each minimising the sum of its three:
                 mentor:   L_t + KL(y_s ‖ y_t) / c + L_h,
                 mentee:   L_s + KL(y_t ‖ y_s) / c + L_h,        L_h = MSE(H_t, W_h H_s) / c
              send svd(Δ_k), where Δ_k = s_k − s, and n_k
    server    Δ ← Σ n_k Δ_k / Σ n_k,    s ← s + Δ as it is after svd(Δ)

svd(Δ) keeps of every matrix the K largest singular values, the fewest with Σ_{i≤K} σᵢ² / Σ σᵢ² > T. T rises with t, the
share of the run that is done: T(t) = T_start + (T_end − T_start) t. Confident models, whose c is small, teach more.
The client predicts with its mentor.

Deviations
- c, and in each model's losses the other one's outputs, are constants; c is at least 0.01, because of two models that
  know their rows by heart it tends to 0.
- The authors' public code minimises one loss for both models, in which nothing is a constant, the number m of classes
  divides the KL divergences, and L_h stands twice. This is `losses = "joint"`:
  c + (KL(y_s ‖ y_t) + KL(y_t ‖ y_s)) / (m c) + 2 L_h.
- L_h compares what the two extractors emit, and no attention maps: our networks have none.
- Δ is what E epochs have made of s, not a gradient. A kernel of a convolution is the matrix (filters, the rest).
- What factors would not make smaller travels whole, biases and BatchNorm's statistics among it; of Δ = 0 nothing does.
- Where no K is enough (T = 1) all singular values are kept that are not 0.
- Part of the clients may be sampled; so the server remembers who was in the last round. Updates are averaged by numbers
  of samples.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import models
from ..averaging import average
from ..compression import compress, decompress
from ..distillation import kl_divergence, mutual
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Share, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, clone, map_leaves

SMALLEST_C = 0.01
"""The least that a distillation loss is divided by."""


class Server(TypedDict):
    mentee: Tree
    """Weights of s."""
    update: Tree
    """svd(Δ) of the last round."""
    last: Tensor
    """Who was in the last round: client ids (int64)."""


class Wire(TypedDict, total=False):
    """Down either of the two, up an update."""

    mentee: Tree
    update: Tree
    """svd(Δ), svd(Δ_k)."""


class Private(TypedDict):
    mentor: Tree
    """Weights of t."""
    hidden: Tensor
    """W_h (d_t, d_s)."""
    mentee: Tree
    """s as the client last had it from the server."""


@dataclass(frozen=True, kw_only=True)
class FedKD(LocalTraining, Algorithm[Server, Private, Wire]):
    """Adaptive mutual distillation with compressed updates."""

    paper: ClassVar[str] = "Wu et al., Communication-efficient federated learning via knowledge distillation, 2022"

    energy_start: Share = 0.95
    """T_start: share of a matrix's energy that its factors keep when the run starts."""
    energy_end: Share = 0.98
    """T_end: the share they keep when it ends."""
    losses: Literal["separate", "joint"] = "separate"
    """Whether each model minimises its own three, or both the sum of the authors' public code."""

    def init_server(self, key: Key) -> Server:
        nobody = torch.empty(0, dtype=torch.int64)
        return {"mentee": self._first_mentee(key), "update": {}, "last": nobody}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        d_t, d_s = models.width(self.models[info.tier]), models.width(self.shared)
        return {
            "mentor": models.initial(self.models[info.tier], key / "model" / label(info.tier)),
            "hidden": (2 * torch.rand(d_t, d_s, generator=(key / "hidden" / label(info.tier)).torch()) - 1) / d_s**0.5,
            "mentee": self._first_mentee(key),
        }

    def _first_mentee(self, key: Key) -> Tree:
        return models.initial(self.shared, key / "shared")

    def energy(self, round: int) -> float:
        """T(t) at t = round / rounds."""
        return self.energy_start + (self.energy_end - self.energy_start) * round / self.rounds

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"update": server["update"]} if info.id in server["last"].tolist() else {"mentee": server["mentee"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        down, state = job.down, job.state
        mentee = clone(down["mentee"]) if "mentee" in down else moved(state["mentee"], down["update"])
        taken = mutual_loss if self.losses == "separate" else joint_loss
        loss = functools.partial(taken, self.models[job.info.tier], self.shared, self.task)
        start = {"mentor": state["mentor"], "mentee": mentee, "hidden": state["hidden"]}
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = sgd(loss, start, self.optimiser(), visits, job.key / "noise")
        delta = map_leaves(torch.sub, tuned["mentee"], mentee)
        kept: Private = {"mentor": tuned["mentor"], "hidden": tuned["hidden"], "mentee": mentee}
        return Update({"update": compress(delta, self.energy(job.round))}, kept, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        deltas = [replace(a, up={"update": decompress(a.up["update"], server["mentee"])}) for a in arrivals]
        update = compress(average(deltas, "update"), self.energy(round))
        last = torch.tensor([arrival.info.id for arrival in arrivals])
        return {"mentee": moved(server["mentee"], update), "update": update, "last": last}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["mentor"], batch["x"])


def moved(mentee: Tree, update: Tree) -> Tree:
    """s + Δ: the same bits at the server and at every client that computes on the same kind of device."""
    return map_leaves(torch.add, mentee, decompress(update, mentee))


def lesson(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student), of logits."""
    return kl_divergence(teacher, student)


def hidden_loss(h_t: Tensor, h_s: Tensor, w: Tensor) -> Tensor:
    """MSE(H_t, W_h H_s) with H_t (B, d_t), H_s (B, d_s), W_h (d_t, d_s)."""
    return F.mse_loss(h_s @ w.T, h_t)


def adaptive(losses: Tensor, distilled: Tensor) -> Tensor:
    """`losses` + `distilled` / c, where c is the value of `losses`."""
    return losses + distilled / losses.detach().clamp(min=SMALLEST_C)


def both(mentor: Spec, mentee: Spec, params: Tree, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """H_t, H_s, y_t and y_s."""
    h_t = models.features(mentor, params["mentor"]["extractor"], x, train=True)
    h_s = models.features(mentee, params["mentee"]["extractor"], x, train=True)
    y_t = models.head(mentor, params["mentor"]["header"], h_t, train=True)
    y_s = models.head(mentee, params["mentee"]["header"], h_s, train=True)
    return h_t, h_s, y_t, y_s


def mutual_loss(mentor: Spec, mentee: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The losses of both models: the gradient of either is that of its own three, and that of W_h is L_h's.

    L_h stands once: its gradient by H_t is the mentor's and that by H_s the mentee's.
    """
    h_t, h_s, y_t, y_s = both(mentor, mentee, params, batch["x"])
    distilled = mutual(y_t, y_s, lesson, lesson) + hidden_loss(h_t, h_s, params["hidden"])
    return adaptive(task.loss(y_t, batch) + task.loss(y_s, batch), distilled)


def joint_loss(mentor: Spec, mentee: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """c + (KL(y_s ‖ y_t) + KL(y_t ‖ y_s)) / (m c) + 2 MSE(H_t, W_h H_s) / c of m classes; nothing is a constant."""
    h_t, h_s, y_t, y_s = both(mentor, mentee, params, batch["x"])
    c = task.loss(y_t, batch) + task.loss(y_s, batch)
    kl = (lesson(y_t, y_s) + lesson(y_s, y_t)) / mentor.classes
    return c + (kl + 2 * hidden_loss(h_t, h_s, params["hidden"])) / c.clamp(min=SMALLEST_C)
