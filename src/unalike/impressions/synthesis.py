"""ADMM: images on which a model's last layer is optimal.

H(f) = header(φ(x)) with W = header.weight (K, d) frozen; labels y are given, images X (M, C, H, W) are optimised:

    G(X) = 1/B (softmax(f(X)) − onehot(y))ᵀ φ(X) + γ W      the gradient of CE + γ/2 ‖W‖² with respect to W
    minimise CE(f(X), y)  subject to  G(X) = 0
    L = CE + ρ/2 ‖G‖² + ⟨Λ, G⟩
    Λ = 0;  repeat: each batch of B images: SGD on L (momentum 0.9, anew);   Λ ← Λ + ρ G(all images)

The model is in evaluation mode, and X stays in [−1, 1], what networks see of black and white. Beside L stand
regularisers with weights of 0: distance to BatchNorm's statistics (bn), total variation (tv), mean square (l2).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .. import models
from ..local import SGD, Memory
from ..models.statistics import distance_to_statistics
from ..protocol import Spec
from ..rng import Key
from ..tree import Tree
from .settings import Impressions

BLACK, WHITE = -1.0, 1.0
"""The valid range of pixels as networks see them."""
STEPS = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Step sizes that a search tries."""
ENOUGH = 0.1
"""The cross-entropy of synthetic images below which a synthesis has succeeded."""
MOMENTUM = 0.9


@dataclass(frozen=True, slots=True)
class Fit:
    """How well images meet what is asked of them."""

    loss: float
    """Their cross-entropy."""
    norm: float
    """‖G‖, of Frobenius."""


@dataclass(frozen=True, slots=True)
class Synthesis:
    """Images, and how they came to be."""

    images: Tensor
    """(M, *input) float32 in [−1, 1]."""
    lr: float
    """The step size of the images."""
    before: Fit
    after: Fit

    @property
    def has_succeeded(self) -> bool:
        """Whether the cross-entropy is below `ENOUGH` and ‖G‖ has fallen."""
        return self.after.loss < ENOUGH and self.after.norm < self.before.norm


def synthesise(
    spec: Spec, weights: Tree, labels: Tensor, settings: Impressions, start: Tensor, lr: float = 0.0, at_once: int = 1
) -> Synthesis:
    """Images (M, *spec.input) for `labels` (M,), from `start`: a pure function, in the same bits wherever it is called.

    Args:
        lr: the step size; 0 searches for one on the first batch of images.
        at_once: batches of images, or step sizes, that are worked on at the same time; it changes no bit.
    """
    lr = lr or settings.lr_img or search(spec, weights, labels, settings, start, at_once)
    return _admm(spec, _frozen(weights), labels, settings, start, lr, at_once)


def search(spec: Spec, weights: Tree, labels: Tensor, settings: Impressions, start: Tensor, at_once: int = 1) -> float:
    """Of `STEPS` the one with the least ‖G‖ among those that succeed on the first batch, else the least cross-entropy.

    A batch stands for all, since step sizes belong to its size.
    """
    first = slice(0, settings.image_batch)
    attempt = functools.partial(_admm, spec, _frozen(weights), labels[first], settings, start[first])
    with _side_by_side(at_once) as each:
        tried: list[Synthesis] = list(each(attempt, STEPS))
    good = [t for t in tried if t.has_succeeded]
    best = min(good, key=lambda t: t.after.norm) if good else min(tried, key=lambda t: t.after.loss)
    return best.lr


def _frozen(weights: Tree) -> dict[str, Any]:
    return {part: {name: leaf.detach() for name, leaf in leaves.items()} for part, leaves in weights.items()}


@contextlib.contextmanager
def _side_by_side(at_once: int) -> Iterator[Callable[..., Iterable[Any]]]:
    """A `map` in so many threads; in this one alone, where there is one, so that who follows its tensors sees them."""
    if at_once == 1:
        yield map
        return
    with ThreadPoolExecutor(at_once) as pool:
        yield pool.map


def _admm(
    spec: Spec, frozen: Tree, labels: Tensor, settings: Impressions, start: Tensor, lr: float, at_once: int = 1
) -> Synthesis:
    parts = torch.split(start, settings.image_batch)
    images = [x.clone(memory_format=torch.channels_last) for x in parts]  # a quarter faster on a CPU
    batches = list(zip(images, torch.split(labels, settings.image_batch), strict=True))
    multiplier = torch.zeros_like(frozen["header"]["weight"])
    before, _ = _fit(spec, frozen, torch.cat(images), labels, settings.gamma)
    after = before
    with _side_by_side(1 if settings.bn else at_once) as each:  # statistics are watched of one batch at a time
        for _ in range(settings.admm):
            descend = functools.partial(_descend, spec, frozen, multiplier, settings, lr)
            list(each(descend, batches))
            after, gradient = _fit(spec, frozen, torch.cat(images), labels, settings.gamma)
            multiplier = multiplier + settings.rho * gradient
    return Synthesis(torch.cat(images).contiguous(), lr, before, after)


def _descend(
    spec: Spec, weights: Tree, multiplier: Tensor, settings: Impressions, lr: float, batch: tuple[Tensor, Tensor]
) -> None:
    """`image_steps` of projected SGD on a batch of images and their labels, in place."""
    (x, y), optimiser, memory = batch, SGD(lr, MOMENTUM), Memory()
    for _ in range(settings.image_steps):
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(lagrangian(spec, weights, leaf, y, multiplier, settings), leaf)
        optimiser.update([x], [slope], memory)
        x.clamp_(BLACK, WHITE)


def lagrangian(spec: Spec, weights: Tree, x: Tensor, y: Tensor, multiplier: Tensor, settings: Impressions) -> Tensor:
    """CE + ρ/2 ‖G‖² + ⟨Λ, G⟩ of a batch, and the regularisers that have a weight."""
    with distance_to_statistics(spec, wanted=settings.bn > 0) as distance:
        r = models.features(spec, weights["extractor"], x)
    f = models.head(spec, weights["header"], r)
    G = head_gradient(r, f, y, weights["header"]["weight"], settings.gamma)
    loss = F.cross_entropy(f, y) + settings.rho / 2 * G.square().sum() + (multiplier * G).sum()
    if settings.bn:
        loss = loss + settings.bn * distance()
    if settings.tv:
        loss = loss + settings.tv * total_variation(x)
    if settings.l2:
        loss = loss + settings.l2 * x.square().mean()
    return loss


def head_gradient(r: Tensor, f: Tensor, y: Tensor, W: Tensor, gamma: float) -> Tensor:
    """G (K, d): the gradient with respect to W of CE + γ/2 ‖W‖², for features r (B, d), outputs f (B, K)."""
    return (f.softmax(1) - F.one_hot(y, f.shape[1])).T @ r / len(y) + gamma * W


def total_variation(x: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in rows and in columns, of images (B, C, H, W)."""
    return x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean()


@torch.no_grad()
def _fit(spec: Spec, weights: Tree, x: Tensor, y: Tensor, gamma: float) -> tuple[Fit, Tensor]:
    """The fit of all images, and G."""
    r = models.features(spec, weights["extractor"], x)
    f = models.head(spec, weights["header"], r)
    G = head_gradient(r, f, y, weights["header"]["weight"], gamma)
    return Fit(float(F.cross_entropy(f, y)), float(torch.linalg.matrix_norm(G))), G


def hardened(settings: Impressions, strength: float) -> Impressions:
    """The settings with a total variation of `strength` more, for when a client has refused what they made."""
    return replace(settings, tv=settings.tv + strength)


def noise(n: int, spec: Spec, key: Key) -> Tensor:
    """Standard normal pixels (n, *spec.input) within the valid range."""
    return torch.randn((n, *spec.input), generator=key.torch()).clamp_(BLACK, WHITE)


def label_of_each(n: int, classes: int, counts: Tensor | None = None) -> Tensor:
    """(n,) labels in turn: equally many of each class, or in proportion to `counts` (classes,), by largest remainders.

    Classes are spread evenly, so that every batch has its share of each.
    """
    shares = torch.ones(classes, dtype=torch.float64) if counts is None else counts.double()
    quota = n * shares / shares.sum()
    each = quota.floor()
    left = n - int(each.sum())
    each[torch.argsort(each - quota, stable=True)[:left]] += 1
    places = torch.cat([(torch.arange(int(k)) + 0.5) / k for k in each.tolist() if k])
    labels = torch.repeat_interleave(torch.arange(classes), each.long())
    return labels[torch.argsort(places, stable=True)]


def by_name(made: Synthesis) -> Mapping[str, float]:
    """What a synthesis tells, under the names of reports."""
    return {
        "synthetic_loss_before": made.before.loss,
        "synthetic_loss": made.after.loss,
        "head_gradient_before": made.before.norm,
        "head_gradient": made.after.norm,
        "lr_img": made.lr,
    }
