"""What a client needs for a piece of work: the predicted peak, and room beside it.

A method compares these with budgets. They include evaluation at `rows` rows at once, which is how a client with a
budget is evaluated. Each is predicted once a process; `peak` and the functions ending in `_peak` leave out the room.
"""

from __future__ import annotations

import functools

from ..local import SGD
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


@functools.cache
def whole_peak(spec: Spec, task: Task, optimiser: SGD, rows: int) -> int:
    """Training of the whole model, and its evaluation."""
    return peak(stages.whole(spec, task, optimiser, rows), stages.evaluated_whole(spec, rows))


@functools.cache
def step_peak(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> int:
    """Training of a step's block, proxies and header beside frozen blocks, and evaluation of its sub-model."""
    return peak(stages.step(sub, task, optimiser, rows, frozen_train), stages.evaluated(sub, rows))


@functools.cache
def mapping_peak(sub: SubModel, optimiser: SGD, task: Task, rows: int) -> int:
    """Distillation of a step's block into its proxy, and evaluation of its sub-model. No task is read: logits are."""
    return peak(stages.mapping(sub, optimiser, rows), stages.evaluated(sub, rows))


def whole(spec: Spec, task: Task, optimiser: SGD, rows: int) -> int:
    """Need of the whole model's training at batches of `rows` rows, in bytes."""
    return with_headroom(whole_peak(spec, task, optimiser, rows))


def step(sub: SubModel, task: Task, optimiser: SGD, rows: int, frozen_train: bool = False) -> int:
    """Need of a step's training, in bytes; `frozen_train` as `progressive.forward` has it."""
    return with_headroom(step_peak(sub, task, optimiser, rows, frozen_train))


def mapping(sub: SubModel, optimiser: SGD, task: Task, rows: int) -> int:
    """Need of a step's mapping, in bytes."""
    return with_headroom(mapping_peak(sub, optimiser, task, rows))
