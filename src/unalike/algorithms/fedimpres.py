"""FedImpres: the server distils its model into synthetic images, on which clients train beside their own.

"Federated Impression for Learning with Distributed Heterogeneous Data", 2024, https://arxiv.org/abs/2409.07351

    server    sample S_t, send w_t and the impression (X, y) of w_t, if there is one
    client    from w_t, E epochs of batches b, each with some of (X, y):
                  w_k ← w_k − η ∇ (CE(b) + λ CE(X, y)) / (1 + λ);   send w_k and n_k
    server    w_t+1 ← Σ n_k w_k / Σ n_k;   after the warm-up X ← ADMM from noise, on w_t+1 = head(φ(·)), frozen:
                  minimise CE(X, y)  subject to  G(X) = 1/M (softmax(f(X)) − onehot(y))ᵀ φ(X) + γ W = 0
                  L = CE + ρ/2 ‖G‖² + ⟨Λ, G⟩;   X ← SGD on L, batch by batch;   Λ ← Λ + ρ G

G is the gradient of CE + γ/2 ‖W‖² for the head's weight W: what keeps it 0 keeps the head where it is.

Deviations
- Images start from noise by default, so that no data is needed; the authors start from public ones (`start`). They are
  kept within the range of valid pixels.
- Labels are balanced, unless `labels = "prior"`, which tells the server how many rows of each label clients have.
- Impressions are drawn, as many as a batch has rows; `concat` puts all of them beside each batch of `batch_size` rows
  in one mean, as the authors' code does (and proportionally fewer beside a smaller last one).
- Models are averaged by samples; `averaging = "uniform"` is the authors'. BatchNorm statistics go with them.
- Where clients have different architectures, all train `shared_model`, the smallest of theirs unless told otherwise.
- The step size of the images is searched for where none is given.
- Impressions travel as bytes. A client leaves out those that come too near to its own images and says so with one bit;
  the server's next ones are then made smoother (a total variation in L). Neither is in the paper.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NotRequired, TypedDict

from torch import Tensor

from .. import models
from ..averaging import average
from ..impressions import exchange
from ..impressions.settings import Impressions
from ..local import LocalTraining, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Ready, Update
from ..rng import Key
from ..tree import Tree


class Server(TypedDict):
    model: Tree
    """w_t."""
    impressions: NotRequired[Tree]
    """X, y."""
    synthesis: NotRequired[Tree]
    """How they were made: step size, seed, figures."""


class Wire(TypedDict):
    model: Tree
    """w_t to the client, w_k from it."""
    impressions: NotRequired[Tree]
    """X and y to the client, or what it can make them from."""
    refused: NotRequired[Tensor]
    """From the client: whether it has refused X."""
    counts: NotRequired[Tensor]
    """From the client, if labels are by prior: its rows of each label."""


class Private(TypedDict):
    """A client keeps nothing."""


@dataclass(frozen=True, kw_only=True)
class FedImpres(LocalTraining, Impressions, Algorithm[Server, Private, Wire]):
    """Federated averaging with synthetic images of the global model against forgetting."""

    paper: ClassVar[str] = "Federated Impression for Learning with Distributed Heterogeneous Data, arXiv:2409.07351"
    needs: ClassVar[str] = "images, and one architecture that every client can train"
    global_model: ClassVar[str] = "model"

    averaging: Literal["samples", "uniform"] = "samples"
    """Whether clients count by their samples or all the same."""

    def require(self, clients: Sequence[ClientInfo]) -> None:
        exchange.require(self, self.shared, "fedimpres")

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"], **exchange.sent(self, server)}  # type: ignore[typeddict-item]

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        rows, said = exchange.received(self, self.shared, job, "model")
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits = self.visits(rows, job.key / "batches")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        up: Wire = {"model": tuned["model"], **said}  # type: ignore[typeddict-item]
        return Update(up, {}, job.info.n if self.averaging == "samples" else 1.0, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        w, is_due = average(arrivals, "model"), round >= self.first(self.rounds)
        made = exchange.renewed(self, self.shared, w, server, arrivals, key / "impressions", is_due)
        return {"model": w, **made}  # type: ignore[typeddict-item]

    def report(self, server: Server, round: int) -> Mapping[str, float]:
        return exchange.report(server)

    def keepsakes(self, server: Server, round: int) -> Mapping[str, Tensor]:
        return exchange.keepsakes(server)

    def prepare(self, info: ClientInfo, down: Wire, state: Private, data: Batch, key: Key) -> Ready:
        return {"info": info, "down": {"model": down["model"]}, "state": state}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])
