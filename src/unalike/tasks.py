"""What a model's outputs mean: loss, scores, and the score that chooses a round. Methods hold none of it."""

from __future__ import annotations

import functools
import importlib
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .plugins import require_extra
from .pretrained import Tokeniser, tokeniser
from .tree import Batch

MOST_CLASSES = 100
"""With more classes than this their recalls are not told."""
EXACT = 10**9
"""ROUGE-1 is counted in whole billionths, so that sums of it are exact in any order."""


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


@dataclass(frozen=True)
class Instruction(Task):
    """An answer in words to each instruction: cross-entropy of its tokens; accuracy and ROUGE-1 of what is written.

    Batches have prompts "x" (B, T) and answers "y" (B, R) as token ids of `model`. Outputs are logits (B, R, words) in
    the loss, and in the scores the ids (B, ...) that were written.
    """

    model: str
    """The language model whose tokens these are."""
    metric: ClassVar[str] = "rouge1"

    @property
    def tokens(self) -> Tokeniser:
        return tokeniser(self.model)

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over all tokens of answers, their ends included; a row's tokens count by its "weight"."""
        y = batch["y"]
        counts = self.tokens.answer_mask(y).to(outputs.dtype)
        if "weight" in batch:
            counts = counts * batch["weight"][:, None]
        each = F.cross_entropy(outputs.flatten(0, 1).float(), y.flatten(), reduction="none")
        return (each * counts.flatten()).sum() / counts.sum()

    def tally(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        written, right = self.tokens.texts(outputs), self.tokens.texts(batch["y"])
        asked = self.tokens.instructions(batch["x"])
        hits = [is_right(*row) for row in zip(asked, written, right, strict=True)]
        overlap = [round(EXACT * rouge1(*pair)) for pair in zip(written, right, strict=True)]
        return {
            "rows": torch.tensor(len(right)),
            "hits": torch.tensor(sum(hits)),
            "rouge1": torch.tensor(sum(overlap)),
        }

    def scores(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        """accuracy (share of right answers, see `is_right`), rouge1 (mean F-measure), n."""
        n = float(tallies["rows"])
        return {"accuracy": float(tallies["hits"]) / n, "rouge1": float(tallies["rouge1"]) / (EXACT * n), "n": n}


@dataclass(frozen=True)
class Answering(Task):
    """One answer of a list to each question about an image: cross-entropy and accuracy.

    Each client has its own list: outputs are logits (B, A) over it, "y" (B,) is the right answer's place in it, and -1
    where the right answer is none of it, which another client's rows can have. Such a row has no loss, and no answer to
    it is right.
    """

    metric: ClassVar[str] = "accuracy"

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean over the rows whose answer is in the list."""
        y = batch["y"]
        weight = (y >= 0).to(outputs.dtype)
        if "weight" in batch:
            weight = weight * batch["weight"]
        each = F.cross_entropy(outputs, y, ignore_index=-1, reduction="none")
        return (weight * each).sum() / weight.sum().clamp(min=torch.finfo(outputs.dtype).tiny)

    def tally(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        y = batch["y"]
        return {
            "rows": torch.tensor(len(y)),
            "known": (y >= 0).sum().cpu(),
            "hits": (outputs.argmax(1) == y).sum().cpu(),
            "loss": F.cross_entropy(outputs, y, ignore_index=-1, reduction="sum").cpu().double(),
        }

    def scores(self, tallies: Mapping[str, Tensor]) -> dict[str, float]:
        """accuracy (of all rows), loss (of those whose answer is in the list, 0 where none is), n."""
        n, known = float(tallies["rows"]), float(tallies["known"])
        return {"accuracy": float(tallies["hits"]) / n, "loss": float(tallies["loss"]) / max(1.0, known), "n": n}


def is_right(instruction: str, written: str, right: str) -> bool:
    """Whether an answer is the right one, but for case and white space.

    Where the instruction ends with a list of OPTIONS, the answer is the longest option that it begins with: "Yes, he
    did" is the option "yes". Without a list it has to be the whole answer.
    """
    said, wanted, listed = _plain(written), _plain(right), options(instruction)
    if wanted not in listed:
        return said == wanted
    return max((option for option in listed if _begins(said, option)), key=len, default=None) == wanted


def options(instruction: str) -> Sequence[str]:
    """The options that an instruction lists, one a line after "OPTIONS:", without case; none where it lists none."""
    _, mark, below = instruction.rpartition("OPTIONS:")
    return [_plain(found) for found in re.findall(r"^\s*-\s*(.+)$", below, re.MULTILINE)] if mark else []


def _begins(said: str, option: str) -> bool:
    return said.startswith(option) and not said[len(option) : len(option) + 1].isalnum()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def rouge1(written: str, right: str) -> float:
    """F-measure of the words that two texts share, by the library rouge-score; words are runs of a-z and 0-9."""
    return float(_scorer().score(right, written)["rouge1"].fmeasure)


@functools.lru_cache(maxsize=1)
def _scorer() -> Any:
    require_extra("llm", "rouge_score")
    return importlib.import_module("rouge_score.rouge_scorer").RougeScorer(["rouge1"], use_stemmer=False)


TASKS: Mapping[str, type[Task]] = {"classification": Classification, "instruction": Instruction, "answering": Answering}


def describe(task: Task) -> dict[str, Any]:
    """The task as JSON values; `restore` is the inverse."""
    name = next(name for name, kind in TASKS.items() if type(task) is kind)
    return {"name": name, **vars(task)}


def restore(description: Mapping[str, Any]) -> Task:
    """The task that `describe` described."""
    fields = dict(description)
    return TASKS[fields.pop("name")](**fields)
