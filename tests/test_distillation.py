"""What one model learns from another, against numbers worked out with numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unalike.distillation import kl_divergence, mutual, mutual_divergence

A, B = [[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]], [[0.0, 0.0, 0.0], [1.0, 1.0, 3.0]]


def softmax(rows: list[list[float]], temperature: float = 1.0) -> np.ndarray:
    powers = np.exp(np.array(rows) / temperature)
    return powers / powers.sum(1, keepdims=True)


def test_kl_divergence_by_hand() -> None:
    """KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    teacher, student = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, 0.0]])
    expected = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    assert float(kl_divergence(teacher, student)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_divergence_is_the_mean_over_rows_times_the_squared_temperature(temperature: float) -> None:
    p, q = softmax(A, temperature), softmax(B, temperature)
    expected = temperature**2 * (p * np.log(p / q)).sum() / 2
    assert float(kl_divergence(torch.tensor(A), torch.tensor(B), temperature)) == pytest.approx(expected, rel=1e-6)
    assert float(kl_divergence(torch.tensor(A), torch.tensor(A), temperature)) == pytest.approx(0.0, abs=1e-7)


def test_in_mutual_learning_each_has_the_gradient_of_its_own_lesson_alone() -> None:
    """Of a² b for a and of a³ b for b: at a = 2, b = 5 the gradients are 2ab = 20 and a³ = 8."""
    a, b = torch.tensor(2.0, requires_grad=True), torch.tensor(5.0, requires_grad=True)
    loss = mutual(a, b, lambda mine, other: mine**2 * other, lambda mine, other: mine * other**3)
    assert loss.item() == 4 * 5 + 5 * 8
    assert [float(g) for g in torch.autograd.grad(loss, (a, b))] == [20.0, 8.0]


def test_the_mutual_divergence_by_hand() -> None:
    """Σ_i 1/(d − 1) Σ_{j≠i} KL(p_j ‖ p_i), mean over two rows."""
    z = [np.array([[1.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 0.5], [1.0, 1.0]]), np.array([[2.0, 0.0], [0.0, 0.0]])]
    p = [np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in z]
    kl = [[(a * np.log(a / b)).sum(1).mean() for b in p] for a in p]
    expected = sum(kl[j][i] for i in range(3) for j in range(3) if i != j) / 2
    assert float(mutual_divergence([torch.tensor(logits) for logits in z])) == pytest.approx(expected, rel=1e-6)


def test_in_the_mutual_divergence_teachers_are_constants() -> None:
    """d/dz_1 of KL(p_2 ‖ p_1) + KL(p_1 ‖ p_2) is that of the first alone: p_1 − p_2."""
    a, b = torch.tensor([[1.0, 0.0]], requires_grad=True), torch.tensor([[0.0, 0.5]], requires_grad=True)
    gradient = torch.autograd.grad(mutual_divergence([a, b]), a)[0]
    assert torch.allclose(gradient, (a.softmax(1) - b.softmax(1)).detach(), atol=1e-6)
