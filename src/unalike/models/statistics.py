"""BatchNorm's statistics computed anew, for weights that were trained without tracking them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
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


@contextlib.contextmanager
def distance_to_statistics(spec: Spec, wanted: bool = True) -> Iterator[Callable[[], Tensor]]:
    """Of a forward pass inside the block: Σ ‖mean − running mean‖² + ‖variance − running variance‖² over its layers.

    The layers are those of the extractor; the block yields the function that tells it. Without any, or not `wanted`: 0.
    """
    found: list[Tensor] = []

    def compare(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        x = inputs[0]
        batch = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
        running = (layer.get_buffer(name) for name in ("running_var", "running_mean"))
        found.extend((b - r).square().sum() for b, r in zip(batch, running, strict=True))

    layers = _skeletons(spec)["extractor"].module.modules() if wanted else ()
    hooks = [m.register_forward_pre_hook(compare) for m in layers if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    try:
        yield lambda: torch.stack(found).sum() if found else torch.zeros(())
    finally:
        for hook in hooks:
            hook.remove()
