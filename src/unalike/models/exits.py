"""Sub-models by depth: the first blocks of a chain, with a classifier after each.

    x ─► block 1 ─► ... ─► block d
            └► classifier 1      └► classifier d

A classifier is the mean over places and one linear layer; after the last block it is the model's own header. A
sub-model of depth d is a tree {"extractor": leaves of blocks 1..d, "classifiers": {"1": {"weight", "bias"}, ...}}, with
the model's "header" when it is whole.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .. import tree
from ..protocol import Spec
from ..rng import Key
from ..tree import Tree
from . import chain, head, on_real_tensors
from . import initial as initial_model
from .progressive import _mean_over_places


@functools.lru_cache(maxsize=64)
def cuts(spec: Spec) -> tuple[int, ...]:
    """Where blocks end: the cuts of the architecture's own, or after each unit where it has none."""
    return chain._links(spec).cuts or tuple(range(len(chain.units(spec)) + 1))


def depth(spec: Spec) -> int:
    """T: the number of blocks. `InputError` says where a model cannot be cut into any."""
    return len(cuts(spec)) - 1


@functools.lru_cache(maxsize=16)
@on_real_tensors
def initial(spec: Spec, key: Key) -> dict[str, Any]:
    """First weights of the whole: the model's own of `key`, and fresh classifiers after all blocks but the last."""
    weights, wide = initial_model(spec, key), chain.widths(spec)
    return {
        "extractor": weights["extractor"],
        "classifiers": {
            str(b): _classifier(wide[cut - 1], spec.classes, key / "classifier" / b)
            for b, cut in enumerate(cuts(spec)[1:-1], start=1)
        },
        "header": weights["header"],
    }


def _classifier(channels: int, classes: int, key: Key) -> dict[str, Tensor]:
    with key.scope():
        layer = nn.Linear(channels, classes)
    return {"weight": layer.weight.detach(), "bias": layer.bias.detach()}


def part(spec: Spec, weights: Tree, d: int) -> dict[str, Any]:
    """The sub-model of depth `d`: the same tensors."""
    if d == depth(spec):
        return dict(weights)
    extractor = chain.part(spec, weights["extractor"], 0, cuts(spec)[d])
    return {"extractor": extractor, "classifiers": {str(b): weights["classifiers"][str(b)] for b in range(1, d + 1)}}


def depth_of(weights: Tree) -> int:
    """The depth of a sub-model, from its weights."""
    return len(weights["classifiers"]) + ("header" in weights)


def names(spec: Spec, d: int) -> frozenset[str]:
    """The leaves of the sub-model of depth `d`."""
    return frozenset(tree.flatten(part(spec, initial(spec, Key.root(0)), d)))


def forward(spec: Spec, weights: Tree, d: int, x: Tensor, train: bool = False) -> list[Tensor]:
    """Logits (B, classes) of each classifier of the sub-model of depth `d`, the shallowest first."""
    y, found, tokens = x, list[Tensor](), len(spec.input) != 2
    for b in range(1, d + 1):
        y = chain.run(spec, cuts(spec)[b - 1], cuts(spec)[b], weights["extractor"], y, train)
        if b == depth(spec):
            found.append(head(spec, weights["header"], y, train))
        else:
            classifier = weights["classifiers"][str(b)]
            pooled = _mean_over_places(y, tokens)
            found.append(F.linear(pooled, classifier["weight"], classifier["bias"]))
    return found
