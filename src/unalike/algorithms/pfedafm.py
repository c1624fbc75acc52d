"""pFedAFM: a small shared feature extractor beside each client's own model, mixed by trainable weights.

L. Yi, H. Yu, C. Ren, H. Zhang, G. Wang, X. Liu, X. Li, "pFedAFM: Adaptive Feature Mixture for Batch-Level
Personalization in Heterogeneous Federated Learning", 2024, https://arxiv.org/abs/2404.17847

Client k keeps a model F_k = header_k ∘ F_ex,k of any architecture and a vector α_k ∈ [0, 1]^d. All clients share one
small extractor G(θ), and only θ travels. One round:

    server    sample S_t, send θ
    client    1. θ frozen, E epochs:      R = α ⊙ F_ex(x) + (1 − α) ⊙ G(x; θ),   ŷ = header(R)
                 F_k ← F_k − η ∇CE(ŷ, y),   α ← clamp(α − η_α ∇CE(ŷ, y), 0, 1)
              2. F_k frozen, E epochs:    ŷ = header(G(x; θ)),   θ ← θ − η_θ ∇CE(ŷ, y)
              send θ_k and n_k
    server    θ ← Σ n_k θ_k / Σ n_k

Deviations
- The client predicts with the θ that step 1 saw (it is kept in `Private`): its header and α were trained beside it.
- α starts at 0.5. The paper's 1 is local training until α has moved, which takes more steps than short runs have.
  The preset `paper` starts at 1.
- The shared extractor has no header of its own: nothing would train it.
- Optimisers start fresh at every visit, so no momentum passes from client to client.
- `max_alpha_step` and `max_shift` are guards of ours; both are off (1 and 0) by default.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from .. import models
from ..averaging import average
from ..local import SGD, LocalTraining, Step, train
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, NonNegative, Share, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, clone


class Server(TypedDict):
    theta: Tree
    """Weights of G."""


class Wire(TypedDict):
    theta: Tree


class Private(TypedDict):
    model: Tree
    """Weights of F_k: {"extractor", "header"}."""
    alpha: Tensor
    """α_k (d,)."""
    theta: Tree
    """The θ beside which F_k and α_k were last trained."""


@dataclass(frozen=True, kw_only=True)
class PFedAFM(LocalTraining, Algorithm[Server, Private, Wire]):
    """Adaptive feature mixture. Defaults are for short runs on a CPU; `--preset paper` gives the paper's."""

    paper: ClassVar[str] = "Yi et al., pFedAFM: Adaptive Feature Mixture, 2024, arXiv:2404.17847"
    needs: ClassVar[str] = "any architectures of equal feature width"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {"rounds": 500, "local_epochs": 10, "batch_size": 512, "lr": 0.01, "lr_alpha": 0.01, "alpha0": 1.0}
    }

    lr_theta: NonNegative = 0.0
    """η_θ: step size of the shared extractor; 0 means the same as `lr`."""
    lr_alpha: NonNegative = 0.1
    """η_α: step size of the mixing weights."""
    alpha0: Share = 0.5
    """Where α starts: 1 is the client's own features only, 0 the shared ones only."""
    alpha_wd: NonNegative = 1e-3
    """Weight decay on α."""
    mixing: Literal["learned", "fixed"] = "learned"
    """Ablation: "fixed" keeps α at alpha0."""
    training: Literal["iterative", "joint"] = "iterative"
    """Ablation: "joint" trains F_k, α and θ in one step on the mixed prediction, for E epochs."""
    prediction: Literal["mixture", "shared"] = "mixture"
    """Ablation: "shared" predicts with header_k(G(x)) alone."""
    max_alpha_step: Share = 1.0
    """Guard: how far an element of α may move in one round."""
    max_shift: NonNegative = 0.0
    """Guard: largest ‖R − F_ex(x)‖ / ‖F_ex(x)‖ at inference; 0 is no limit."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        models.require_equal_widths("pfedafm", sorted({self.shared_model, *(c.tier for c in clients)}), self.models)

    def init_server(self, key: Key) -> Server:
        return {"theta": models.initial(self.shared, key / "shared")["extractor"]}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {
            "model": models.initial(self.models[info.tier], key / "model" / label(info.tier)),
            "alpha": torch.full((models.width(self.shared),), float(self.alpha0)),
            "theta": models.initial(self.shared, key / "shared")["extractor"],
        }

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"theta": server["theta"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        own = self.models[job.info.tier]
        body, small = self.optimiser(), self.optimiser(self.lr_theta)
        gate = SGD(self.lr_alpha, self.momentum, self.alpha_wd)
        trains = {"model": body, "alpha": gate} if self.mixing == "learned" else {"model": body}
        loss = functools.partial(mixed_loss, own, self.shared, self.task)
        project = functools.partial(clamp_alpha, job.state["alpha"], self.max_alpha_step)
        epochs = functools.partial(self.visits, job.data)
        theta = job.down["theta"]
        start = {"model": job.state["model"], "alpha": job.state["alpha"]}

        if self.training == "joint":
            step = Step(loss, {**trains, "theta": small}, project)
            tuned, mean = train([step], {**start, "theta": theta}, {}, epochs(job.key / "joint"), job.key / "noise")
            theta_seen, theta_sent = tuned["theta"], clone(tuned["theta"])
        else:
            first = job.key / "own"
            tuned, mean = train([Step(loss, trains, project)], start, {"theta": theta}, epochs(first), first / "noise")
            second, header = job.key / "shared", {"header": tuned["model"]["header"]}
            step = Step(functools.partial(shared_loss, own, self.shared, self.task), {"theta": small})
            shared, _ = train([step], {"theta": theta}, header, epochs(second), second / "noise")
            theta_seen, theta_sent = clone(theta), shared["theta"]

        state: Private = {"model": tuned["model"], "alpha": tuned["alpha"], "theta": theta_seen}
        metrics = {"loss": mean, "alpha_mean": float(tuned["alpha"].mean())}
        return Update({"theta": theta_sent}, state, job.info.n, metrics)

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"theta": average(arrivals, "theta")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own, state = self.models[ready["info"].tier], ready["state"]
        alpha = torch.zeros_like(state["alpha"]) if self.prediction == "shared" else state["alpha"]
        f = models.features(own, state["model"]["extractor"], batch["x"])
        g = models.features(self.shared, state["theta"], batch["x"])
        return models.head(own, state["model"]["header"], bound_shift(f, mix(alpha, f, g), self.max_shift))


def mix(alpha: Tensor, f: Tensor, g: Tensor) -> Tensor:
    """R = α ⊙ f + (1 − α) ⊙ g, with α (d,) and f, g (B, d)."""
    return alpha * f + (1 - alpha) * g


def mixed_loss(own: Spec, shared: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(header(R), y). θ is constant where it stands in `given`, and trains where it stands in `params`."""
    joint = "theta" in params
    f = models.features(own, params["model"]["extractor"], batch["x"], train=True)
    with torch.set_grad_enabled(joint):
        theta = params["theta"] if joint else given["theta"]
        g = models.features(shared, theta, batch["x"], train=joint)
    r = mix(params["alpha"], f, g)
    return task.loss(models.head(own, params["model"]["header"], r, train=True), batch)


def shared_loss(own: Spec, shared: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(header(G(x)), y) with the header frozen: the mixture at α = 0."""
    g = models.features(shared, params["theta"], batch["x"], train=True)
    return task.loss(models.head(own, given["header"], g), batch)


def clamp_alpha(before: Tensor, reach: float, params: Tree) -> None:
    """Project α onto [0, 1], and onto [before − reach, before + reach]."""
    alpha: Tensor = params["alpha"]
    alpha.clamp_(torch.clamp(before - reach, min=0.0), torch.clamp(before + reach, max=1.0))


def bound_shift(f: Tensor, r: Tensor, limit: float) -> Tensor:
    """Move r towards f until ‖r − f‖ ≤ limit · ‖f‖ for each row; limit 0 leaves r as it is."""
    if limit == 0:
        return r
    shift, allowed = r - f, limit * f.norm(dim=1, keepdim=True)
    return f + shift * torch.clamp(allowed / shift.norm(dim=1, keepdim=True).clamp(min=1e-12), max=1.0)
