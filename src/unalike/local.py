"""What happens at one client: training and evaluation. The only gradients of ordinary training are taken here."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from . import tree
from .optimisers import SGD as SGD
from .optimisers import Memory as Memory
from .optimisers import Optimiser
from .protocol import Batch, Count, NonNegative, Positive, Share
from .rng import Key, round_half_up
from .tasks import Task
from .tree import Flat, Tree

Loss: TypeAlias = Callable[[Tree, Tree, Batch], Tensor]
"""loss(params, given, batch): a pure function. What trains is in `params`, what is constant in `given`."""
Telling: TypeAlias = Callable[[Tree, Tree, Batch], tuple[Tensor, Batch]]
"""A loss that also tells columns, which the next steps find in the same batch, as constants."""


@dataclass(frozen=True, kw_only=True)
class LocalTraining:
    """The hyper-parameters of a client's visit, for methods to have beside their own."""

    local_epochs: Count = 2
    """E: passes over the client's training rows in a visit."""
    batch_size: Count = 32
    """Rows of a batch."""
    drop_last: bool = False
    """Whether a smaller last batch is left out; a client with fewer rows than one batch still trains on them."""
    lr: Positive = 0.03
    """η: step size of the client's model."""
    momentum: Share = 0.9
    """Momentum of SGD."""
    weight_decay: NonNegative = 1e-3
    """Weight decay of SGD."""
    clip: Positive = 50.0
    """Largest gradient norm."""
    class_balance: Share = 0.0
    """β of the class-balanced loss, by a client's own labels: 0 counts rows alike, 1 labels alike. Only the task's loss
    is weighed, no distillation and no penalty."""

    def optimiser(self, lr: float | None = None) -> SGD:
        """SGD as these say, with another step size where one is given."""
        return SGD(lr or self.lr, self.momentum, self.weight_decay, self.clip)

    def visits(self, data: Batch, key: Key, epochs: int | None = None) -> Iterator[Batch]:
        """E epochs of batches, or another number of them where one is given."""
        return batches(self.weighed(data), self.batch_size, epochs or self.local_epochs, key, self.drop_last)

    def weighed(self, data: Batch) -> Batch:
        """The rows, with their weights in the loss where there is a `class_balance`."""
        if not self.class_balance:
            return data
        if isinstance(data, Mixture):
            return replace(data, rows=self.weighed(data.rows))
        return {**data, "weight": data.get("weight", 1.0) * balanced_weights(data["y"], self.class_balance)}


@dataclass(frozen=True, slots=True)
class Step:
    """One alternation within a batch: a loss, what it trains and how, and where the result is projected."""

    loss: Loss | Telling
    trains: Mapping[str, Optimiser]
    """Branch of `params` ("model", "theta/extractor") to its optimiser; buffers below it are not trained. Steps that
    train one branch, in turns, share what its optimiser keeps."""
    project: Callable[[Tree], None] | None = None
    """Called after each update to bring `params` back to its allowed set, in place."""


class _Taker:
    """One step at work: the leaves it trains, by optimiser, and their momenta."""

    def __init__(self, step: Step, flat: Flat, memories: dict[str, Memory]) -> None:
        self.step, self.started = step, False
        self.weights: list[Tensor] = []
        self.groups: list[tuple[Optimiser, slice, Memory]] = []
        for branch, optimiser in step.trains.items():
            start = len(self.weights)
            self.weights += _weights(flat, branch)
            self.groups.append((optimiser, slice(start, len(self.weights)), memories.setdefault(branch, {})))
        self.values = [weight.detach() for weight in self.weights]  # the same storages, outside of autograd

    def require_grad(self, wanted: bool) -> None:
        for weight in self.weights:
            weight.requires_grad_(wanted)

    def _start(self, gradients: list[Tensor]) -> list[Tensor]:
        """At the first batch of a visit leave out what the loss does not reach, as torch.optim does."""
        reached = [gradient is not None for gradient in gradients]
        self.groups = [
            (optimiser, slice(sum(reached[: group.start]), sum(reached[: group.stop])), memory)
            for optimiser, group, memory in self.groups
        ]
        for name in ("weights", "values"):
            setattr(self, name, [w for w, is_reached in zip(getattr(self, name), reached, strict=True) if is_reached])
        self.started = True
        return [gradient for gradient in gradients if gradient is not None]

    def __call__(self, params: Tree, given: Tree, batch: Batch) -> tuple[Tensor, Batch]:
        """Take the step in place; the loss before it, and what it told."""
        found = self.step.loss(params, given, batch)
        loss, told = found if isinstance(found, tuple) else (found, {})
        told = {name: column.detach().clone() for name, column in told.items()}  # it may be of what the step changes
        gradients = list(torch.autograd.grad(loss, self.weights, allow_unused=not self.started))
        if not self.started:
            gradients = self._start(gradients)
        for optimiser, group, memory in self.groups:
            optimiser.update(self.values[group], gradients[group], memory)
        if self.step.project:
            with torch.no_grad():
                self.step.project(params)
        return loss.detach(), told


def _weights(flat: Flat, branch: str) -> list[Tensor]:
    below = {name: leaf for name, leaf in flat.items() if f"{name}/".startswith(f"{branch}/")}
    weights = [leaf for name, leaf in below.items() if is_trainable(name, leaf)]
    if not weights:
        raise ValueError(f"a step trains {branch!r}, of which params has no trainable leaf: {', '.join(flat)}")
    return weights


def is_trainable(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is a weight: floating, and not marked by "~" as a buffer."""
    return leaf.is_floating_point() and not name.rpartition("/")[2].startswith("~")


def trainable(params: Tree) -> Flat:
    """The weights below `params` by name, without the buffers."""
    return {name: leaf for name, leaf in tree.flatten(params).items() if is_trainable(name, leaf)}


def squared_distance(a: Tree, b: Tree) -> Tensor:
    """‖a − b‖² over the weights of two trees of one architecture."""
    others = trainable(b)
    return torch.stack([(leaf - others[name]).square().sum() for name, leaf in trainable(a).items()]).sum()


def balanced_weights(y: Tensor, beta: float) -> Tensor:
    """1 / E_n of each row's label, E_n = (1 − βⁿ) / (1 − β) with n rows of that label (n at β = 1); in the mean 1.

    Args:
        y: labels (N,).
        beta: β in (0, 1].

    Y. Cui, M. Jia, T.-Y. Lin, Y. Song, S. Belongie, "Class-Balanced Loss Based on Effective Number of Samples",
    CVPR 2019, https://arxiv.org/abs/1901.05555. There the classes' weights add up to their number and multiply the
    rows' losses; here a batch's loss is the weighted mean, so that rows of one batch are weighed against one another.
    """
    n = torch.bincount(y.cpu()).double()[y.cpu()]
    effective = n if beta == 1 else -torch.expm1(n * math.log(beta)) / (1 - beta)
    return (1 / effective * (len(y) / (1 / effective).sum())).float().to(y.device)


def squared_gradients(loss: Loss, params: Tree, data: Batch) -> dict[str, Any]:
    """The mean over the rows, by "weight" where there is one, of the squared gradient of each row's own loss.

    Returns:
        A tree with a leaf for each weight of `params`, none for buffers. With the loss −log p(y | x) it is the diagonal
        of the empirical Fisher information. One backward pass a row: a gradient of several rows cannot be squared.
    """
    flat = {name: leaf.detach() for name, leaf in tree.flatten(params).items()}
    weights = {name: leaf.requires_grad_() for name, leaf in flat.items() if is_trainable(name, leaf)}
    working, sums = tree.unflatten(flat), [torch.zeros_like(leaf) for leaf in weights.values()]
    n = len(next(iter(data.values())))
    shares = (data["weight"] / data["weight"].sum()).tolist() if "weight" in data else [1 / n] * n
    columns = {name: rows for name, rows in data.items() if name != "weight"}
    for row, share in enumerate(shares):
        value = loss(working, {}, {name: rows[row : row + 1] for name, rows in columns.items()})
        gradients = torch.autograd.grad(value, list(weights.values()), allow_unused=True, materialize_grads=True)
        torch._foreach_addcmul_(sums, list(gradients), list(gradients), value=share)
    return tree.unflatten(dict(zip(weights, sums, strict=True)))


def batches(data: Batch, size: int, epochs: int, key: Key, drop_last: bool = False) -> Iterator[Batch]:
    """Shuffled batches, a fresh permutation each epoch, the smaller last one included unless it is dropped.

    `drop_last` means what it means to PyTorch's DataLoader, but for fewer rows than `size`: they are one small batch,
    where PyTorch would train on nothing. A lone last row is left out in any case when there are others, because batch
    normalisation cannot train on one row.
    """
    if isinstance(data, Mixture):
        yield from data.mixed(batches(data.rows, size, epochs, key, drop_last), size, key / "beside")
        return
    first = next(iter(data.values()))
    n = len(first)
    last = n % size
    kept = n - last if n > size and (drop_last or last == 1) else n
    for epoch in range(epochs):
        order = torch.randperm(n, generator=(key / epoch).torch())[:kept]
        for picked in torch.split(order.to(first.device), size):
            yield {name: rows.index_select(0, picked) for name, rows in data.items()}


@dataclass(frozen=True, eq=False)
class Mixture(Mapping[str, Tensor]):
    """A client's rows with others beside them: a batch of its rows, cut by `batches`, has some of the others after it.

    To whoever does not cut it into batches it is the client's rows, and nothing else.
    """

    rows: Batch
    beside: Batch
    """The others, with the same columns."""
    ratio: float | None
    """Rows beside one row of the client's, at least one beside each batch; None: all of them beside a whole batch."""
    lam: float | None
    """λ: what the rows beside count, all together, where the client's own count 1; None: each row the same."""
    frozen: bool = False
    """Whether rows beside pass in evaluation mode and move no statistic (column "frozen")."""

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def mixed(self, batches: Iterable[Batch], size: int, key: Key) -> Iterator[Batch]:
        """The batches, of `size` rows when whole, with rows beside: permutations of all, one after the other."""
        order, cycles, m = torch.zeros(0, dtype=torch.long), itertools.count(), len(self.beside["x"])
        ratio = m / size if self.ratio is None else self.ratio
        for batch in batches:
            n = max(1, round_half_up(ratio * len(batch["x"])))
            while len(order) < n:
                permutation = torch.randperm(m, generator=(key / next(cycles)).torch())
                order = torch.cat([order, permutation])
            yield self._joined(batch, order[:n])
            order = order[n:]

    def _joined(self, batch: Batch, picked: Tensor) -> Batch:
        """(Σ w L(own) / Σ w + λ mean L(beside)) / (1 + λ) as one weighted mean."""
        x, n = batch["x"], len(picked)
        weight = batch.get("weight", x.new_ones(len(x)))
        each = weight.sum() / len(x) if self.lam is None else self.lam * weight.sum() / n
        joined = {name: torch.cat([batch[name], self.beside[name][picked.to(x.device)]]) for name in ("x", "y")}
        joined["weight"] = torch.cat([weight, each.expand(n)])
        if self.frozen:
            joined["frozen"] = torch.cat([x.new_zeros(len(x)), x.new_ones(n)]).bool()
        return joined


def train(
    steps: Sequence[Step], params: Tree, given: Tree, batches: Iterable[Batch], key: Key
) -> tuple[dict[str, Any], float]:
    """Train copies of `params` and return them with the first step's mean loss.

    In every batch each step in turn takes the gradient of its own loss and updates what it trains, so the next step
    sees the result. Optimisers start fresh and live for this call. `params` and `given` are not changed; buffers that
    a forward pass writes (BatchNorm statistics) are written into the copies. `key` seeds dropout.
    """
    flat = {name: leaf.detach().clone() for name, leaf in tree.flatten(params).items()}
    working = tree.unflatten(flat)
    memories: dict[str, Memory] = {}
    takers = [_Taker(step, flat, memories) for step in steps]
    losses, rows = [], []
    if len(takers) == 1:
        takers[0].require_grad(True)
    with key.scope():
        for batch in batches:
            rows.append(len(next(iter(batch.values()))))
            losses.append(_alternate(takers, working, given, batch))
    if not rows:
        raise ValueError("nothing to train on: there was no batch")
    mean = torch.stack(losses).cpu().double() @ torch.tensor(rows, dtype=torch.float64) / sum(rows)
    return tree.map_leaves(Tensor.detach, working), float(mean)


def _alternate(takers: list[_Taker], params: Tree, given: Tree, batch: Batch) -> Tensor:
    """All steps of one batch; only what the step at hand trains requires gradients. The first one's loss."""
    if len(takers) == 1:
        return takers[0](params, given, batch)[0]
    losses = []
    for taker in takers:
        taker.require_grad(True)
        loss, told = taker(params, given, batch)
        taker.require_grad(False)
        losses.append(loss)
        batch = {**batch, **told} if told else batch
    return losses[0]


def sgd(
    loss: Loss, params: Tree, optimiser: Optimiser, batches: Iterable[Batch], key: Key
) -> tuple[dict[str, Any], float]:
    """`train` in its simplest case: one loss, one optimiser a branch, nothing constant."""
    return train([Step(loss, dict.fromkeys(params, optimiser))], params, {}, batches, key)


@torch.no_grad()
def tally(task: Task, predict: Callable[[Batch], Tensor], data: Batch, size: int = 512) -> dict[str, Tensor]:
    """The task's tallies of what `predict` says of all rows of `data`, `size` of them at once."""
    tallies: dict[str, Tensor] = {}
    for start in range(0, len(next(iter(data.values()))), size):
        batch = {name: rows[start : start + size] for name, rows in data.items()}
        for name, part in task.tally(predict(batch), batch).items():
            tallies[name] = tallies[name] + part if name in tallies else part
    return tallies


@torch.no_grad()
def means_by_label(
    function: Callable[[Tensor], Tensor], data: Batch, classes: int, size: int = 512
) -> dict[str, Tensor]:
    """The exact mean of `function(x)` (B, d) over all rows of each label: label to (d,), for the labels that occur."""
    y = data["y"].cpu()
    marks, rows = F.one_hot(y, classes).double(), torch.bincount(y, minlength=classes)
    parts = zip(torch.split(marks, size), torch.split(data["x"], size), strict=True)
    sums = functools.reduce(torch.add, (mark.T @ function(x).cpu().double() for mark, x in parts))
    return {str(c): (sums[c] / rows[c]).float() for c in rows.nonzero().flatten().tolist()}


def rows_by_label(named: Mapping[str, Tensor], classes: int, missing: Tensor) -> Tensor:
    """(classes, ...): what is named by each label, and `missing` where nothing is."""
    return torch.stack([named.get(str(c), missing) for c in range(classes)])
