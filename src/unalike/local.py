"""What happens at one client: training and evaluation. The only gradients of ordinary training are taken here."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from . import tree
from .protocol import Algorithm, Batch, Ready
from .rng import Key
from .tree import Flat, Tree

Loss: TypeAlias = Callable[[Tree, Tree, Batch], Tensor]
"""loss(params, given, batch): a pure function. What trains is in `params`, what is constant in `given`."""


@dataclass(frozen=True, slots=True)
class SGD:
    """Stochastic gradient descent, arithmetic and order of `torch.optim.SGD`.

    g ← ∇ + weight_decay · w;  b ← momentum · b + g;  w ← w − lr · b  (the first b is g).
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip: float = math.inf
    """Largest 2-norm of the gradient of this group; a larger one is scaled down to it."""

    def update(self, weights: list[Tensor], gradients: list[Tensor], memory: list[Tensor]) -> list[Tensor]:
        """Change `weights` in place; return the momentum buffers for the next step."""
        if self.clip < math.inf:
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
            gradients = list(torch._foreach_mul(gradients, torch.clamp(self.clip / (norm + 1e-6), max=1.0)))
        if self.weight_decay:
            gradients = list(torch._foreach_add(gradients, weights, alpha=self.weight_decay))
        if self.momentum:
            if memory:
                torch._foreach_mul_(memory, self.momentum)
                torch._foreach_add_(memory, gradients)
            else:
                memory = [gradient.clone() for gradient in gradients]  # two gradients may be one tensor
            gradients = memory
        torch._foreach_add_(weights, gradients, alpha=-self.lr)
        return memory


@dataclass(frozen=True, slots=True)
class Step:
    """One alternation within a batch: a loss, what it trains and how, and where the result is projected."""

    loss: Loss
    trains: Mapping[str, SGD]
    """Branch of `params` ("model", "theta/extractor") to its optimiser; buffers below it are not trained."""
    project: Callable[[Tree], None] | None = None
    """Called after each update to bring `params` back to its allowed set, in place."""


@dataclass(slots=True)
class _Group:
    """The leaves one optimiser trains, and its momentum."""

    optimiser: SGD
    weights: list[Tensor]
    memory: list[Tensor] = field(default_factory=list)


def batches(data: Batch, size: int, epochs: int, key: Key) -> Iterator[Batch]:
    """Shuffled batches, a fresh permutation each epoch, the smaller last one included.

    A lone last row is left out when there are others, because batch normalisation cannot train on one row.
    """
    n = len(next(iter(data.values())))
    for epoch in range(epochs):
        order = torch.randperm(n, generator=(key / epoch).torch())
        shuffled = {name: rows[order.to(rows.device)] for name, rows in data.items()}
        end = n - 1 if n > 1 and n % size == 1 else n
        for start in range(0, end, size):
            yield {name: rows[start : min(start + size, end)] for name, rows in shuffled.items()}


def train(
    steps: Sequence[Step], params: Tree, given: Tree, batches: Iterable[Batch], key: Key
) -> tuple[dict[str, Any], float]:
    """Train copies of `params` and return them with the first step's mean loss.

    In every batch each step in turn takes the gradient of its own loss and updates what it trains, so the next step
    sees the result. Optimisers start fresh and live for this call. `params` and `given` are not changed; buffers that
    a forward pass writes (BatchNorm statistics) are written into the copies. `key` seeds dropout.
    """
    flat = tree.flatten(tree.clone(params))
    working = tree.unflatten(flat)
    plans = [(step, [_group(flat, branch, optimiser) for branch, optimiser in step.trains.items()]) for step in steps]
    losses, rows = [], []
    with key.scope():
        for batch in batches:
            taken = [_take(step, groups, working, given, batch) for step, groups in plans]
            losses.append(taken[0])
            rows.append(len(next(iter(batch.values()))))
    if not rows:
        raise ValueError("nothing to train on: there was no batch")
    mean = torch.stack(losses).double().cpu() @ torch.tensor(rows, dtype=torch.float64) / sum(rows)
    return tree.map_leaves(Tensor.detach, working), float(mean)


def sgd(loss: Loss, params: Tree, optimiser: SGD, batches: Iterable[Batch], key: Key) -> tuple[dict[str, Any], float]:
    """`train` in its simplest case: one loss, one optimiser a branch, nothing constant."""
    return train([Step(loss, dict.fromkeys(params, optimiser))], params, {}, batches, key)


def _group(flat: Flat, branch: str, optimiser: SGD) -> _Group:
    below = {name: leaf for name, leaf in flat.items() if f"{name}/".startswith(f"{branch}/")}
    weights = [leaf for name, leaf in below.items() if is_trainable(name, leaf)]
    if not weights:
        raise ValueError(f"a step trains {branch!r}, of which params has no trainable leaf: {', '.join(flat)}")
    return _Group(optimiser, weights)


def is_trainable(name: str, leaf: Tensor) -> bool:
    """Whether a leaf is a weight: floating, and not marked by "~" as a buffer."""
    return leaf.is_floating_point() and not name.rpartition("/")[2].startswith("~")


def _take(step: Step, groups: list[_Group], params: Tree, given: Tree, batch: Batch) -> Tensor:
    weights = [weight for group in groups for weight in group.weights]
    for weight in weights:
        weight.requires_grad_(True)
    loss = step.loss(params, given, batch)
    gradients = list(torch.autograd.grad(loss, weights))
    with torch.no_grad():
        for group in groups:
            mine, gradients = gradients[: len(group.weights)], gradients[len(group.weights) :]
            group.memory = group.optimiser.update(group.weights, mine, group.memory)
        if step.project:
            step.project(params)
    for weight in weights:
        weight.requires_grad_(False)
    return loss.detach()


@torch.no_grad()
def evaluate(algorithm: Algorithm[Any, Any, Any], ready: Ready, data: Batch, size: int = 512) -> dict[str, float]:
    """The task's exact scores of `algorithm.predict` over all rows of `data`."""
    tallies: dict[str, Tensor] = {}
    for start in range(0, len(next(iter(data.values()))), size):
        batch = {name: rows[start : start + size] for name, rows in data.items()}
        for name, part in algorithm.task.tally(algorithm.predict(ready, batch), batch).items():
            tallies[name] = tallies[name] + part if name in tallies else part
    return algorithm.task.scores(tallies)
