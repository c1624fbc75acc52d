"""DepthFL: clients train the first blocks of one model, as many as they can, with a classifier after each.

M. Kim, S. Yu, S. Kim, S.-M. Moon, "DepthFL: Depthwise Federated Learning for Heterogeneous Clients", ICLR 2023,
https://openreview.net/forum?id=pf8RIZTMU58

Client k has depth d_k, the largest whose training its memory holds: the first d_k of T blocks and a classifier after
each, which emit logits z_1, ..., z_d with p_i = softmax(z_i). In round t = 1, 2, ... of a ramp of R rounds:

    server    sample S_t among those who can train some depth, send w[d_k]
    client    E epochs:  L = Σ_i CE(p_i, y) + λ_t Σ_i 1/(d − 1) Σ_{j≠i} KL(p_j ‖ p_i),   p_j a constant,
              λ_t = exp(−5 (1 − min(t − 1, R) / R)²);   w_k ← w_k − η ∇L;   send w_k and n_k
    server    each tensor w of the model:  w ← Σ n_k w_k / Σ n_k over the k of S_t that hold it; w where none does

The model predicts with the mean of its classifiers' logits.

Deviations
- A classifier is the mean over places and one linear layer (the authors' have attention and separable convolutions,
  which take memory in the very blocks that poor clients train). The last one is the model's own header.
- Blocks are those that the architecture brings along, else its units (the authors cut ResNet's four stages, as here).
- Means are weighted by samples (the authors: all clients alike) and are FedAvg's; the authors add FedDyn's terms.
- R is a share of the run: 0.3, as the authors' 300 of 1000 rounds. The step size does not decay.
- A client predicts with the deepest part that anybody has trained and whose evaluation it holds, which is the whole
  unless nobody could train it or the client is very small. The authors score the whole, which somebody always trains.
- Running statistics of BatchNorm are averaged as the weights.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypedDict

import torch
from torch import Tensor

from ..averaging import average_held
from ..distillation import mutual_divergence
from ..local import SGD, LocalTraining, Step, train
from ..memory import eligible, needs
from ..memory.plan import Stage
from ..memory.predict import predict
from ..memory.work import evaluation, rows, sgd, shapes_of
from ..models import chain, exits, on_real_tensors
from ..models.narrow import Places
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, NonNegative, Ready, Share, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, nbytes


class Server(TypedDict):
    model: Tree
    """w: {"extractor", "classifiers": {"1", ...}, "header"}."""
    rounds: Tensor
    """How many rounds are over (int64)."""
    deepest: Tensor
    """The largest depth that a client has trained so far (int64)."""


class Wire(TypedDict):
    model: Tree
    """w[d_k] to the client, w_k from it; for evaluation w[d] of the depth that it can evaluate."""


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class DepthFL(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of the blocks that each client's memory holds, whose classifiers teach one another."""

    paper: ClassVar[str] = "Kim et al., DepthFL: Depthwise Federated Learning for Heterogeneous Clients, ICLR 2023"
    needs: ClassVar[str] = "one architecture that is a chain of blocks; a memory budget for each client"
    memory_aware: ClassVar[bool] = True
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "rounds": 1000,
            "fraction": 0.1,
            "local_epochs": 5,
            "batch_size": 50,
            "lr": 0.1,
            "momentum": 0.0,
            "weight_decay": 1e-3,
        }
    }

    distillation: NonNegative = 1.0
    """λ after the ramp; 0: the classifiers learn from labels only."""
    ramp: Share = 0.3
    """R / rounds: share of the run in which λ_t rises; 0: it is `distillation` from the start."""
    prediction: Literal["ensemble", "deepest"] = "ensemble"
    """Whether the mean of all classifiers predicts, or the deepest alone."""

    @property
    def depths(self) -> range:
        """T, ..., 1."""
        return range(exits.depth(self.shared), 0, -1)

    def need(self, d: int) -> int:
        """Bytes for training and evaluating the first `d` blocks."""
        return _training(self.shared, d, self.task, self.optimiser(), self.batch_size)[0]

    def depth(self, info: ClientInfo) -> int | None:
        """d_k, None for a client whose memory does not hold the first block."""
        return eligible.best(info, self.depths, self.need)

    def predicts(self, info: ClientInfo) -> int:
        """The largest depth that the client's budget holds in evaluation; 1 where it holds none."""
        return eligible.best(info, self.depths, lambda d: _evaluation(self.shared, d, eligible.FEW)) or 1

    def weight(self, round: int) -> float:
        """λ_t."""
        R = self.ramp * self.rounds
        return self.distillation * (math.exp(-5 * (1 - min(round - 1, R) / R) ** 2) if R else 1.0)

    def plan(self) -> Sequence[Stage]:
        found, bounds = [], exits.cuts(self.shared)
        for d in self.depths:
            need, flops = _training(self.shared, d, self.task, self.optimiser(), self.batch_size)
            size = nbytes(exits.part(self.shared, exits.initial(self.shared, _KEY), d))
            units = chain.units(self.shared)[: bounds[d]]
            found.append(Stage(name=f"depth {d}", need=need, down=size, up=size, flops=flops, units=units))
        return found

    def require(self, clients: Sequence[ClientInfo]) -> None:
        least = functools.partial(self.need, self.depths[-1])
        eligible.require_some("depthfl", clients, least, f"the first block of {self.shared_model}")

    def init_server(self, key: Key) -> Server:
        model = exits.initial(self.shared, key / "model" / label(self.shared_model))
        return {"model": model, "rounds": torch.tensor(0), "deepest": torch.tensor(0)}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        drawn = super().select(server, clients, round, key)
        return eligible.instead(drawn, clients, lambda info: self.depth(info) is not None, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        evaluated = int(server["rounds"]) >= round
        d = (None if evaluated else self.depth(info)) or min(self.predicts(info), int(server["deepest"]) or 1)
        return {"model": exits.part(self.shared, server["model"], d)}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        d = exits.depth_of(job.down["model"])
        step = Step(functools.partial(mutual_loss, self.shared, self.task, d), {"model": self.optimiser()})
        given, visits = {"weight": torch.tensor(self.weight(job.round))}, self.visits(job.data, job.key / "batches")
        tuned, mean = train([step], {"model": job.down["model"]}, given, visits, job.key / "noise")
        return Update({"model": tuned["model"]}, {}, job.info.n, {"loss": mean})

    def _held(self, arrival: Arrival[Wire]) -> Mapping[str, Places]:
        return dict.fromkeys(exits.names(self.shared, self.depth(arrival.info) or 1), ())

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        model = average_held(arrivals, "model", server["model"], self._held)
        deepest = max(int(server["deepest"]), *(self.depth(arrival.info) or 0 for arrival in arrivals))
        return {"model": model, "rounds": torch.tensor(round), "deepest": torch.tensor(deepest)}

    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        model = ready["down"]["model"]
        need = functools.partial(_evaluation, self.shared, exits.depth_of(model))
        logits = functools.partial(ensemble, self.shared, model, self.prediction)
        return eligible.in_parts(logits, batch["x"], eligible.rows_at_once(ready["info"], need))


def mutual_loss(spec: Spec, task: Task, d: int, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """L, with λ_t in given["weight"]."""
    z = exits.forward(spec, params["model"], d, batch["x"], train=True)
    loss = torch.stack([task.loss(logits, batch) for logits in z]).sum()
    return loss + given["weight"] * mutual_divergence(z) if d > 1 else loss


def ensemble(spec: Spec, model: Tree, prediction: str, x: Tensor) -> Tensor:
    """The mean of the classifiers' logits (B, classes), or those of the deepest."""
    z = exits.forward(spec, model, exits.depth_of(model), x)
    return z[-1] if prediction == "deepest" else torch.stack(z).mean(0)


_KEY = Key.root(0)


@functools.cache
@on_real_tensors
def _training(spec: Spec, d: int, task: Task, optimiser: SGD, n: int) -> tuple[int, float]:
    """Need in bytes, and operations a row."""
    params, batch = {"model": shapes_of(exits.part(spec, exits.initial(spec, _KEY), d))}, rows(spec.input, n)
    given = {"weight": torch.empty((), device="meta")}
    trained = predict(sgd(functools.partial(mutual_loss, spec, task, d), params, optimiser, batch, given))
    return max(needs.with_headroom(trained.bytes), _evaluation(spec, d, n)), trained.flops / n


@functools.cache
@on_real_tensors
def _evaluation(spec: Spec, d: int, n: int) -> int:
    weights = shapes_of(exits.part(spec, exits.initial(spec, _KEY), d))
    return needs.of(evaluation(functools.partial(_predicted, spec), weights, rows(spec.input, n)))


def _predicted(spec: Spec, weights: Tree, batch: Batch) -> Tensor:
    return ensemble(spec, weights, "ensemble", batch["x"])
