"""What a client needs for a piece of work: the predicted peak, and room beside it.

A method compares these with budgets. They include evaluation at `rows` rows at once, which is how a client with a
budget is evaluated. Each is predicted once a process; the functions ending in `_peak` leave out the room, those ending
in `_flops` give the floating-point operations of training for each row.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from ..local import SGD
from ..models import on_real_tensors
from ..models.progressive import SubModel
from ..protocol import Spec
from ..tasks import Task
from . import stages
from .predict import predict
from .work import Work

HEADROOM = 1.10
"""Need over predicted peak: for what allocators round up, and kernels take on other machines."""


def peak(*works: Work) -> int:
    """Bytes of the largest predicted peak."""
    return max(predict(work).bytes for work in works)


def with_headroom(bytes: int) -> int:
    """ceil(`HEADROOM` · bytes), exactly."""
    return -(-bytes * round(100 * HEADROOM) // 100)


def of(*works: Work) -> int:
    """The need of a client that does all these, one after the other."""
    return with_headroom(peak(*works))


@dataclass(frozen=True, slots=True)
class _Found:
    """Of training and the evaluation beside it."""

    peak: int
    flops: float
    """Of training, a row."""


def _found(training: Work, evaluation: Work, rows: int) -> _Found:
    trained, scored = predict(training), predict(evaluation)
    return _Found(max(trained.bytes, scored.bytes), trained.flops / rows)


@functools.cache
@on_real_tensors
def _whole(spec: Spec, task: Task, optimiser: SGD, rows: int) -> _Found:
    return _found(stages.whole(spec, task, optimiser, rows), stages.evaluated_whole(spec, rows), rows)


@functools.cache
@on_real_tensors
def _step(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> _Found:
    return _found(stages.step(sub, task, optimiser, rows, frozen_train), stages.evaluated(sub, rows), rows)


@functools.cache
@on_real_tensors
def _mapping(sub: SubModel, optimiser: SGD, rows: int) -> _Found:
    return _found(stages.mapping(sub, optimiser, rows), stages.evaluated(sub, rows), rows)


def whole(spec: Spec, task: Task, optimiser: SGD, rows: int) -> int:
    """Need of the whole model's training at batches of `rows` rows, in bytes."""
    return with_headroom(_whole(spec, task, optimiser, rows).peak)


def whole_peak(spec: Spec, task: Task, optimiser: SGD, rows: int) -> int:
    """Training of the whole model, and its evaluation."""
    return _whole(spec, task, optimiser, rows).peak


def whole_flops(spec: Spec, task: Task, optimiser: SGD, rows: int) -> float:
    """Of the whole model."""
    return _whole(spec, task, optimiser, rows).flops


@functools.cache
@on_real_tensors
def evaluated(spec: Spec, rows: int) -> int:
    """Need of the whole model's evaluation of `rows` rows at once, in bytes."""
    return of(stages.evaluated_whole(spec, rows))


@functools.cache
@on_real_tensors
def evaluated_step(sub: SubModel, rows: int) -> int:
    """Need of the evaluation of a step's sub-model for `rows` rows at once, in bytes."""
    return of(stages.evaluated(sub, rows))


def step(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> int:
    """Need of a step's training, in bytes; `frozen_train` as `progressive.forward` has it."""
    return with_headroom(_step(sub, task, optimiser, rows, frozen_train).peak)


def step_peak(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> int:
    """Training of a step's block, proxies and header beside frozen blocks, and evaluation of its sub-model."""
    return _step(sub, task, optimiser, rows, frozen_train).peak


def step_flops(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> float:
    """Of a step."""
    return _step(sub, task, optimiser, rows, frozen_train).flops


def mapping(sub: SubModel, optimiser: SGD, task: Task, rows: int) -> int:
    """Need of a step's mapping, in bytes. No task is read: logits are."""
    return with_headroom(_mapping(sub, optimiser, rows).peak)


def mapping_peak(sub: SubModel, optimiser: SGD, task: Task, rows: int) -> int:
    """Distillation of a step's block into its proxy, and evaluation of its sub-model."""
    return _mapping(sub, optimiser, rows).peak


def mapping_flops(sub: SubModel, optimiser: SGD, task: Task, rows: int) -> float:
    """Of a mapping."""
    return _mapping(sub, optimiser, rows).flops
