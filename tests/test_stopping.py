"""Effective movement on movements that are known, and each condition of the two rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unalike import tree
from unalike.rng import Key
from unalike.stopping import EffectiveMovement, Plateau, is_level, movement, sample, slope

H, N = 20, 10_000


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=Key.root(seed).torch())


def watched(rule: EffectiveMovement, models: Any) -> list[dict[str, Tensor]]:
    """What is remembered after each of the models but the first."""
    first, *others = ({"w": model} for model in models)
    known = [rule.start(first)]
    for block in others:
        known.append(rule.observe(known[-1], block))
    return known[1:]


def test_by_hand() -> None:
    """(0, 0), (1, 0), (1, 2), (0, 2): the way is 1 + 2 + 1, and led from (0, 0) to (0, 2)."""
    assert float(movement(torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 2.0], [0.0, 2.0]]))) == 0.5


def test_a_straight_line_is_1() -> None:
    line = torch.arange(H + 1)[:, None] * normal(1, N)
    assert float(movement(line)) == pytest.approx(1.0, abs=1e-6)


def test_jitter_about_a_place_is_1_over_h() -> None:
    there_and_back = torch.stack([normal(k % 2, N) for k in range(6)])
    assert float(movement(there_and_back)) == pytest.approx(1 / 5, abs=1e-6)
    assert float(movement(normal(2, N) + normal(3, H + 1, N))) == pytest.approx(1 / H, rel=0.02)


def test_a_random_walk_is_1_over_the_root_of_h() -> None:
    assert float(movement(normal(4, H + 1, N).cumsum(0))) == pytest.approx(H**-0.5, rel=0.02)


def test_nothing_that_moves_is_0() -> None:
    assert float(movement(torch.ones(3, 4))) == 0.0


def test_the_slope_is_that_of_least_squares() -> None:
    """Of 1, 3, 2 it is (−1 · 1 + 1 · 2) / 2."""
    assert float(slope(torch.tensor([1.0, 3.0, 2.0]).double())) == pytest.approx(0.5)
    values = normal(5, 20).double()
    assert float(slope(values)) == pytest.approx(np.polyfit(range(20), values.numpy(), 1)[0])


def test_level_is_less_than_five_percent_over_all_values() -> None:
    ramp = torch.arange(10).double()
    assert is_level(0.0049 * ramp)
    assert is_level(-0.0049 * ramp)
    assert not is_level(0.0051 * ramp)
    assert not is_level(torch.tensor([0.3]).double())


def test_movement_is_of_the_last_h_models_and_of_none_before() -> None:
    models = normal(6, 9, 50).cumsum(0)
    known = watched(EffectiveMovement(4, 3), models)
    assert [len(k["values"]) for k in known] == [0, 0, 0, 1, 2, 3, 4, 5]
    expected = [float(movement(models[k - 4 : k + 1])) for k in range(4, 9)]
    assert known[-1]["values"].tolist() == pytest.approx(expected)
    assert torch.equal(known[-1]["history"], models[-5:])
    assert int(known[-1]["rounds"]) == 8


def test_the_slope_is_over_the_last_20_values() -> None:
    models = normal(7, 31, 50).cumsum(0)
    rule = EffectiveMovement(4, 3)
    known = watched(rule, models)[-1]
    values = [float(movement(models[k - 4 : k + 1])) for k in range(11, 31)]
    assert known["values"].tolist() == pytest.approx(values)
    assert rule.told(known)["slope"] == pytest.approx(np.polyfit(range(20), values, 1)[0])
    assert rule.told(known)["movement"] == values[-1]


def test_jitter_fires_after_its_patience_and_not_before() -> None:
    """The values are level and low from the second on: that of round H + 1."""
    rule = EffectiveMovement(5, 3)
    known = watched(rule, [normal(k % 2, N) for k in range(12)])
    assert [rule.fires(k) for k in known].index(True) + 1 == 5 + 3
    assert [int(k["calm"]) for k in known] == [0] * 5 + [1, 2, 3, 4, 5, 6]


def test_a_straight_line_is_level_but_never_low() -> None:
    rule = EffectiveMovement(4, 1)
    known = watched(rule, torch.arange(20)[:, None] * normal(1, N))
    assert is_level(known[-1]["values"])
    assert not any(rule.fires(k) for k in known)


def test_movement_that_falls_is_not_level() -> None:
    """Steps that turn from a line to jitter: low at once, level only when the line has left the values."""
    rule = EffectiveMovement(4, 1)
    line = torch.arange(5)[:, None] * normal(1, N)
    known = watched(rule, [*line, *(line[-1] + normal(k % 2, N) for k in range(6))])
    low = [bool(len(k["values"]) and k["values"][-1] < 0.6) for k in known]
    assert any(low)
    assert not rule.fires(known[low.index(True)])


def test_one_round_that_is_not_calm_starts_the_count_again() -> None:
    rule = EffectiveMovement(2, 9)
    models = [normal(k % 2, N) for k in range(8)]
    known = watched(rule, [*models, models[-1] + 50, models[-1] + 100])
    assert [int(k["calm"]) for k in known][-3:] == [5, 0, 0]


def test_no_rule_fires_before_the_least_rounds() -> None:
    rule = EffectiveMovement(5, 3, least=10)
    known = watched(rule, [normal(k % 2, N) for k in range(12)])
    assert [rule.fires(k) for k in known].index(True) + 1 == 10


def test_the_sample_is_fixed_and_of_weights_only() -> None:
    block = {"a": normal(1, 90, 100), "b": normal(2, 4000), "~mean": torch.full((5000,), 9.0)}
    found = sample(block)
    assert found.shape == (N,)
    assert torch.equal(found, sample(tree.clone(block)))
    everything = torch.cat([block["a"].flatten(), block["b"]])
    assert len(set(found.tolist()) - set(everything.tolist())) == 0
    assert len(found.unique()) > 0.99 * N
    assert torch.equal(sample({"w": normal(3, 7)}), normal(3, 7))


def test_what_is_remembered_is_a_tree_and_is_not_written_into() -> None:
    rule = EffectiveMovement(2, 1)
    before = watched(rule, [normal(k % 2, 30) for k in range(6)])[-1]
    copy = tree.clone(before)
    rule.observe(before, {"w": normal(9, 30)})
    assert tree.equal(before, copy)
    back = tree.from_bytes(tree.to_bytes(before))
    assert tree.equal(rule.observe(back, {"w": normal(9, 30)}), rule.observe(before, {"w": normal(9, 30)}))


def seen(rule: Plateau, losses: list[float]) -> list[dict[str, Tensor]]:
    known = [rule.start()]
    for loss in losses:
        known.append(rule.observe(known[-1], loss))
    return known[1:]


def test_the_step_size_is_halved_when_the_loss_rises() -> None:
    found = seen(Plateau(0.8, 9), [3.0, 2.0, 2.5, 2.5, 2.6, 1.0])
    assert [float(k["lr"]) for k in found] == [0.8, 0.8, 0.4, 0.4, 0.2, 0.2]


def test_a_plateau_is_no_fall_of_two_percent_below_the_least() -> None:
    rule = Plateau(0.1, 2)
    found = seen(rule, [1.0, 0.985, 0.97, 0.96, 0.94])
    assert [int(k["idle"]) for k in found] == [0, 1, 0, 1, 0]
    found = seen(rule, [1.0, 1.5, 1.2])
    assert [rule.fires(k) for k in found] == [False, False, True]
    assert rule.told(found[1]) == {"loss": 1.5, "lr": 0.05}
