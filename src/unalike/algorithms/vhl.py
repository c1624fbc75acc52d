"""VHL: FedAvg whose clients also learn the same images of noise, and lay features of a class beside those of its noise.

Z. Tang, Y. Zhang, S. Shi, X. He, B. Han, X. Chu, "Virtual Homogeneity Learning: Defending against Data Heterogeneity in
Federated Learning", ICML 2022, https://arxiv.org/abs/2206.02465; the authors' code is wizard1203/VHL.

Ṽ is a set of virtual samples (x̃, ỹ) made of noise from a seed that all clients have: nobody's data, the same
everywhere, and separable by class. r = F_ex(x) are features, scaled to ‖r‖ = 1, and sg( ) passes no gradient.

    server    sample S_t, send w
    client    E epochs of batches B of its rows, each with as many rows B̃ of Ṽ, both in one forward pass:
              w_k ← w_k − η ∇(CE(B) + α CE(B̃) + λ SupCon(r(B), sg(r(B̃))));   send w_k and n_k
    server    w ← Σ n_k w_k / Σ n_k

    SupCon    the mean over all rows i of both of  −1/|P_i| Σ_p∈P_i log(exp(r_i·r_p / τ) / Σ_j≠i exp(r_i·r_j / τ)),
              P_i the other rows of i's class; τ = 0.07 as in the authors' code

Deviations
- The paper's noise is that of an untrained StyleGAN, a latent distribution for each class. Ours is smooth normal noise:
  a pattern of each class and a smaller one of each sample, see `virtual`; for a table a point and its neighbours.
- ỹ are the real classes, so that the common model is one of C outputs; the authors' code gives virtual classes outputs
  of their own (C more), and only the alignment pairs them with the real ones.
- The authors' code also has SupCon among the virtual rows, at weight 0.1, and aligns in the first 5 epochs of a visit.
- The mean is weighted by samples. Momentum and weight decay are offered. BatchNorm statistics are averaged with the
  weights, and those of a visit mix in the virtual rows, as the authors' do.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import models
from ..averaging import average
from ..local import LocalTraining, batches, sgd
from ..plugins import label
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Count, Job, NonNegative, Spec, Update
from ..rng import Key
from ..tasks import Task
from ..tree import Tree

TEMPERATURE = 0.07
"""τ."""
CLASS_POINTS, SAMPLE_POINTS = 4, 8
"""Points a side between which the pattern of a class, and that of a sample, is interpolated."""
SPREAD = 0.5
"""Size of a sample's noise beside its class's."""


class Server(TypedDict):
    model: Tree
    """w."""


class Wire(TypedDict):
    model: Tree
    """w to the client, w_k from it. Of Ṽ nothing travels: its key is below the one that every client begins with."""


class Private(TypedDict):
    virtual: Tensor
    """The key of Ṽ: uint8 (32,), the same at all clients."""


@dataclass(frozen=True, kw_only=True)
class VHL(LocalTraining, Algorithm[Server, Private, Wire]):
    """Federated averaging with shared noise images of every class."""

    paper: ClassVar[str] = "Tang et al., Virtual Homogeneity Learning, ICML 2022, arXiv:2206.02465"
    needs: ClassVar[str] = "one architecture that every client can train"
    equal_architectures: ClassVar[bool] = True
    global_model: ClassVar[str] = "model"

    alpha: NonNegative = 1.0
    """α: weight of the loss of the virtual rows."""
    lam: NonNegative = 1.0
    """λ: weight of the alignment of features; with both 0 it is FedAvg."""
    virtual_rows: Count = 100
    """Virtual samples of each class."""

    def init_server(self, key: Key) -> Server:
        return {"model": models.initial(self.shared, key / "model" / label(self.shared_model))}

    def init_client(self, info: ClientInfo, key: Key) -> Private:
        return {"virtual": torch.tensor(list((key / "virtual").digest), dtype=torch.uint8)}

    def broadcast(self, server: Server, info: ClientInfo, round: int) -> Wire:
        return {"model": server["model"]}

    def client_update(self, job: Job[Private, Wire]) -> Update[Private, Wire]:
        loss = functools.partial(models.supervised_loss, self.shared, self.task)
        visits: Iterable[Batch] = self.visits(job.data, job.key / "batches")
        if self.alpha or self.lam:
            loss = functools.partial(virtual_loss, self.shared, self.task, self.alpha, self.lam)
            known = virtual(Key(bytes(job.state["virtual"].tolist())), self.shared, self.virtual_rows)
            visits = beside(visits, known, self.batch_size, job.key / "virtual")
        tuned, mean = sgd(loss, {"model": job.down["model"]}, self.optimiser(), visits, job.key / "noise")
        return Update({"model": tuned["model"]}, job.state, job.info.n, {"loss": mean})

    def aggregate(self, server: Server, arrivals: Sequence[Arrival[Wire]], round: int, key: Key) -> Server:
        return {"model": average(arrivals, "model")}

    def predict(self, ready: Any, batch: Batch) -> Tensor:
        return models.logits(self.shared, ready["down"]["model"], batch["x"])


@functools.lru_cache(maxsize=4)
@models.on_real_tensors
def virtual(key: Key, spec: Spec, rows: int) -> Batch:
    """Ṽ: x̃ = tanh(a_ỹ + b / 2), where a is drawn for each class and b for each sample, `rows` of them a class.

    Both are `smooth_noise`, of 4 points a side for a and 8 for b; for a row of a table, which has no sides, they are
    normal noise. x̃ lies in [−1, 1], as images do. Asked again it returns the same tensors: not to be written into.
    """
    y = torch.arange(spec.classes).repeat_interleave(rows)
    a = smooth_noise(key / "classes", spec.classes, spec.input, CLASS_POINTS)
    b = smooth_noise(key / "samples", len(y), spec.input, SAMPLE_POINTS)
    return {"x": torch.tanh(a[y] + SPREAD * b), "y": y}


def smooth_noise(key: Key, n: int, shape: tuple[int, ...], points: int) -> Tensor:
    """(n, *shape): normal noise on at most `points` points along each axis but the first, linear in between."""
    grid = [min(size, points) for size in shape[1:]]
    noise = torch.randn(n, shape[0], *grid, generator=key.torch())
    if not grid:
        return noise
    mode = ("linear", "bilinear", "trilinear")[len(grid) - 1]
    return F.interpolate(noise, size=shape[1:], mode=mode, align_corners=True)


def beside(visits: Iterable[Batch], virtual: Batch, size: int, key: Key) -> Iterator[Batch]:
    """Each batch of up to `size` rows with as many virtual ones in "virtual_x" and "virtual_y".

    They come in passes over all of them, each shuffled anew.
    """
    passes = (batches(virtual, size, 1, key / epoch, drop_last=True) for epoch in itertools.count())
    for batch, drawn in zip(visits, itertools.chain.from_iterable(passes), strict=False):
        x = batch["x"]
        yield {**batch, **{f"virtual_{name}": rows[: len(x)].to(x.device) for name, rows in drawn.items()}}


def virtual_loss(spec: Spec, task: Task, alpha: float, lam: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """CE(B) + α CE(B̃) + λ SupCon(r(B), sg(r(B̃)))."""
    n, y = len(batch["x"]), batch["virtual_y"]
    x = torch.cat([batch["x"], batch["virtual_x"]])
    r = models.features(spec, params["model"]["extractor"], x, train=True)
    z = models.head(spec, params["model"]["header"], r, train=True)
    loss = task.loss(z[:n], batch) + alpha * task.loss(z[n:], {"y": y})
    if not lam:
        return loss
    return loss + lam * contrast(torch.cat([r[:n], r[n:].detach()]), torch.cat([batch["y"], y]))


def contrast(r: Tensor, y: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """SupCon of features r (B, d), B at least 2, with labels y (B,); a row without another of its class counts as 0."""
    r = F.normalize(r, dim=1)
    itself = torch.eye(len(y), dtype=torch.bool, device=y.device)
    alike = (y[:, None] == y) & ~itself
    log_p = (r @ r.T / temperature).masked_fill(itself, -math.inf).log_softmax(1)
    return -(log_p.masked_fill(~alike, 0.0).sum(1) / alike.sum(1).clamp(min=1)).mean()
