"""Clients that train narrower copies of one model: what each width needs, and a visit with a scaler and masked outputs.

This is what HeteroFL and FedRolex have in common; they differ in which channels a client holds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .. import models, tree
from ..local import SGD, LocalTraining, Step, batches, train
from ..models import narrow
from ..models.narrow import LEVELS, Places, narrowed
from ..models.statistics import recomputed
from ..protocol import Batch, ClientInfo, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from . import eligible, needs, stages
from .eligible import rows_at_once
from .work import evaluation, rows, sgd, shapes_of

_KEY = Key.root(0)


@dataclass(frozen=True, kw_only=True)
class WidthTraining(LocalTraining):
    """The hyper-parameters of such a visit, for methods to have beside their own. Widths r are shares of the whole."""

    scaler: bool = True
    """Whether layers of a client of width r emit 1/r of it while they train, as if the others emitted as much."""
    masked: bool = True
    """Whether a client's loss leaves out the classes it has no rows of, and only the rows of its classes are sent."""
    bn: Literal["static", "tracked"] = "static"
    """Statistics to predict with: anew from the client's own training rows, or the running ones, averaged."""

    def need(self, spec: Spec, task: Task, r: float) -> int:
        """Bytes for training and evaluating width `r` of the model `spec`."""
        return _training(spec, r, task, self.optimiser(), self.batch_size, self.scaler)

    def trains(self, spec: Spec, task: Task, info: ClientInfo) -> float | None:
        """The largest width that the client's budget holds in training, None where it holds none."""
        return eligible.best(info, LEVELS, lambda r: self.need(spec, task, r))

    def predicts(self, spec: Spec, info: ClientInfo) -> float:
        """The largest width that the client's budget holds in evaluation; the least where it holds none."""
        few = rows_at_once(info, self.batch_size)
        found = eligible.best(info, LEVELS, lambda r: _evaluation(spec, r, few, self.bn == "static"))
        return LEVELS[-1] if found is None else found

    def visit(self, spec: Spec, task: Task, model: Tree, data: Batch, key: Key) -> tuple[Tree, Tensor, float]:
        """Train what was sent of the model `spec`: all of its weights after E epochs, the labels (k,), the loss."""
        r, labels = narrow.level(spec, model), torch.unique(data["y"])
        loss = functools.partial(narrow.loss, narrowed(spec, r), task, 1 / r if self.scaler else 1.0)
        given = {"absent": ~torch.isin(torch.arange(spec.classes, device=labels.device), labels)} if self.masked else {}
        step = Step(loss, {"model": self.optimiser()})
        tuned, mean = train([step], {"model": model}, given, self.visits(data, key / "batches"), key / "noise")
        return tuned["model"], labels, mean

    def sent(self, spec: Spec, tuned: Tree, labels: Tensor) -> dict[str, Tree | Tensor]:
        """What a client sends of it: with `masked` the labels, and of the header the rows of these only."""
        if not self.masked:
            return {"model": tuned}
        whole = narrow.shapes(spec)
        flat = {n: leaf[labels] if _by_class(spec, n, whole[n]) else leaf for n, leaf in tree.flatten(tuned).items()}
        return {"model": tree.unflatten(flat), "labels": labels}

    def holds(self, spec: Spec, r: float, shift: int, up: Mapping[str, Any]) -> Mapping[str, Places]:
        """Where in the whole model what a client of width `r` has sent belongs."""
        found, whole = narrow.places(spec, narrowed(spec, r), shift), narrow.shapes(spec)
        if not self.masked:
            return found
        rows = {n: leaf.shape for n, leaf in whole.items() if _by_class(spec, n, leaf)}
        ends = {n: found[n][1:] or tuple(map(torch.arange, shape[1:])) for n, shape in rows.items()}
        return {**found, **{n: (up["labels"], *end) for n, end in ends.items()}}

    def prepared(self, spec: Spec, info: ClientInfo, model: Tree, data: Batch, key: Key) -> tuple[Spec, Tree]:
        """What a client predicts with: the model sent, with statistics as `bn` says.

        Without two training rows, as in an exported model, they are the running ones.
        """
        own = narrowed(spec, narrow.level(spec, model))
        if self.bn == "tracked" or len(data["y"]) < 2 or not models.normalisation(own):
            return own, model
        visits = batches(data, rows_at_once(info, self.batch_size), 1, key / "order")
        return own, recomputed(own, model, (batch["x"] for batch in visits), key / "noise")


def _by_class(spec: Spec, name: str, leaf: Tensor) -> bool:
    return name.startswith("header/") and leaf.ndim > 0 and len(leaf) == spec.classes


@functools.cache
def _training(spec: Spec, r: float, task: Task, optimiser: SGD, n: int, scaler: bool) -> int:
    own, absent = narrowed(spec, r), torch.empty(spec.classes, dtype=torch.bool, device="meta")
    loss = functools.partial(narrow.loss, own, task, 1 / r if scaler else 1.0)
    params = {"model": shapes_of(models.initial(own, _KEY))}
    work = sgd(loss, params, optimiser, rows(spec.input, n), {"absent": absent})
    return needs.of(work, stages.evaluated_whole(own, n))


@functools.cache
def _evaluation(spec: Spec, r: float, n: int, static: bool) -> int:
    own = narrowed(spec, r)
    anew = evaluation(functools.partial(_anew, own), shapes_of(models.initial(own, _KEY)), rows(spec.input, n))
    return needs.of(stages.evaluated_whole(own, n), *([anew] if static else []))


def _anew(spec: Spec, weights: Tree, batch: Batch) -> Tree:
    return recomputed(spec, weights, [batch["x"]], _KEY)
