"""Every reported figure, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from unalike.summary import (
    difference,
    forgetting,
    half_width,
    over_clients,
    over_seeds,
    pooled_at,
    rounds_to,
    share_ahead,
    until,
    with_interval,
)

T1, T2 = 12.706205, 4.302653
"""97.5 % quantiles of Student's distribution with one and two degrees of freedom."""


def test_statistics_over_clients() -> None:
    """Eleven clients at 0, 0.1, ..., 1: Σx = 5.5, Σx² = 3.85; ceil(11 / 10) = 2 lowest and highest."""
    scores = {str(client): ((client * 7) % 11) / 10 for client in range(11)}
    found = over_clients(scores, dict.fromkeys(scores, 3.0))
    assert (found["mean"], found["weighted_mean"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert found["std"] == pytest.approx(0.1**0.5)
    assert (found["worst"], found["best"]) == (0.0, 1.0)
    assert found["worst_decile"] == pytest.approx(0.05)
    assert found["best_decile"] == pytest.approx(0.95)
    assert found["jain"] == pytest.approx(5.5**2 / (11 * 3.85))
    assert found["per_client"] == scores
    ten = {str(client): client / 10 for client in range(1, 11)}
    found = over_clients(ten, dict.fromkeys(ten, 1.0))
    assert (found["worst_decile"], found["best_decile"]) == (0.1, 1.0)


def test_the_weighted_mean_counts_rows() -> None:
    """(10 · 0.2 + 30 · 0.6) / 40 = 0.5, where the mean is 0.4."""
    found = over_clients({"a": 0.2, "b": 0.6}, {"a": 10, "b": 30, "somebody else": 1000})
    assert (found["mean"], found["weighted_mean"]) == (pytest.approx(0.4), pytest.approx(0.5))


@pytest.mark.parametrize(
    ("scores", "expected"), [([0.3] * 4, 1), ([1, 0, 0, 0], 1 / 4), ([0.2, 0.6], 0.8**2 / 0.8), ([0, 0], 1)]
)
def test_jains_index(scores: list[float], expected: float) -> None:
    """(Σx)² / (N Σx²): 1 if all are equal, 1 / N if one has all."""
    named = {str(i): score for i, score in enumerate(scores)}
    assert over_clients(named, dict.fromkeys(named, 1.0))["jain"] == pytest.approx(expected)


def test_students_interval() -> None:
    """Of 0 and 1: t₁ · √(0.5 / 2) = t₁ / 2; of 1, 2, 3: t₂ · 1 / √3; of one value there is none."""
    assert half_width([0.0, 1.0]) == pytest.approx(T1 / 2, rel=1e-6)
    assert half_width([1.0, 2.0, 3.0]) == pytest.approx(T2 / 3**0.5, rel=1e-6)
    assert half_width([0.7]) is None
    assert half_width([0.7, 0.7, 0.7]) == pytest.approx(0, abs=1e-12)


def test_the_difference_is_paired_by_seed() -> None:
    """Gaps of 0.1, 0.2, 0.3: 0.2 ± t₂ · 0.1 / √3, however far apart the seeds are; seed 9 has no partner."""
    ours, theirs = {2: 0.6, 0: 0.1, 1: 0.9, 9: 1.0}, {0: 0.0, 1: 0.7, 2: 0.3}
    found = difference(ours, theirs, "standalone")
    assert found is not None
    assert found["to"] == "standalone"
    assert found["per_seed"] == pytest.approx([0.1, 0.2, 0.3])
    assert found["mean"] == pytest.approx(0.2)
    assert found["ci95"] == pytest.approx(T2 * 0.1 / 3**0.5, rel=1e-6)
    assert difference({0: 0.5}, {0: 0.75}, "x") == {"to": "x", "mean": -0.25, "ci95": None, "per_seed": [-0.25]}
    assert difference({0: 0.5}, {1: 0.75}, "x") is None


def test_a_tie_is_not_ahead() -> None:
    assert share_ahead({"a": 0.5, "b": 0.5, "c": 0.9}, {"a": 0.4, "b": 0.5, "c": 1.0}) == pytest.approx(1 / 3)


def test_bytes_until_the_target() -> None:
    """Both ways, to the end of the first round that reaches it; a round that was not evaluated reaches nothing."""
    rounds = [None, 0.5, 0.7, 0.6, 0.9]
    events: list[dict[str, Any]] = [{"event": "start", "round": 0}]
    events += [
        {"event": "round", "round": i, "bytes_up": 10, "bytes_down": 100 * i}
        | {"metrics": {} if score is None else {"validation": {"accuracy": score}}}
        for i, score in enumerate(rounds, 1)
    ]
    assert until(events, 0.5) == (2, 320)
    assert until(events, 0.7) == (3, 630)
    assert until(events, 0.8) == (5, 1550)
    assert until(events, 0.95) is None
    assert (rounds_to(events, 0.75), rounds_to(events, 0.9)) == (3, 5)
    assert rounds_to(events[:3], 0.9) is None, "it was scored only once"


def summary(accuracy: float, up: int = 10, flops: float | None = 5.0) -> dict[str, Any]:
    return {
        "rounds": 2,
        "accuracy": over_clients({"0": accuracy - 0.1, "1": accuracy + 0.1}, {"0": 1.0, "1": 1.0}),
        "bytes": {"up": up, "down": 2 * up},
        "flops": flops,
        "seconds": 1.0,
        "peak_memory_bytes": 100,
        "train": {"loss": accuracy},
    }


def test_a_line_over_seeds() -> None:
    found = over_seeds("m", [summary(0.4), summary(0.6, up=30)])
    assert (found["method"], found["status"], "reason" in found) == ("m", "done", False)
    assert found["means"] == pytest.approx([0.4, 0.6])
    assert found["mean"] == pytest.approx(0.5)
    assert found["ci95"] == pytest.approx(T1 * 0.1, rel=1e-6)
    assert found["worst"] == pytest.approx(0.4)
    assert found["best_decile"] == pytest.approx(0.6)
    assert found["std"] == pytest.approx(0.1)
    assert (found["bytes_up"], found["bytes_down"], found["flops"]) == (20, 40, 5.0)
    assert found["bytes_per_round"] == {"up": 10, "down": 20}
    assert found["train"] == {"loss": pytest.approx(0.5)}
    assert over_seeds("m", [summary(0.4), summary(0.6, flops=None)])["flops"] is None


def test_rouge_over_seeds_where_all_have_it() -> None:
    one, other = (summary(0.4) | {"rouge1": {"mean": value}} for value in (0.5, 0.7))
    assert over_seeds("m", [one, other])["rouge1"] == with_interval([0.5, 0.7])
    assert "rouge1" not in over_seeds("m", [one, summary(0.4)])


def test_budgets_over_seeds() -> None:
    """Shares of clients are averaged, visits are added, of the shares of a budget the largest counts."""
    counted = {"visits": 10, "evaluations": 4, "over": 1, "largest_bytes": 9}
    lines = [
        {**summary(0.4), "clients": 4, "memory": {**counted, "largest_share": share, "took_part": took_part}}
        for share, took_part in ((0.5, 2), (0.75, 4))
    ]
    assert over_seeds("m", lines)["budgets"] == {"took_part": 0.75, "visits": 20, "over": 2, "largest_share": 0.75}
    assert "budgets" not in over_seeds("m", [summary(0.4)])


def test_a_line_of_a_method_that_failed() -> None:
    """With the seeds that are there; without any, every figure is empty."""
    part = over_seeds("m", [summary(0.4)], "client 1: out of memory")
    assert (part["status"], part["reason"], part["mean"]) == ("failed", "client 1: out of memory", pytest.approx(0.4))
    none = over_seeds("m", [], "no")
    assert (none["status"], none["reason"], none["mean"], none["flops"]) == ("failed", "no", None, None)


def measured(round: int, **test: float) -> dict[str, Any]:
    told = {client.removeprefix("c"): value for client, value in test.items()}
    return {"round": round, **({"forgetting": {"test": told, "validation": dict.fromkeys(told, 0.5)}} if told else {})}


def test_forgetting_is_of_the_second_half_and_rounds_count_equally() -> None:
    """Of six rounds 4, 5 and 6 count, of which 5 was not measured: 4 is (0.2 + 0.4) / 2 = 0.3 and 6 is 0.1, so 0.2.

    Over pairs of client and round it would be 0.7 / 3; with rounds 1 and 3 it would be less.
    """
    rounds = [measured(1, c0=-0.9), measured(2), measured(3, c1=-0.1), measured(4, c0=0.2, c1=0.4), measured(5)]
    found = forgetting([*rounds, measured(6, c1=0.1)])["forgetting"]
    assert found["mean"] == pytest.approx(0.2)
    assert found["validation"] == 0.5
    assert found["rounds"] == [4, 6]
    assert found["per_client"] == {"0": pytest.approx(0.2), "1": pytest.approx(0.25)}
    assert found["by_round"] == {"1": -0.9, "3": -0.1, "4": pytest.approx(0.3), "6": 0.1}
    assert forgetting([measured(1), measured(2)]) == {}
    assert forgetting(rounds[:1])["forgetting"]["mean"] == -0.9


def test_recalls_are_told_by_class_and_a_class_without_rows_has_none() -> None:
    told = {"accuracy": 0.6, "balanced_accuracy": 0.5, "recall": [1.0, None, 0.0]}
    found = pooled_at({"metrics": {"pooled": {"test": told}}}, "test")
    assert found == {"pooled": {"accuracy": 0.6, "balanced_accuracy": 0.5, "recall": {"0": 1.0, "2": 0.0}}}
    assert pooled_at({"metrics": {}}, "test") == {}


def test_the_lowest_recall_is_each_seeds_own() -> None:
    """0.1 of class 0 and 0.3 of class 1: 0.2, where the lowest of the means over seeds is 0.4."""
    seeds = [{"0": 0.1, "1": 0.9, "7": 1.0}, {"0": 0.7, "1": 0.3}]
    pooled = [{"pooled": {"accuracy": 0.5, "balanced_accuracy": 0.5, "recall": recall}} for recall in seeds]
    both = [summary(0.4) | pooled[0] | {"forgetting": {"mean": 0.1}}, summary(0.6) | pooled[1]]
    found = over_seeds("m", both)
    assert found["pooled"]["lowest_recall"]["mean"] == pytest.approx(0.2)
    assert found["pooled"]["lowest_recall"]["ci95"] == pytest.approx(T1 * 0.1, rel=1e-6)
    assert found["pooled"]["recall"] == {"0": pytest.approx(0.4), "1": pytest.approx(0.6), "7": 1.0}
    assert "forgetting" not in found
    both[1]["forgetting"] = {"mean": 0.3}
    assert over_seeds("m", both)["forgetting"]["mean"] == pytest.approx(0.2)
    assert "pooled" not in over_seeds("m", [summary(0.4), both[0]])
