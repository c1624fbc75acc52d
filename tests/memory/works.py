"""Pieces of work for the tests, some by name in a fresh process."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unalike.local import SGD
from unalike.memory import stages
from unalike.memory.work import Work, module_training, rows
from unalike.models.progressive import SubModel
from unalike.protocol import Batch, Spec
from unalike.tasks import Classification

TASK, OPTIMISER = Classification(4), SGD(0.01, 0.9, 5e-4, clip=5.0)
SPEC = Spec("resnet18(width=0.125)", (3, 16, 16), 4)
CUTS = (0, 3, 5, 7, 9)


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs, batch["y"])


def whole(model: str = SPEC.name, side: int = 16, n: int = 8) -> Work:
    return stages.whole(Spec(model, (3, side, side), 4), TASK, OPTIMISER, n)


def step(t: int, n: int = 20, frozen_train: bool = False) -> Work:
    return stages.step(SubModel(SPEC, CUTS, t), TASK, OPTIMISER, n, frozen_train)


def mapping(t: int, n: int = 20) -> Work:
    return stages.mapping(SubModel(SPEC, CUTS, t), OPTIMISER, n)


def evaluated(n: int = 20) -> Work:
    return stages.evaluated(SubModel(SPEC, CUTS, 4), n)


def plain(module: nn.Module, input: tuple[int, ...], n: int, momentum: float = 0.0) -> Work:
    """PyTorch's loop with SGD."""
    optimiser = functools.partial(torch.optim.SGD, lr=0.1, momentum=momentum)
    return module_training(module, cross_entropy, optimiser, rows(input, n))


def broken() -> Work:
    def run(held: object, mark: object) -> None:
        raise ValueError("no such thing")

    return Work({}, run)


def no_work() -> int:
    return 3
