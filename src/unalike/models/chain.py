"""A model's extractor as a chain of units: their names, weights and shapes, and the chain run in part.

Blocks are ranges of units, written as cuts: (0, 3, 5, 7, 9) are four blocks of nine units. A unit's weights are the
leaves of the "extractor" branch that it owns, under the very same names, so blocks are taken out and put together as
plain dicts.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..protocol import Spec
from ..rng import Key
from ..tree import Tree
from . import Skeleton, _line, build, initial, leaf_names, on_real_tensors
from .units import own_cuts
from .units import units as _units


@dataclass(frozen=True, slots=True)
class _Links:
    names: tuple[str, ...]
    skeletons: tuple[Skeleton, ...]
    leaves: tuple[tuple[str, ...], ...]
    cuts: tuple[int, ...]


@functools.lru_cache(maxsize=64)
@on_real_tensors
def _links(spec: Spec) -> _Links:
    extractor: Any = build(spec, Key.root(0)).extractor
    found, names = _units(extractor, f"model {spec.name}"), leaf_names(extractor)
    skeletons = tuple(Skeleton(unit.module, names) for unit in found)
    leaves = tuple(tuple(skeleton.weights()) for skeleton in skeletons)
    extractor.to("meta")  # skeletons are given their weights: their first ones would only take memory
    return _Links(tuple(unit.name for unit in found), skeletons, leaves, own_cuts(extractor))


def units(spec: Spec) -> tuple[str, ...]:
    """Names of the units, in order; `InputError` says where a chain breaks."""
    return _links(spec).names


def cuts(spec: Spec) -> tuple[int, ...]:
    """The cuts of the architecture's paper: (0, ..., number of units). `InputError` where the model has none."""
    if not (found := _links(spec).cuts):
        raise InputError(f"model {spec.name} brings no cuts of its own: give them, or have it partitioned by memory")
    return found


def brings_cuts(spec: Spec) -> bool:
    """Whether there are cuts of the architecture's paper; `InputError` says where a chain breaks."""
    return bool(_links(spec).cuts)


def require_cuts(spec: Spec, given: Sequence[int]) -> None:
    """Raise `InputError` unless `given` rises strictly from 0 to the number of units."""
    n = len(units(spec))
    if [0, *sorted({*given} - {0, n}), n] != list(given):
        raise InputError(f"model {spec.name} has {n} units: cuts must rise from 0 to {n}, not {tuple(given)}")


def blocks(spec: Spec, given: Sequence[int] | None = None) -> tuple[tuple[str, ...], ...]:
    """Names of the units of each block, at the given cuts or at the paper's."""
    bounds = cuts(spec) if given is None else tuple(given)
    require_cuts(spec, bounds)
    return tuple(units(spec)[a:b] for a, b in itertools.pairwise(bounds))


def part(spec: Spec, extractor: Tree, start: int, stop: int) -> dict[str, Tensor]:
    """The leaves of units `start` to `stop` (left out) of an "extractor" branch: the same tensors."""
    return {leaf: extractor[leaf] for unit in _links(spec).leaves[start:stop] for leaf in unit}


def run(spec: Spec, start: int, stop: int, weights: Tree, x: Tensor, train: bool = False) -> Tensor:
    """Units `start` to `stop` (left out) applied to what unit `start` - 1 emits; `weights` has their leaves."""
    for skeleton in _links(spec).skeletons[start:stop]:
        x = skeleton(weights, x, train)
    return x


@functools.lru_cache(maxsize=64)
@on_real_tensors
def shapes(spec: Spec) -> tuple[tuple[int, ...], ...]:
    """Shape of each unit's output, without the batch. `InputError` says at which unit the chain breaks."""
    weights, x, found = initial(spec, Key.root(0))["extractor"], torch.zeros(2, *spec.input), []
    with torch.no_grad():
        for i, name in enumerate(units(spec)):
            where = f"model {spec.name} cannot be cut into blocks: the chain breaks at unit {name}"
            try:
                x = run(spec, i, i + 1, weights, x)
            except Exception as error:
                raise InputError(f"{where}, which cannot take {tuple(x.shape[1:])}: {_line(error)}") from error
            if not isinstance(x, Tensor) or x.ndim < 2 or len(x) != 2:
                raise InputError(f"{where}, which emits a {type(x).__name__}: a unit maps one tensor (B, ...) to one")
            found.append(tuple(x.shape[1:]))
    return tuple(found)


def widths(spec: Spec) -> tuple[int, ...]:
    """Channels that each unit emits: of maps (C, H, W) and windows (C, T) the first axis, of tokens (N, d) the last."""
    return tuple(shape[-1] if _is_tokens(spec, shape) else shape[0] for shape in shapes(spec))


def _is_tokens(spec: Spec, shape: Sequence[int]) -> bool:
    return len(shape) == 2 and len(spec.input) != 2


def proxy_shape(spec: Spec, unit: int, narrow: int, wide: int) -> tuple[int, ...]:
    """Weight of a proxy from `narrow` to `wide` channels that works on what `unit` emits.

    (wide, narrow, 3, 3) for maps, (wide, narrow, 3) for windows, (wide, narrow) for tokens and vectors.
    """
    shape = shapes(spec)[unit]
    axes = 0 if _is_tokens(spec, shape) else len(shape) - 1
    return (wide, narrow, *(3,) * axes)
