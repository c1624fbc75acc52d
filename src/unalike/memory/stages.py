"""The pieces of work of progressive training, to be predicted or measured: steps, mapping, evaluation, the whole model.

Weights are shapes here (the meta device): nothing of them is held.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import Tensor

from .. import models
from ..local import SGD
from ..models import progressive
from ..models.progressive import SubModel
from ..protocol import Batch, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from .work import Work, evaluation, rows, sgd, shapes_of

KEY = Key.root(0)


def whole(spec: Spec, task: Task, optimiser: SGD, n: int) -> Work:
    """Training of the whole model on batches of `n` rows."""
    loss = functools.partial(models.supervised_loss, spec, task)
    return sgd(loss, {"model": shapes_of(models.initial(spec, KEY))}, optimiser, rows(spec.input, n))


def evaluated_whole(spec: Spec, n: int) -> Work:
    """Logits of the whole model for `n` rows, in evaluation mode."""
    return evaluation(functools.partial(_whole_logits, spec), shapes_of(models.initial(spec, KEY)), rows(spec.input, n))


def step(sub: SubModel, task: Task, optimiser: SGD, n: int, frozen_train: bool = False) -> Work:
    """Training of a step's active block, proxies and header beside its frozen blocks."""
    weights = _branches(sub)
    loss = functools.partial(progressive.supervised_loss, sub, task, frozen_train=frozen_train)
    given = {"frozen": weights.pop("frozen")}
    return sgd(loss, {"model": weights}, optimiser, rows(sub.spec.input, n), given)


def mapping(sub: SubModel, optimiser: SGD, n: int) -> Work:
    """Distillation of a step's active block into its proxy: the teacher's pass without gradients and the student's.

    In the last step the student's header trains along.
    """
    weights = _branches(sub)
    params = {"proxy": shapes_of(progressive.proxy(sub, sub.step, KEY))}
    if sub.step == sub.steps:
        params["header"] = weights["header"]
    loss = functools.partial(progressive.mapping_loss, sub)
    return sgd(loss, {"model": params}, optimiser, rows(sub.spec.input, n), weights)


def evaluated(sub: SubModel, n: int) -> Work:
    """Logits of a step's sub-model for `n` rows, in evaluation mode. The last step is the whole model."""
    return evaluation(functools.partial(_logits, sub), _branches(sub), rows(sub.spec.input, n))


def _logits(sub: SubModel, weights: Tree, batch: Batch) -> Tensor:
    return progressive.forward(sub, weights, batch["x"])


def _whole_logits(spec: Spec, weights: Tree, batch: Batch) -> Tensor:
    return models.logits(spec, weights, batch["x"])


def _branches(sub: SubModel) -> dict[str, Any]:
    return shapes_of(progressive.initial(sub, KEY))
