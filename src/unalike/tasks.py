"""What a model's outputs mean: loss, scores, and the score that chooses a round. Methods hold none of it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .tree import Batch

MOST_CLASSES = 100
"""With more classes than this their recalls are not told."""


class Task(ABC):
    """A task is a frozen dataclass of JSON values, so that it can be written down and rebuilt elsewhere."""

    metric: ClassVar[str]
    """The score, higher is better, by which a round is chosen on validation."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss over the batch, a scalar; rows count by the column "weight" (B,) where the batch has one."""

    @abstractmethod
    def tally(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Sums over the batch that add up across batches to what `scores` needs."""

    @abstractmethod
    def scores(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        """Exact scores over all rows tallied: not means of batch means."""

    def together(self, tallies: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is told of the rows of all clients together: the scores, and whatever says more; JSON values."""
        return self.scores(tallies)


@dataclass(frozen=True)
class Classification(Task):
    """One of `classes` labels a sample: cross-entropy, accuracy and balanced accuracy."""

    classes: int
    metric: ClassVar[str] = "accuracy"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        if "weight" not in batch:
            return F.cross_entropy(outputs, batch["y"])
        return (batch["weight"] * F.cross_entropy(outputs, batch["y"], reduction="none")).sum() / batch["weight"].sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        y = batch["y"]
        hit = y[outputs.argmax(1) == y]
        return {
            "rows": torch.bincount(y, minlength=self.classes).cpu(),
            "hits": torch.bincount(hit, minlength=self.classes).cpu(),
            "loss": F.cross_entropy(outputs, y, reduction="sum").cpu().double(),
        }

    def scores(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        """accuracy, balanced_accuracy (mean recall over the classes that occur), loss, n."""
        rows, hits = tallies["rows"].double(), tallies["hits"].double()
        n, present = float(rows.sum()), rows > 0
        return {
            "accuracy": float(hits.sum()) / n,
            "balanced_accuracy": float((hits[present] / rows[present]).mean()),
            "loss": float(tallies["loss"]) / n,
            "n": n,
        }

    def together(self, tallies: Mapping[str, Tensor]) -> dict[str, Any]:
        """The scores and "recall": hits among the rows of each class, None for a class without rows.

        Above `MOST_CLASSES` classes it is left out: a list for every round would be most of what a run writes.
        """
        if self.classes > MOST_CLASSES:
            return self.scores(tallies)
        pairs = zip(tallies["hits"].tolist(), tallies["rows"].tolist(), strict=True)
        return {**self.scores(tallies), "recall": [hits / rows if rows else None for hits, rows in pairs]}


TASKS: Mapping[str, type[Task]] = {"classification": Classification}


def describe(task: Task) -> dict[str, Any]:
    """The task as JSON values; `restore` is the inverse."""
    name = next(name for name, kind in TASKS.items() if type(task) is kind)
    return {"name": name, **vars(task)}


def restore(description: Mapping[str, Any]) -> Task:
    """The task that `describe` described."""
    fields = dict(description)
    return TASKS[fields.pop("name")](**fields)
