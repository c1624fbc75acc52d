"""Optimisers as values: hyper-parameters in, weights changed in place. They keep nothing between two visits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

Memory: TypeAlias = dict[str, list[Tensor]]
"""What an optimiser keeps between the steps of one visit."""


class Optimiser(Protocol):
    """How a group of weights follows its gradients."""

    def update(self, weights: list[Tensor], gradients: list[Tensor], memory: Memory) -> None:
        """Change `weights` in place, and `memory`, which is empty at the first step of a visit.

        Gradients are copied into tensors that live as long as the visit before anything is written into them: two of
        them may be one tensor, and memory taken anew in every step costs more than the arithmetic.
        """


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

    def update(self, weights: list[Tensor], gradients: list[Tensor], memory: Memory) -> None:
        """See `Optimiser`."""
        if self.clip < math.inf or self.weight_decay:
            gradients = _copied(gradients, memory, "gradients")
        _clip(gradients, self.clip)
        if self.weight_decay:
            torch._foreach_add_(gradients, weights, alpha=self.weight_decay)
        if self.momentum:
            if "momentum" in memory:
                torch._foreach_mul_(memory["momentum"], self.momentum)
                torch._foreach_add_(memory["momentum"], gradients)
                gradients = memory["momentum"]
            else:
                gradients = _copied(gradients, memory, "momentum")
        torch._foreach_add_(weights, gradients, alpha=-self.lr)


@dataclass(frozen=True, slots=True)
class AdamW:
    """Adam with decoupled weight decay, arithmetic and order of `torch.optim.AdamW`.

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  w ← (1 − η_t decay) w − η_t m̂ / (√v̂ + eps),
    m̂ = m / (1 − β₁ᵗ), v̂ = v / (1 − β₂ᵗ), and in step t of `steps` η_t = lr (steps − t + 1) / steps.
    """

    lr: float
    weight_decay: float = 0.0
    clip: float = math.inf
    """Largest 2-norm of the gradient of this group; a larger one is scaled down to it."""
    steps: int = 0
    """Steps of the visit, over which the step size falls linearly to 0; 0 leaves it as it is."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    decays_vectors: bool = True
    """Whether weights of one dimension decay as well: biases, and those of normalisations."""

    def update(self, weights: list[Tensor], gradients: list[Tensor], memory: Memory) -> None:
        """See `Optimiser`."""
        if not memory:
            memory["m"], memory["v"] = ([torch.zeros_like(w) for w in weights] for _ in "mv")
            memory["t"] = [torch.zeros(())]
        if self.clip < math.inf:
            gradients = _copied(gradients, memory, "gradients")
        _clip(gradients, self.clip)
        t, (b1, b2) = int(memory["t"][0].add_(1)), self.betas
        lr = self.lr * max(0, self.steps - t + 1) / self.steps if self.steps else self.lr
        decaying = [w for w in weights if w.ndim > 1 or self.decays_vectors] if self.weight_decay else []
        if decaying:
            torch._foreach_mul_(decaying, 1 - lr * self.weight_decay)
        torch._foreach_lerp_(memory["m"], gradients, 1 - b1)
        torch._foreach_mul_(memory["v"], b2)
        torch._foreach_addcmul_(memory["v"], gradients, gradients, value=1 - b2)
        below = torch._foreach_sqrt(memory["v"])
        torch._foreach_div_(below, math.sqrt(1 - b2**t))
        torch._foreach_add_(below, self.eps)
        torch._foreach_addcdiv_(weights, memory["m"], list(below), value=-lr / (1 - b1**t))


def _clip(gradients: list[Tensor], limit: float) -> None:
    if limit < math.inf:
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        torch._foreach_mul_(gradients, torch.clamp(limit / (norm + 1e-6), max=1.0))


def _copied(tensors: list[Tensor], memory: Memory, name: str) -> list[Tensor]:
    if name not in memory:
        memory[name] = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in tensors]
    torch._foreach_copy_(memory[name], tensors)
    return memory[name]
