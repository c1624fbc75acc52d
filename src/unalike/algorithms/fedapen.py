"""FedAPEN: mutual learning, and an ensemble of own and shared model by a weight that each client learns.

Z. Qin, S. Deng, M. Zhao, X. Yan, "FedAPEN: Personalized Cross-silo Federated Learning with Adaptability to Statistical
Heterogeneity", KDD 2023, https://doi.org/10.1145/3580305.3599344

Client k keeps a model of any architecture with logits y_own, and a weight λ_k ∈ [0, 1]. All clients share one small
model with logits y_sha, and only it travels. A few of its training rows the client holds out, always the same ones.
One round:

    server    sample S_t, send the shared model w
    client    1. both models frozen, some epochs of the rows held out:   ŷ = λ_k y_own + (1 − λ_k) y_sha
                 λ_k ← clamp(λ_k − η_λ ∂CE(ŷ, y)/∂λ_k, 0, 1)
              2. λ_k frozen, E epochs of the other rows, both models at once:
                 L_own = CE(y_own, y) + KL(p_sha ‖ p_own) + CE(ŷ, y),    own_k ← own_k − η ∇L_own
                 L_sha = CE(y_sha, y) + KL(p_own ‖ p_sha) + CE(ŷ, y),    w_k ← w_k − η ∇L_sha
              send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

In each loss of step 2 the other model's outputs are constants, in ŷ too. The client predicts with ŷ.

Deviations
- λ_k is learned when the averaged w reaches the client, at the start of its visit; the predictions that follow a visit
  use that λ_k. The authors' code learns between averaging and testing, for which every client has to be asked twice in
  a round; for the training it comes to the same, but that there the first visit takes λ_k as it starts, 0.5.
- η_λ is ten times and the share of rows held out twice the authors' (1e-3 and 5 %): our runs are short and our clients
  small. The preset `paper` has the defaults of their code, but for a step size η that shrinks by 1 % a round.
- A client whose share of rows comes to none keeps λ_k as it is.
- Shared models are averaged by numbers of samples (the authors' code weighs all clients alike).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor

from .. import models
from ..averaging import average
from ..distillation import kl_divergence, mutual
from ..local import SGD, LocalTraining, Step, train
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, NonNegative, Share, Spec, Update
from ..rng import Key, round_half_up
from ..tasks import Task
from ..tree import Tree


class Server(TypedDict):
    shared: Tree
    """Weights w of the shared model."""


class Wire(TypedDict):
    shared: Tree


class Private(TypedDict):
    model: Tree
    """Weights of the client's own model."""
    lam: Tensor
    """λ_k, a scalar."""
    split: Tensor
    """The seed by which the client holds rows out, a scalar (int64)."""


@dataclass(frozen=True, kw_only=True)
class FedAPEN(LocalTraining, Algorithm[Server, Private, Wire]):
    """Mutual learning with a learned ensemble."""

    paper: ClassVar[str] = "Qin et al., FedAPEN: Personalized Cross-silo Federated Learning, KDD 2023"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"rounds": 100, "local_epochs": 5, "batch_size": 64, "lr": 0.01, "momentum": 0.0, "weight_decay": 0.0}
        | {"held_out": 0.05, "lr_lambda": 0.001}
    }

    held_out: Share = 0.1
    """Share of a client's training rows on which λ is learned, and nothing else; 0 keeps λ at 0.5."""
    lr_lambda: NonNegative = 0.01
    """η_λ: step size of the ensemble's weight."""
    lambda_epochs: Count = 10
    """Passes over the rows held out in a visit."""

    def init_server(self, key: Key) -> Server:
        return {"shared": models.initial(self.shared, key / "shared")}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {
            "model": models.initial(self.models[info.tier], key / "model" / label(info.tier)),
            "lam": torch.tensor(0.5),
            "split": torch.tensor((key / "split" / info.id).seed),
        }

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"shared": server["shared"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        held, rows = hold_out(job.data, self.held_out, int(job.state["split"]))
        start = {"model": job.state["model"], "shared": job.down["shared"]}
        lam = self._learned_lambda(job, start, held)
        step = Step(
            functools.partial(mutual_loss, self.models[job.info.tier], self.shared, self.task),
            dict.fromkeys(start, self.optimiser()),
        )
        tuned, mean = train([step], start, {"lam": lam}, self.visits(rows, job.key / "batches"), job.key / "noise")
        state: Private = {"model": tuned["model"], "lam": lam, "split": job.state["split"]}
        return Update({"shared": tuned["shared"]}, state, job.info.n, {"loss": mean})

    def _learned_lambda(self, job: Job[Private, Wire], params: Tree, held: Batch) -> Tensor:
        """Step 1."""
        if not len(held["x"]):
            return job.state["lam"]
        with torch.no_grad():
            own = models.logits(self.models[job.info.tier], params["model"], held["x"])
            shared = models.logits(self.shared, params["shared"], held["x"])
        step = Step(functools.partial(ensemble_loss, self.task), {"lam": SGD(self.lr_lambda)}, clamp_lambda)
        visits = self.visits({**held, "own": own, "shared": shared}, job.key / "held", self.lambda_epochs)
        lam: Tensor = train([step], {"lam": job.state["lam"]}, {}, visits, job.key / "lambda")[0]["lam"]
        return lam

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"shared": average(arrivals, "shared")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own = models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"])
        shared = models.logits(self.shared, ready["down"]["shared"], batch["x"])
        return ensemble(ready["state"]["lam"], own, shared)


def hold_out(data: Batch, share: float, seed: int) -> tuple[Batch, Batch]:
    """(held out, the others): round(share · n) of the n rows, but one at least is left."""
    x = data["x"]
    count = min(round_half_up(share * len(x)), len(x) - 1)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(x.device)
    held, others = ({name: rows[part] for name, rows in data.items()} for part in (order[:count], order[count:]))
    return held, others


def ensemble(lam: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """λ a + (1 − λ) b."""
    return lam * a + (1 - lam) * b


def ensemble_loss(task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(ŷ, y) of λ, with both models' logits in the batch."""
    return task.loss(ensemble(params["lam"], batch["own"], batch["shared"]), batch)


def clamp_lambda(params: Tree) -> None:
    """Project λ onto [0, 1]."""
    params["lam"].clamp_(0.0, 1.0)


def lesson(task: Task, batch: Batch, weight: Tensor, student: Tensor, teacher: Tensor) -> Tensor:
    """CE(student, y) + KL(teacher ‖ student) + CE(ŷ, y), where `weight` is the student's in ŷ."""
    together = task.loss(ensemble(weight, student, teacher), batch)
    return task.loss(student, batch) + kl_divergence(teacher, student) + together


def mutual_loss(own: Spec, shared: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L_own + L_sha: each model's gradient is that of its own term."""
    y_own = models.logits(own, params["model"], batch["x"], train=True)
    y_shared = models.logits(shared, params["shared"], batch["x"], train=True)
    lessons = (functools.partial(lesson, task, batch, weight) for weight in (given["lam"], 1 - given["lam"]))
    return mutual(y_own, y_shared, *lessons)
