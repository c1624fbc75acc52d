"""FD: clients teach each other with their mean outputs for each label.

E. Jeong, S. Oh, H. Kim, J. Park, M. Bennis, S.-L. Kim, "Communication-Efficient On-Device Machine Learning: Federated
Distillation and Augmentation under Non-IID Private Data", 2018, https://arxiv.org/abs/1811.11479

Client k keeps a model F_k of any architecture, whose outputs F_k(x) are probabilities (softmax). One round:

    server    sample S_t, send Σ_j F̄_j,l for each label l
    client    Ĝ_k,l = (Σ_j F̄_j,l − F̄_k,l) / (m_l − 1),   the mean of the m_l clients that sent l, without its own
              E epochs:  F_k ← F_k − η ∇[CE(F_k(x), y) + γ CE(F_k(x), Ĝ_k,y)]
              F̄_k,l = mean of F_k(x) over its rows of label l;   send F̄_k,l for each label that it has
    server    Σ_j F̄_j,l over the clients that sent l

A label that no other client has sent in the last round has no teacher, and its rows learn from CE(F_k(x), y) alone.

Deviations
- Mean outputs are those of the trained model, in evaluation mode; the paper averages what training has passed through.
- The server sends sums where the paper sends means, which take as many bytes: each F̄ sums to 1, so a client reads m_l
  off the sum. It keeps what it last sent, and takes that off if it was in the last round.
- The paper has all clients in every round. Here those of the last round teach those of this one.
- The paper's second half, federated augmentation (a generative model that fills up rare labels), is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

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
from ..tree import Tree, clone


class Server(TypedDict):
    outputs: Mapping[str, Tensor]
    """Label to Σ_j F̄_j,l (C,) of the last round."""


class Wire(TypedDict):
    outputs: Mapping[str, Tensor]
    """Down: label to Σ_j F̄_j,l (C,). Up: label to F̄_k,l (C,)."""


class Private(TypedDict):
    model: Tree
    """Weights of F_k."""
    sent: Mapping[str, Tensor]
    """The F̄_k,l that it last sent."""
    round: Tensor
    """The round in which it sent them, 0 for never: int64."""


@dataclass(frozen=True, kw_only=True)
class FD(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated distillation by labels."""

    paper: ClassVar[str] = "Jeong et al., Federated Distillation and Augmentation, 2018, arXiv:1811.11479"

    gamma: NonNegative = 1.0
    """γ: weight of what the others teach."""

    def init_server(self, key: Key) -> Server:
        return {"outputs": {}}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        model = models.initial(self.models[info.tier], key / "model" / label(info.tier))
        return {"model": model, "sent": {}, "round": torch.tensor(0)}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"outputs": server.get("outputs", {})}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        own = self.models[job.info.tier]
        in_last_round = int(job.state["round"]) == job.round - 1
        teachers = mean_of_others(job.down.get("outputs", {}), job.state.get("sent", {}) if in_last_round else {})
        given = {"teachers": rows_by_label(teachers, own.classes, job.data["x"].new_zeros(own.classes))}
        step = Step(functools.partial(taught_loss, own, self.task, self.gamma), {"model": self.optimiser()})
        visits = self.visits(job.data, job.key / "batches")
        tuned, mean = train([step], {"model": job.state["model"]}, given, visits, job.key / "noise")
        outputs = means_by_label(lambda x: models.logits(own, tuned["model"], x).softmax(1), job.data, own.classes)
        state: Private = {"model": tuned["model"], "sent": clone(outputs), "round": torch.tensor(job.round)}
        return Update({"outputs": outputs}, state, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"outputs": {name: sent.double().sum(0).float() for name, sent in gather(arrivals, "outputs").items()}}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"])


def mean_of_others(sums: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ĝ_k,l of the labels that others have sent: what is left of Σ_j F̄_j,l without F̄_k,l sums to m_l − 1."""
    others = {name: total - own.get(name, 0) for name, total in sums.items()}
    return {name: left / left.sum() for name, left in others.items() if left.sum() > 0.5}


def taught_loss(own: Spec, task: Task, gamma: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(F(x), y) + γ CE(F(x), Ĝ_y), where the row of a label without a teacher is 0, and so is its second term."""
    outputs = models.logits(own, params["model"], batch["x"], train=True)
    return task.loss(outputs, batch) + gamma * F.cross_entropy(outputs, given["teachers"][batch["y"]])
