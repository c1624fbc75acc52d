"""The pieces of work of tuning a frozen model of images and questions, to be predicted or measured.

Its weights are held by the work, not captured: they are shapes here (the meta device), and `Base.holding` puts what
stands for them into the model for the time of the work. They count as buffers, since they never train.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from ..local import Step
from ..models import multimodal
from ..multimodal import Foundation, reader
from ..protocol import Batch, Spec
from ..tree import Tree
from . import work
from .work import Mark, Work, shapes_of


def rows(spec: Spec, n: int, tokens: int) -> dict[str, torch.Tensor]:
    """The shapes of a batch of n questions of `tokens` tokens, with images where the model sees, on the meta device."""
    found = {"x": torch.empty(n, tokens, dtype=torch.int64), "y": torch.empty(n, dtype=torch.int64)}
    if side := reader(Foundation.read(spec.name).model).side:
        found["image"] = torch.empty(n, 3, side, side, dtype=torch.uint8, device="meta")
        found["pictured"] = torch.empty(n, dtype=torch.bool, device="meta")
    return shapes_of(found)


def around(spec: Spec, inner: Work) -> Work:
    """Work that calls the frozen model of `spec`, with the model's weights among what it holds."""

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        with multimodal.base(spec).holding(held["frozen"]):
            return inner.run({name: tree for name, tree in held.items() if name != "frozen"}, mark)

    return replace(inner, held={**inner.held, "frozen": shapes_of(multimodal.base(spec).frozen)}, run=run)


def training(spec: Spec, steps: Sequence[Step], params: Tree, given: Tree, batch: Batch, batches: int = 2) -> Work:
    """A client's visit, by `local.train`, see `work.training`."""
    return around(spec, work.training(steps, params, given, batch, batches))


def evaluation(spec: Spec, function: Callable[[Tree, Batch], object], weights: Tree, batch: Batch) -> Work:
    """`function(weights, batch)` without gradients, see `work.evaluation`."""
    return around(spec, work.evaluation(function, weights, batch))
