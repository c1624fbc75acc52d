"""BatchNorm's statistics computed anew, for weights that were trained without tracking them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import tree
from ..protocol import Spec
from ..rng import Key
from ..tree import Tree
from . import _skeletons, logits, normalisation


@torch.no_grad()
def recomputed(spec: Spec, weights: Tree, inputs: Iterable[Tensor], key: Key) -> dict[str, Any]:
    """The weights with the mean over `inputs` of each batch's mean and variance in every BatchNorm layer.

    Each batch of two rows or more passes once in training mode, so each layer sees what the layers before it emit with
    that batch's own statistics. Without any batch the result is of no use. `key` seeds dropout.
    """
    flat = tree.flatten(weights)
    fresh = {name: torch.zeros_like(flat[name]) for name in normalisation(spec) if "/~" in name}
    working = tree.unflatten(flat | fresh)
    with _cumulative(spec), key.scope():
        for x in inputs:
            logits(spec, working, x, train=True)
    return working


@contextlib.contextmanager
def _cumulative(spec: Spec) -> Iterator[None]:
    """Statistics are plain means over batches inside, and what they were outside."""
    modules = (module for skeleton in _skeletons(spec).values() for module in skeleton.module.modules())
    layers = [module for module in modules if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    before = [layer.momentum for layer in layers]
    try:
        for layer in layers:
            layer.momentum = None
        yield
    finally:
        for layer, momentum in zip(layers, before, strict=True):
            layer.momentum = momentum
