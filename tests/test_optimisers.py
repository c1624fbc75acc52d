"""AdamW, against torch's own and by hand. SGD is held against torch's in `test_local`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from unalike.optimisers import AdamW, Memory
from unalike.rng import Key


def steps(optimiser: AdamW, weights: list[Tensor], gradients: list[list[Tensor]]) -> list[Tensor]:
    memory: Memory = {}
    found = [w.clone() for w in weights]
    for each in gradients:
        optimiser.update(found, each, memory)
    return found


def draw(count: int) -> list[Tensor]:
    generator = Key.root(count).torch()
    return [torch.randn(shape, generator=generator) for shape in ((3, 4), (5,))]


@pytest.mark.parametrize(
    ("decay", "clip", "count"), [(0.0, math.inf, 0), (0.1, math.inf, 0), (0.0, 0.5, 0), (0.1, 1.0, 6), (0.0, 1.0, 4)]
)
def test_it_is_torchs_adamw_to_the_bit(decay: float, clip: float, count: int) -> None:
    """With weight decay, clipping, and the step size falling linearly to 0 over `count` steps."""
    weights, gradients = draw(0), [draw(i) for i in range(1, 5)]
    theirs = [w.clone().requires_grad_() for w in weights]
    theirs_by: Any = torch.optim.AdamW(theirs, lr=0.01, weight_decay=decay, foreach=True)
    falling = torch.optim.lr_scheduler.LambdaLR(theirs_by, lambda t: (count - t) / count if count else 1.0)
    for each in gradients:
        for w, g in zip(theirs, each, strict=True):
            w.grad = g.clone()
        if clip < math.inf:
            torch.nn.utils.clip_grad_norm_(theirs, clip)
        theirs_by.step()
        falling.step()
    ours = steps(AdamW(0.01, decay, clip, count), weights, gradients)
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))


def test_vectors_may_be_left_out_of_weight_decay() -> None:
    """As torch's own with a group without decay for what has one dimension, to the bit."""
    weights, gradients = draw(0), [draw(i) for i in range(1, 4)]
    theirs = [w.clone().requires_grad_() for w in weights]
    groups = [{"params": [w], "weight_decay": 0.1 if w.ndim > 1 else 0.0} for w in theirs]
    theirs_by: Any = torch.optim.AdamW(groups, lr=0.01, foreach=True)
    for each in gradients:
        for w, g in zip(theirs, each, strict=True):
            w.grad = g.clone()
        theirs_by.step()
    ours = steps(AdamW(0.01, 0.1, decays_vectors=False), weights, gradients)
    assert all(a.equal(b) for a, b in zip(ours, theirs, strict=True))
    alone = AdamW(0.01, 0.1, decays_vectors=False)
    assert steps(alone, weights[1:], [g[1:] for g in gradients])[0].equal(ours[1])


def test_the_first_step_by_hand() -> None:
    """m̂ = g and √v̂ = |g|, so that it is lr · g / (|g| + eps): 1 − 0.1 · 2 / 2 and 1 + 0.1."""
    (found,) = steps(AdamW(0.1), [torch.ones(2)], [[torch.tensor([2.0, -3.0])]])
    assert found.tolist() == pytest.approx([0.9, 1.1])


def test_the_last_of_its_steps_is_lr_over_their_number() -> None:
    """Equal gradients move by η_t each: 0.3 (3 + 2 + 1) / 3 = 0.6; a fourth step would not move at all."""
    equal = [[torch.ones(1)]] * 4
    assert steps(AdamW(0.3, steps=3), [torch.zeros(1)], equal[:3])[0].item() == pytest.approx(-0.6)
    assert steps(AdamW(0.3, steps=3), [torch.zeros(1)], equal)[0].item() == pytest.approx(-0.6)


def test_gradients_are_not_written_into() -> None:
    g = torch.full((3,), 9.0)
    steps(AdamW(0.1, clip=0.1), [torch.zeros(3)], [[g], [g]])
    assert g.eq(9).all()
