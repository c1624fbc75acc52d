"""What one model learns from the outputs of another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

Lesson: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""lesson(student, teacher): a loss of the student's outputs beside the teacher's."""


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float = 1.0) -> Tensor:
    """τ² · KL(softmax(teacher / τ) ‖ softmax(student / τ)), mean over the rows; both are logits (B, classes).

    The factor τ² keeps the gradient's size independent of τ (Hinton, Vinyals, Dean 2015). Detach whichever of the two
    is not to learn.
    """
    targets, log_outputs = F.log_softmax(teacher / temperature, 1), F.log_softmax(student / temperature, 1)
    return temperature**2 * F.kl_div(log_outputs, targets, reduction="batchmean", log_target=True)


def mutual(a: Tensor, b: Tensor, lesson_of_a: Lesson, lesson_of_b: Lesson) -> Tensor:
    """lesson_of_a(a, b) + lesson_of_b(b, a), where whoever teaches is a constant.

    So one backward pass of the sum gives each model the gradient of its own lesson and nothing of the other's: both
    learn at once from one forward pass each (deep mutual learning, Zhang, Xiang, Hospedales, Lu 2018).
    """
    return lesson_of_a(a, b.detach()) + lesson_of_b(b, a.detach())


def mutual_divergence(z: Sequence[Tensor]) -> Tensor:
    """Σ_i 1/(d − 1) Σ_{j≠i} KL(p_j ‖ p_i) of d > 1 logits (B, classes), p = softmax(z), each teacher p_j a constant."""
    pairs = [kl_divergence(z[j].detach(), z[i]) for i in range(len(z)) for j in range(len(z)) if j != i]
    return torch.stack(pairs).sum() / (len(z) - 1)
