"""FedProto: clients agree on where the features of each class lie.

Y. Tan, G. Long, L. Liu, T. Zhou, Q. Lu, J. Jiang, C. Zhang, "FedProto: Federated Prototype Learning across
Heterogeneous Clients", AAAI 2022, https://arxiv.org/abs/2105.00243

Client k keeps a model H_k ∘ F_k of any architecture with d features. Only prototypes C_j ∈ ℝ^d travel, one a class.
One round:

    server    sample S_t, send all C_j
    client    E epochs:  (F_k, H_k) ← (F_k, H_k) − η ∇[CE(H_k(F_k(x)), y) + λ R],   R = ‖F_k(x) − C_y‖² / d
              C_k,j = mean of F_k(x) over its rows of class j;   send C_k,j for each class that it has
    server    C_j ← mean of the C_k,j that were sent

    predict   argmin_j ‖F_k(x) − C_j‖₂

Deviations
- R is taken row by row, as in the authors' public code; the paper sums distances between class means. A row whose class
  has no prototype yet counts with R = 0.
- The server's mean takes all clients alike, as in the authors' public code; the paper weights by n_k,j, which would
  have to be sent. A class that nobody sent in a round keeps its prototype; in the paper all clients are in every round.
- C_k,j are those of the trained model, in evaluation mode; the authors' public code averages the features that the last
  epoch of training has passed through.
- All classes with a prototype compete in a prediction; the authors' public code tells a client which are in its test.
  A class without one is put 1 further than the furthest. While there is none at all, H_k predicts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import models
from ..averaging import gather
from ..local import LocalTraining, Step, means_by_label, rows_by_label, train
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, NonNegative, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree


class Server(TypedDict):
    prototypes: Mapping[str, Tensor]
    """Class to C_j (d,)."""


class Wire(TypedDict):
    prototypes: Mapping[str, Tensor]
    """Down: class to C_j (d,). Up: class to C_k,j (d,)."""


class Private(TypedDict):
    model: Tree
    """Weights of F_k and H_k: {"extractor", "header"}."""


@dataclass(frozen=True, kw_only=True)
class FedProto(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated prototypes."""

    paper: ClassVar[str] = "Tan et al., FedProto: Federated Prototype Learning, AAAI 2022, arXiv:2105.00243"
    needs: ClassVar[str] = "any architectures of equal feature width"

    lam: NonNegative = 1.0
    """λ: weight of the pull towards the prototypes."""
    prediction: Literal["prototype", "header"] = "prototype"
    """What predicts: the nearest prototype, or the client's own header."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        models.require_equal_widths("fedproto", sorted({c.tier for c in clients}), self.models)

    def init_server(self, key: Key) -> Server:
        return {"prototypes": {}}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"model": models.initial(self.models[info.tier], key / "model" / label(info.tier))}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"prototypes": server.get("prototypes", {})}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        own = self.models[job.info.tier]
        none = job.data["x"].new_full((models.width(own),), math.nan)
        given = {"prototypes": rows_by_label(job.down.get("prototypes", {}), own.classes, none)}
        step = Step(functools.partial(tied_loss, own, self.task, self.lam), {"model": self.optimiser()})
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = train([step], {"model": job.state["model"]}, given, visits, job.key / "noise")
        features = functools.partial(models.features, own, tuned["model"]["extractor"])
        prototypes = means_by_label(features, job.data, own.classes)
        return Update({"prototypes": prototypes}, {"model": tuned["model"]}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        means = {name: sent.double().mean(0).float() for name, sent in gather(arrivals, "prototypes").items()}
        return {"prototypes": {**server.get("prototypes", {}), **means}}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        own, model = self.models[ready["info"].tier], ready["state"]["model"]
        r, prototypes = models.features(own, model["extractor"], batch["x"]), ready["down"].get("prototypes", {})
        if self.prediction == "header" or not prototypes:
            return models.head(own, model["header"], r)
        return nearness(r, prototypes, own.classes)


def tied_loss(own: Spec, task: Task, lam: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(H(F(x)), y) + λ ‖F(x) − C_y‖² / d, in the mean over the rows; the C of a class without one is NaN."""
    r = models.features(own, params["model"]["extractor"], batch["x"], train=True)
    target = given["prototypes"][batch["y"]]
    pull = F.mse_loss(r, torch.where(target.isnan(), r.detach(), target))
    return task.loss(models.head(own, params["model"]["header"], r, train=True), batch) + lam * pull


def nearness(r: Tensor, prototypes: Mapping[str, Tensor], classes: int) -> Tensor:
    """−‖r − C_j‖₂ of features r (B, d), as outputs (B, classes); a row's least one minus 1 where there is no C_j."""
    found = {int(name): -(r - c).norm(dim=1) for name, c in prototypes.items()}
    least = torch.stack([*found.values()]).amin(0) - 1
    return torch.stack([found.get(j, least) for j in range(classes)], 1)
