"""The chain cut by cost: against every partition there is, within a budget, and by predicted memory."""

from __future__ import annotations

import itertools
import random

import pytest
import works

from unalike.errors import InputError
from unalike.memory import partition, stages
from unalike.memory.predict import predict
from unalike.models.progressive import SubModel
from unalike.protocol import Spec


def additive(weights: list[float]) -> partition.Cost:
    return lambda i, rest: sum(weights[i : rest[0]]) ** 1.5 + 2 * i


def units(size: int) -> partition.Cost:
    return lambda i, rest: size * sum((1, 1, 1, 5, 1)[i : rest[0]])


def every(units: int, cost: partition.Cost, steps: int) -> float:
    """The least peak over all partitions, one by one."""
    inner = itertools.combinations(range(1, units), steps - 1)
    return min(max(cost(a, (*c, units)[t:]) for t, a in enumerate((0, *c))) for c in inner)


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8])
@pytest.mark.parametrize("seed", range(4))
def test_no_partition_has_a_smaller_peak(steps: int, seed: int) -> None:
    cost = additive([random.Random(seed).uniform(1, 9) for _ in range(8)])
    found = partition.best(8, cost, steps)
    assert found.peak == pytest.approx(every(8, cost, steps))
    assert found.cuts[0] == 0
    assert found.cuts[-1] == 8
    assert len(found.costs) == steps


def test_by_hand() -> None:
    """Units of 1, 1, 1, 5, 1 in two blocks: 3 beside 6; in three the 5 stands alone."""
    cost = units(1)
    assert partition.best(5, cost, 2) == partition.Partition((0, 3, 5), (3, 6))
    assert partition.best(5, cost, 3).peak == 5


def test_costs_see_the_cuts_after_them() -> None:
    seen: set[tuple[int, ...]] = set()

    def cost(i: int, rest: tuple[int, ...]) -> float:
        seen.add((i, *rest))
        return rest[0] - i + 10 * len(rest)

    found = partition.best(4, cost, 3)
    assert found.costs == tuple(cost(c, found.cuts[t + 1 :]) for t, c in enumerate(found.cuts[:-1]))
    assert all(path[-1] == 4 for path in seen)


def test_the_fewest_blocks_within_a_budget() -> None:
    cost = units(2**20)
    assert len(partition.fewest(5, cost, 2**20 * 6).costs) == 2
    assert len(partition.fewest(5, cost, 2**20 * 5).costs) == 3
    assert len(partition.fewest(5, cost, 2**20 * 9).costs) == 1
    with pytest.raises(
        InputError, match=r"no partition into at most 5 blocks fits 4\.0 MiB: the least need is 5\.0 MiB"
    ):
        partition.fewest(5, cost, 2**20 * 4)
    with pytest.raises(InputError, match=r"at most 1 blocks fits 4\.0 MiB: the least need is 9\.0 MiB, in step 1"):
        partition.fewest(5, cost, 2**20 * 4, most=1)


@pytest.mark.parametrize("steps", [0, 6])
def test_more_blocks_than_units_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="a chain of 5 units has between 1 and 5 blocks"):
        partition.best(5, additive([1] * 5), steps)


def test_a_models_costs_are_the_predictions_of_its_steps() -> None:
    found = partition.costs(works.SPEC, (0, 3, 9), works.TASK, works.OPTIMISER, 16)
    subs = [SubModel(works.SPEC, (0, 3, 9), t) for t in (1, 2)]
    assert found.costs == tuple(predict(stages.step(s, works.TASK, works.OPTIMISER, 16)).bytes for s in subs)


def test_a_partition_by_memory_is_the_least_of_all_and_fits_its_budget() -> None:
    spec, units = Spec("cnn-5(norm=True)", (3, 16, 16), 4), 4
    cost = partition.step_cost(spec, works.TASK, works.OPTIMISER, 32)
    found = partition.partition(spec, works.TASK, works.OPTIMISER, 32, steps=2)
    assert found.peak == every(units, cost, 2) < cost(0, (units,))
    fitted = partition.partition(spec, works.TASK, works.OPTIMISER, 32, budget=found.peak)
    assert fitted == found


def test_for_a_fleet_the_budget_is_that_of_the_poorest_who_are_to_take_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of five clients 0.6 are three: the third largest budget counts, less its headroom; unlimited ones are largest."""
    asked: list[tuple[int | None, float | None]] = []

    def partitioned(*work: object) -> None:
        asked.append(work[-2:])  # type: ignore[arg-type]

    monkeypatch.setattr(partition, "partition", partitioned)
    work = (works.SPEC, works.TASK, works.OPTIMISER, 16)
    for budgets, rho in (([110, 550, None, 220, 330], 0.6), ([110, 550, None, 220, 330], 1.0), ([None, None, 7], 0.5)):
        partition.for_fleet(*work, budgets, 99, rho)
    assert asked == [(9, pytest.approx(300)), (9, pytest.approx(100)), (9, None)]


def test_cuts_are_read_as_they_are_written_down() -> None:
    assert partition.read("paper", works.SPEC) == works.CUTS
    assert partition.read("0,4,9", works.SPEC) == (0, 4, 9)
    for wrong in ("auto", "0, 4", "", "0,-1"):
        with pytest.raises(InputError, match="it should be paper, auto or units such as 0,3,5,7,9"):
            partition.read(wrong, works.SPEC)


def test_a_chain_that_breaks_and_a_partition_without_a_goal_are_refused() -> None:
    with pytest.raises(InputError, match="needs a number of steps or a budget"):
        partition.partition(works.SPEC, works.TASK, works.OPTIMISER, 8)
    single = Spec("torch.nn:Linear(in_features=3, out_features=4)", (3,), 4)
    with pytest.raises(InputError, match="has no final"):
        partition.partition(single, works.TASK, works.OPTIMISER, 8, steps=2)
