"""HeteroFL: clients train the first channels of each layer of one model, as many as they can.

E. Diao, J. Ding, V. Tarokh, "HeteroFL: Computation and Communication Efficient Federated Learning for Heterogeneous
Clients", ICLR 2021, https://arxiv.org/abs/2010.01264

Client k has width r_k, the largest of 1, 1/2, 1/4, 1/8, 1/16 whose training its memory holds. W[r] are the first r C of
the C channels at both sides of each hidden layer of the global model W.

    server    sample S_t among those who can train some width, send W[r_k]
    client    E epochs:  W_k ← W_k − η ∇L(W_k);   send W_k and n_k
    server    each element w of W:  w ← Σ n_k w_k / Σ n_k over the k of S_t that hold it; w where none does

- Scaler: while it trains, a client divides by r_k what each layer but the last emits.
- Masked cross-entropy: the outputs of classes that a client has no rows of are 0 in its loss, and of the last layer
  only the rows of its other classes count in the mean.
- Static BN: batch statistics in training, and no running ones. When training has ended, clients send the statistics of
  W on their rows, and the server averages them.

Deviations
- A layer has round(r C) channels, at least 1, as the model's option `width` makes them (the paper: ⌈r C⌉).
- Means are weighted by samples (the authors: all clients alike), and the step size does not decay. The preset `paper`
  has the authors' settings for CIFAR-10 with equal distributions, that decay left out.
- Clients compute statistics in the last round, in which nothing is trained. Until then each predicts with the
  statistics of its own rows: the authors' simulation has everybody's at every evaluation.
- A client predicts with the widest W[r] that anybody has trained and whose evaluation it holds, which is W unless
  nobody could train it or the client is very small. Its statistics are W[r]'s; no output is masked there. The authors
  score W, which somebody always trains.
- With batch statistics the scaler cancels out but for BatchNorm's ε, in the authors' networks too; it acts where layers
  have no BatchNorm, and on running statistics (`bn = "tracked"`).
- Which labels it has a client tells the server, as in the authors' code. `masked = false` tells nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NotRequired, TypedDict

import torch
from torch import Tensor

from .. import models
from ..averaging import average_held
from ..memory import eligible
from ..memory.plan import Stage
from ..memory.widths import WidthTraining, statistics_of
from ..models import narrow
from ..models.narrow import LEVELS, Places, narrowed
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Ready, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    model: Tree
    """W, with static BN without statistics."""
    statistics: NotRequired[Tree]
    """Those of W[r], by r as it is written, after the last round."""
    rounds: Tensor
    """How many rounds are over (int64)."""
    widest: Tensor
    """The largest r that a client has trained so far: beyond it W has its first weights (float32)."""


class Wire(TypedDict, total=False):
    """Down: model; in the last round and for evaluation wide. Up: model and labels; in the last round statistics."""

    model: Tree
    """W[r_k] to the client, W_k from it."""
    labels: Tensor
    """The labels that the client has rows of, ascending (int64). W_k has the last layer's rows of these only."""
    wide: Tree
    """W[r] of the width that the client can evaluate."""
    statistics: Tree
    """From the client those of `wide` on its rows; to it their mean."""


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class HeteroFL(WidthTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging of the channels that each client's memory holds."""

    paper: ClassVar[str] = "Diao et al., HeteroFL: Computation and Communication Efficient FL, ICLR 2021, 2010.01264"
    needs: ClassVar[str] = "one architecture with an option `width`; a memory budget for each client"
    memory_aware: ClassVar[bool] = True
    equal_architectures: ClassVar[bool] = True
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {
            "rounds": 400,
            "fraction": 0.1,
            "local_epochs": 5,
            "batch_size": 10,
            "lr": 0.1,
            "weight_decay": 5e-4,
            "clip": 1.0,
        }
    }

    def width(self, info: ClientInfo) -> float | None:
        """r_k, None for a client whose memory holds no width."""
        return self.trains(self.shared, self.task, info)

    def plan(self) -> Sequence[Stage]:
        return self.stages(self.shared, self.task)

    def require(self, clients: Sequence[ClientInfo]) -> None:
        least = functools.partial(self.need, self.shared, self.task, LEVELS[-1])
        eligible.require_some("heterofl", clients, least, f"width 1/16 of {self.shared_model}")
        if any(self.width(info) != 1 for info in clients):
            narrow.require_nested("heterofl", self.shared, narrowed(self.shared, LEVELS[1]))

    def init_server(self, key: Key) -> Server:
        model = models.initial(self.shared, key / "model" / label(self.shared_model))
        return {"model": self.weights(self.shared, model), "rounds": torch.tensor(0), "widest": torch.tensor(0.0)}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def select(self, server: Server, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        drawn = super().select(server, clients, round, key)
        return eligible.instead(drawn, clients, lambda info: self.width(info) is not None, key)

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        evaluates = int(server["rounds"]) >= round or self.measures(self.shared, round, self.rounds)
        if not evaluates and (r := self.width(info)):
            return {"model": self.part(self.shared, server["model"], r)}
        r = self._predicted(server, info)
        wire: Wire = {"wide": self.part(self.shared, server["model"], r)}
        if str(r) in (known := server.get("statistics", {})):
            wire["statistics"] = known[str(r)]
        return wire

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        if "wide" in job.down:
            found = self.measured(self.shared, job.info, job.down["wide"], job.data, job.key)
            return Update({"statistics": statistics_of(self.shared, found)}, {}, job.info.n)
        tuned, labels, mean = self.visit(self.shared, self.task, job.down["model"], job.data, job.key)
        up: Any = self.sent(self.shared, tuned, labels)
        return Update(up, {}, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        rounds = torch.tensor(round)
        if self.measures(self.shared, round, self.rounds):
            found = self.averaged(arrivals, functools.partial(self._predicted, server))
            return {**server, "statistics": found, "rounds": rounds}
        model = average_held(arrivals, "model", server["model"], self._held)
        widest = max(float(server["widest"]), *(self.width(arrival.info) or 0.0 for arrival in arrivals))
        return {"model": model, "rounds": rounds, "widest": torch.tensor(widest)}

    def _predicted(self, server: Server, info: ClientInfo) -> float:
        """The width that a client predicts with."""
        return min(self.predicts(self.shared, info), float(server["widest"]) or 1.0)

    def _held(self, arrival: Arrival[Wire]) -> Mapping[str, Places]:
        return self.holds(self.shared, self.width(arrival.info) or LEVELS[-1], 0, arrival.up)

    def prepare(self, info: ClientInfo, down: Wire, state: Private, data: Batch, key: Key) -> Ready:
        return self.ready(self.shared, info, down, data, key)

    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        return self.outputs(ready, batch["x"])
