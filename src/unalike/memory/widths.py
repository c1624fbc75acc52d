"""Clients that train narrower copies of one model: what each width needs, and a visit with a scaler and masked outputs.

This is what HeteroFL and FedRolex have in common; they differ in which channels a client holds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import torch
from torch import Tensor

from .. import models, tree
from ..averaging import average
from ..local import SGD, LocalTraining, Step, batches, train
from ..models import narrow, on_real_tensors
from ..models.narrow import LEVELS, Places, narrowed
from ..models.statistics import recomputed
from ..protocol import Arrival, Batch, ClientInfo, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from . import eligible, needs, stages
from .eligible import FEW
from .plan import Stage
from .predict import predict
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
    """Statistics to predict with: computed for the weights as they are, or the running ones of training, averaged."""

    def need(self, spec: Spec, task: Task, r: float) -> int:
        """Bytes for training and evaluating width `r` of the model `spec`."""
        return _training(spec, r, task, self.optimiser(), self.batch_size, self.scaler)[0]

    def stages(self, spec: Spec, task: Task) -> list[Stage]:
        """The widths as stages of a plan. Of the last layer every row is counted, with every label."""
        found = []
        for r in LEVELS:
            need, flops = _training(spec, r, task, self.optimiser(), self.batch_size, self.scaler)
            down = tree.nbytes(self.weights(spec, tree.unflatten(narrow.shapes(narrowed(spec, r)))))
            up = down + (8 * spec.classes if self.masked else 0)
            found.append(Stage(name=f"width {Fraction(r)}", need=need, down=down, up=up, flops=flops))
        return found

    def trains(self, spec: Spec, task: Task, info: ClientInfo) -> float | None:
        """The largest width that the client's budget holds in training, None where it holds none."""
        return eligible.best(info, LEVELS, lambda r: self.need(spec, task, r))

    def predicts(self, spec: Spec, info: ClientInfo) -> float:
        """The largest width that the client's budget holds in evaluation; the least where it holds none."""
        found = eligible.best(info, LEVELS, lambda r: self._evaluated(spec, r, FEW))
        return LEVELS[-1] if found is None else found

    def _evaluated(self, spec: Spec, r: float, rows: int) -> int:
        return _evaluation(spec, r, rows, self.bn == "static")

    def _rows(self, spec: Spec, r: float, info: ClientInfo) -> int | None:
        return eligible.rows_at_once(info, functools.partial(self._evaluated, spec, r))

    def measures(self, spec: Spec, round: int, rounds: int) -> bool:
        """Whether clients compute statistics in this round, the last one of several, and train nothing."""
        return self.bn == "static" and 1 < round == rounds and bool(models.normalisation(spec))

    def weights(self, spec: Spec, model: Tree) -> dict[str, Any]:
        """What travels of a model of any width: without statistics where these are static."""
        left_out = statistics(spec) if self.bn == "static" else frozenset[str]()
        return tree.unflatten({name: leaf for name, leaf in tree.flatten(model).items() if name not in left_out})

    def part(self, spec: Spec, model: Tree, r: float, shift: int = 0) -> dict[str, Any]:
        """Width `r` of what the server has of the model, its windows moved on by `shift`."""
        return narrow.part(model, narrow.places(spec, narrowed(spec, r), shift))

    def visit(self, spec: Spec, task: Task, model: Tree, data: Batch, key: Key) -> tuple[Tree, Tensor, float]:
        """Train what was sent of the model `spec`: it after E epochs, the labels of the rows (k,), the loss."""
        r, labels = narrow.level(spec, model), torch.unique(data["y"])
        loss = functools.partial(narrow.loss, narrowed(spec, r), task, 1 / r if self.scaler else 1.0)
        given = {"absent": ~torch.isin(torch.arange(spec.classes, device=labels.device), labels)} if self.masked else {}
        step, params = Step(loss, {"model": self.optimiser()}), {"model": complete(narrowed(spec, r), model)}
        tuned, mean = train([step], params, given, self.visits(data, key / "batches"), key / "noise")
        return self.weights(spec, tuned["model"]), labels, mean

    def sent(self, spec: Spec, tuned: Tree, labels: Tensor) -> dict[str, Any]:
        """What a client sends of it: with `masked` the labels, and of the header the rows of these only."""
        if not self.masked:
            return {"model": tuned}
        by_class = _by_class(spec)
        flat = {name: leaf[labels] if name in by_class else leaf for name, leaf in tree.flatten(tuned).items()}
        return {"model": tree.unflatten(flat), "labels": labels}

    def holds(self, spec: Spec, r: float, shift: int, up: Mapping[str, Any]) -> dict[str, Places]:
        """Where in the whole model what a client of width `r` has sent belongs."""
        whole, found = narrow.shapes(spec), dict(narrow.places(spec, narrowed(spec, r), shift))
        if self.masked:
            for name in _by_class(spec):
                rest = found[name][1:] or tuple(map(torch.arange, whole[name].shape[1:]))
                found[name] = (up["labels"], *rest)
        left_out = statistics(spec) if self.bn == "static" else frozenset[str]()
        return {name: where for name, where in found.items() if name not in left_out}

    def measured(self, spec: Spec, info: ClientInfo, model: Tree, data: Batch, key: Key) -> dict[str, Any]:
        """A model of any width, with the statistics of the client's own rows; two rows at least."""
        r = narrow.level(spec, model)
        own, rows = narrowed(spec, r), self._rows(spec, r, info) or self.batch_size
        visits = batches(data, max(2, min(rows, self.batch_size)), 1, key / "order")
        return recomputed(own, complete(own, model), (batch["x"] for batch in visits), key / "noise")

    @staticmethod
    def averaged(arrivals: Sequence[Arrival[Any]], predicted: Callable[[ClientInfo], float]) -> dict[str, Any]:
        """Σ n_k s_k / Σ n_k of the statistics s_k of the clients that predict with width r: by r as it is written."""
        by_width: dict[str, list[Arrival[Any]]] = {}
        for arrival in arrivals:
            by_width.setdefault(str(predicted(arrival.info)), []).append(arrival)
        return {r: average(alike, "statistics") for r, alike in by_width.items()}

    def ready(self, spec: Spec, info: ClientInfo, down: Mapping[str, Any], data: Batch, key: Key) -> dict[str, Any]:
        """What `outputs` takes. "down" has the statistics that the client was sent, else those of its own rows.

        Of what an exported model keeps of "down" it is made again without rows.
        """
        model: Tree = down["wide"] if "wide" in down else down["model"]
        r = narrow.level(spec, model)
        own = narrowed(spec, r)
        if "statistics" in down:
            model = tree.merge(model, down["statistics"])
        elif self.bn == "static" and len(data["y"]) > 1:
            model = self.measured(spec, info, model, data, key)
        return {"spec": own, "rows": self._rows(spec, r, info), "down": {"wide": complete(own, model)}}

    def outputs(self, ready: Mapping[str, Any], x: Tensor) -> Tensor:
        """Logits (B, classes)."""
        logits = functools.partial(models.logits, ready["spec"], ready["down"]["wide"])
        return eligible.in_parts(logits, x, ready["rows"])


def statistics(spec: Spec) -> frozenset[str]:
    """The statistics of BatchNorm layers by name."""
    return frozenset(name for name in models.normalisation(spec) if "/~" in name)


def statistics_of(spec: Spec, model: Tree) -> dict[str, Any]:
    """The statistics alone."""
    found = statistics(spec)
    return tree.unflatten({name: leaf for name, leaf in tree.flatten(model).items() if name in found})


def complete(spec: Spec, model: Tree) -> dict[str, Any]:
    """The model, with the statistics that it starts with where it has none."""
    return tree.merge(statistics_of(spec, models.initial(spec, _KEY)), model)


@functools.lru_cache(maxsize=64)
def _by_class(spec: Spec) -> frozenset[str]:
    """The leaves of the header that have a row for each class."""
    leaves = narrow.shapes(spec).items()
    return frozenset(n for n, leaf in leaves if n.startswith("header/") and leaf.shape[:1] == (spec.classes,))


@functools.cache
@on_real_tensors
def _training(spec: Spec, r: float, task: Task, optimiser: SGD, n: int, scaler: bool) -> tuple[int, float]:
    """Need in bytes, and operations a row."""
    own, absent = narrowed(spec, r), torch.empty(spec.classes, dtype=torch.bool, device="meta")
    loss = functools.partial(narrow.loss, own, task, 1 / r if scaler else 1.0)
    params = {"model": shapes_of(models.initial(own, _KEY))}
    work = sgd(loss, params, optimiser, rows(spec.input, n), {"absent": absent})
    trained, scored = predict(work), predict(stages.evaluated_whole(own, n))
    return needs.with_headroom(max(trained.bytes, scored.bytes)), trained.flops / n


@functools.cache
@on_real_tensors
def _evaluation(spec: Spec, r: float, n: int, static: bool) -> int:
    own = narrowed(spec, r)
    anew = evaluation(functools.partial(_anew, own), shapes_of(models.initial(own, _KEY)), rows(spec.input, n))
    return needs.of(stages.evaluated_whole(own, n), *([anew] if static else []))


def _anew(spec: Spec, weights: Tree, batch: Batch) -> Tree:
    return recomputed(spec, weights, [batch["x"]], _KEY)
