"""What each method is tried with: how it is written, how much of it, and equally much for all."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from unalike.algorithms import find
from unalike.comparison.tuning import Range, points, read_axes
from unalike.errors import InputError
from unalike.rng import Key

KEY = Key.root(0)
TWO = {"standalone": find("standalone"), "fedprox": find("fedprox")}


@pytest.mark.parametrize(
    ("given", "axes"),
    [
        ("lr=0.1|0.3", {"lr": (0.1, 0.3)}),
        ("lr=0.1,0.3", {"lr": (0.1, 0.3)}),
        ("lr=0.1,0.3, mu = 1|2 ,mixing=fixed", {"lr": (0.1, 0.3), "mu": (1, 2), "mixing": ("fixed",)}),
        ("lr=0.01..0.3", {"lr": Range(0.01, 0.3)}),
        ("lr=1e-3..1,mu=0..1", {"lr": Range(0.001, 1.0), "mu": Range(0.0, 1.0)}),
        ("local-epochs=1|5|1", {"local_epochs": (1, 5)}),
        ("lg-fedavg.local-epochs=1", {"lg-fedavg.local_epochs": (1,)}),
        ("lr=0.1|", {"lr": (0.1,)}),
        ({"lr": [0.1, 0.1, 0.3], "mu": "0.1..1"}, {"lr": (0.1, 0.3), "mu": Range(0.1, 1.0)}),
        ({"widths": [[1, 2], [3]]}, {"widths": ([1, 2], [3])}),
        ({"local-epochs": 3}, {"local_epochs": (3,)}),
    ],
    ids=str,
)
def test_how_it_is_written(given: Any, axes: dict[str, Any]) -> None:
    found = read_axes(given)
    assert found == axes
    assert [[type(v) for v in axis] for axis in found.values() if isinstance(axis, tuple)] == [
        [type(v) for v in axis] for axis in axes.values() if isinstance(axis, tuple)
    ]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "names no parameter"),
        ({}, "names no parameter"),
        (3, "--tune 3 cannot be read"),
        ("lr", "--tune lr cannot be read: write --tune"),
        ("lr=", "lr has nothing to try"),
        ("lr=|", "lr has nothing to try"),
        ({"lr": []}, "lr has nothing to try"),
        ("lr=3..1", "the first number must be the smaller one"),
        ("lr=1..1", "the first number must be the smaller one"),
        ("lr=0..inf", "the first number must be the smaller one"),
        ("lr=nan..1", "the first number must be the smaller one"),
        ("lr=a..b", "lr=a..b is no range"),
        ("lr=..1", "lr=..1 is no range"),
        ("lr=0.1..0.3,0.5", "is no range"),
    ],
    ids=str,
)
def test_what_cannot_be_read(given: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_axes(given)
    assert words in str(caught.value)


def test_a_range_is_even_in_its_logarithm_where_it_can_be() -> None:
    """√(0.01 · 1) = 0.1 is the middle; from 0 on it is even; four digits never lead out of it."""
    assert Range(0.01, 1.0).draw(0.5) == 0.1
    assert Range(0.0, 2.0).draw(0.25) == 0.5
    assert Range(0.12344, 9.8766).draw(0.0) == 0.12344
    assert Range(0.12344, 9.8766).draw(1.0) == 9.8766


def test_all_combinations_where_all_methods_have_as_many() -> None:
    found = points(TWO, read_axes("lr=0.1|0.3,local_epochs=1|2"), None, KEY)
    grid = [{"lr": lr, "local_epochs": e} for lr, e in itertools.product((0.1, 0.3), (1, 2))]
    assert found == {"standalone": grid, "fedprox": grid}


def test_equally_many_trials_for_each_method() -> None:
    """FedProx has 3 · 4 combinations, standalone 3: three different ones of each."""
    axes = read_axes("lr=0.1|0.2|0.3,mu=0|1|2|3")
    found = points(TWO, axes, None, KEY)
    assert found["standalone"] == [{"lr": 0.1}, {"lr": 0.2}, {"lr": 0.3}]
    chosen = [(point["lr"], point["mu"]) for point in found["fedprox"]]
    assert len(set(chosen)) == len(chosen) == 3
    assert set(chosen) <= set(itertools.product((0.1, 0.2, 0.3), (0, 1, 2, 3)))
    assert points(TWO, axes, None, KEY) == found
    assert len({str(points(TWO, axes, None, Key.root(seed))["fedprox"]) for seed in range(6)}) > 3
    assert [len(p) for p in points(TWO, axes, 2, KEY).values()] == [2, 2]


def test_a_range_of_a_parameter_that_counts_has_whole_numbers() -> None:
    """And one of a step size has not, however it is written."""
    tried = points(TWO, read_axes("local_epochs=1..5,lr=1..5"), 6, KEY)["fedprox"]
    assert {type(point["local_epochs"]) for point in tried} == {int}
    assert {1 <= point["local_epochs"] <= 5 for point in tried} == {True}
    assert any(point["lr"] != round(point["lr"]) for point in tried)


def test_a_range_is_drawn_at_random() -> None:
    found = points(TWO, read_axes("lr=0.01..1"), None, KEY)
    assert [len(p) for p in found.values()] == [8, 8]
    drawn = [point["lr"] for p in found.values() for point in p]
    assert len(set(drawn)) == 16
    assert 0.01 <= min(drawn) < 0.1 < max(drawn) <= 1
    assert len(points(TWO, read_axes("lr=0.01..1,local_epochs=1|2"), 5, KEY)["fedprox"]) == 5


def test_a_list_for_one_method_goes_before_the_one_for_all() -> None:
    found = points(TWO, read_axes("lr=0.1|0.2,fedprox.lr=1|2"), None, KEY)
    assert found == {"standalone": [{"lr": 0.1}, {"lr": 0.2}], "fedprox": [{"lr": 1}, {"lr": 2}]}


def test_a_method_with_a_hyphen_has_lists_of_its_own() -> None:
    kinds = {"lg-fedavg": find("lg-fedavg")}
    assert points(kinds, read_axes("lg-fedavg.local-epochs=1|2"), None, KEY) == {
        "lg-fedavg": [{"local_epochs": 1}, {"local_epochs": 2}]
    }


def test_nothing_is_tuned() -> None:
    assert points(TWO, {}, None, KEY) == {"standalone": [], "fedprox": []}


@pytest.mark.parametrize(
    ("given", "trials", "words"),
    [
        ("mu=0|1", None, "standalone has none of the parameters tuned, mu"),
        ("lr=1|2,nope=1", None, "--tune nope: none of standalone, fedprox has this parameter"),
        ("lr=1|2,clients=2|3", None, "--tune clients: none of standalone, fedprox has this parameter"),
        ("lr=1|2,nobody.lr=1", None, "--tune nobody.lr: none of standalone, fedprox"),
        ("lr=1|2,fedprox.nope=1", None, "fedprox has no parameter nope; it has rounds"),
        ("lr=1|2,mu=1|2", 3, "standalone has 2 combinations of lr for 3 trials: list more values, give a range"),
    ],
)
def test_what_cannot_be_tuned(given: str, trials: int | None, words: str) -> None:
    with pytest.raises(InputError) as caught:
        points(TWO, read_axes(given), trials, KEY)
    assert words in str(caught.value)
