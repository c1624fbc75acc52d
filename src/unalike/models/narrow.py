"""Sub-models by width: which channels of a model a narrower one of the same architecture is.

The narrow model is the same constructor with a smaller `width`. Its leaves tell by their shapes along which axes
channels are left out: of an axis of C entries of which it has P, it holds at shift s

    { (s + i) mod C : 0 ≤ i < P }

and of an axis of equal length (inputs, classes, kernels) everything. Positions depend on (C, P, s) alone, so layers
that follow one another, and the two sides of a residual sum, agree without a line about the architecture. Where C maps
of u pixels are flattened into an axis of C u entries, the window moves by u. `require_nested` finds out where parts do
not agree: in attention, in normalisation over channels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .. import tree
from ..errors import InputError, RunError
from ..plugins import parse_call
from ..protocol import Batch, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from . import constructor_of, initial, leaves_of, logits, on_real_tensors

LEVELS = (1.0, 0.5, 0.25, 0.125, 0.0625)
"""r: the widths of HeteroFL and FedRolex as shares of the whole model's, the widest first."""

Places: TypeAlias = tuple[Tensor, ...]
"""Positions along each axis of a leaf; () is all of it."""


def narrowed(spec: Spec, r: float) -> Spec:
    """The model with `r` times its width; `InputError` where its constructor has no option `width`."""
    if r == 1:
        return spec
    name, options = parse_call(spec.name)
    known = inspect.signature(constructor_of(name)).parameters
    if "width" not in known:
        raise InputError(
            f"model {spec.name} cannot be made narrower: its constructor has no option `width`, a factor on its "
            "channels, as those of resnet18, vgg11, cnn-5 and mlp-5 have"
        )
    options = {**options, "width": options.get("width", known["width"].default) * r}
    return replace(spec, name=f"{name}({', '.join(f'{key}={value!r}' for key, value in options.items())})")


@functools.lru_cache(maxsize=64)
@on_real_tensors
def shapes(spec: Spec) -> tree.Flat:
    """The model's leaves by name, on the meta device: shapes and dtypes."""
    return tree.flatten(tree.to(initial(spec, Key.root(0)), torch.device("meta")))


def level(spec: Spec, weights: Tree) -> float:
    """The width r, the first of `LEVELS`, of which these are weights by their shapes; leaves may be missing.

    Raises `RunError` where they are of none.
    """
    found = tree.flatten(weights)
    for r in LEVELS:
        like = shapes(narrowed(spec, r))
        if all(name in like and leaf.shape == like[name].shape for name, leaf in found.items()):
            return r
    raise RunError(f"these weights are no width of model {spec.name}")


@functools.lru_cache(maxsize=64)
def places(spec: Spec, narrow: Spec, shift: int = 0) -> Mapping[str, Places]:
    """Where the leaves of `narrow` lie in those of `spec`, with the window of each axis moved on by `shift`."""
    whole, part = shapes(spec), shapes(narrow)
    if whole.keys() != part.keys():
        raise InputError(f"models {spec.name} and {narrow.name} differ in more than their width")
    pixels = _pixels(spec, narrow)
    return {name: _places(whole[name].shape, part[name].shape, shift, pixels[name]) for name in whole}


def _places(whole: Sequence[int], part: Sequence[int], shift: int, pixels: int = 1) -> Places:
    """Along each axis; `pixels`: how many entries of the second one, the inputs, are of one channel."""
    if whole == part:
        return ()
    return tuple(
        torch.arange(size) if size == kept else (torch.arange(kept) + shift * (pixels if axis == 1 else 1)) % size
        for axis, (size, kept) in enumerate(zip(whole, part, strict=True))
    )


def _pixels(spec: Spec, narrow: Spec) -> dict[str, int]:
    """Entries of a channel in the inputs of each leaf: more than 1 where they are the flattened maps of a layer."""
    found, emitted = dict[str, int](), (1, 1)
    part = shapes(narrow)
    for branch, leaves in initial(spec, Key.root(0)).items():  # in the order of the layers
        for leaf, weight in leaves.items():
            name, taken = f"{branch}/{leaf}", tuple(weight.shape[1:2])
            pixels = taken[0] // emitted[0] if taken else 1
            flattened = pixels > 1 and (taken[0], part[name].shape[1]) == (emitted[0] * pixels, emitted[1] * pixels)
            found[name] = pixels if flattened else 1
            if taken:
                emitted = (len(weight), len(part[name]))
    return found


def mesh(where: Places) -> Places:
    """The positions as an index: leaf[mesh(where)] has one entry for each combination of them."""
    return tuple(
        positions.reshape(*(-1 if i == axis else 1 for i in range(len(where)))) for axis, positions in enumerate(where)
    )


def part(weights: Tree, where: Mapping[str, Places]) -> dict[str, Any]:
    """The leaves of `weights` at the places given: copies, but for those that are taken whole."""
    flat = tree.flatten(weights)
    return tree.unflatten({name: leaf[mesh(where[name])] if where[name] else leaf for name, leaf in flat.items()})


@functools.lru_cache(maxsize=16)
@on_real_tensors
def require_nested(method: str, spec: Spec, narrow: Spec, shift: int = 0) -> None:
    """Raise `InputError` unless `narrow` is a part of `spec`.

    It is one if the whole model, its weights 0 wherever the narrow one has none, computes what the narrow one does:
    here in float64, because maps of a deep net that has not been trained are small.
    """
    where, inner = places(spec, narrow, shift), tree.map_leaves(_as_double, initial(narrow, Key.root(1)))
    outer = {name: _as_double(torch.zeros(leaf.shape, dtype=leaf.dtype)) for name, leaf in shapes(spec).items()}
    for name, leaf in tree.flatten(inner).items():
        outer[name][mesh(where[name]) if where[name] else ...] = leaf
    x = torch.randn(4, *spec.input, generator=Key.root(1).torch()).double()
    with torch.no_grad():
        found, expected = (logits(s, w, x) for s, w in ((spec, tree.unflatten(outer)), (narrow, inner)))
    if (found - expected).abs().max() > 1e-6 * (expected - expected.mean(0)).abs().max():
        windows = "a window" if shift else "the first"
        raise InputError(
            f"{method} trains {windows} of the channels of each layer, but in model {spec.name} these do not make up a "
            "network (it has attention, or a norm over channels): take resnet18 or vgg11"
        )


def _as_double(leaf: Tensor) -> Tensor:
    return leaf.double() if leaf.is_floating_point() else leaf


def loss(spec: Spec, task: Task, scale: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The task's loss of a narrow model with a scaler and masked outputs.

    What convolutions and linear layers of the extractor emit is multiplied by `scale`: it is their weights and biases
    that are, which is the same and keeps no maps. Outputs of classes marked in given["absent"] (classes,) are 0.
    """
    outputs = logits(spec, _scaled(spec, params["model"], scale), batch["x"], train=True)
    if "absent" in given:
        outputs = outputs.masked_fill(given["absent"], 0.0)
    return task.loss(outputs, batch)


_MAPS = (nn.Linear, nn.modules.conv._ConvNd)


def _scaled(spec: Spec, model: Tree, scale: float) -> Tree:
    if scale == 1:
        return model
    emitting = leaves_of(spec, *_MAPS)
    extractor = {n: leaf * scale if f"extractor/{n}" in emitting else leaf for n, leaf in model["extractor"].items()}
    return {"extractor": extractor, "header": model["header"]}
