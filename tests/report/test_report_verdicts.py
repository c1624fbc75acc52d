"""A reference against the others: paired differences and sentences, against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import FAILED, method, row, write_comparison

from unalike.report import sentence, verdicts
from unalike.report.paired import best_other, gap
from unalike.report.records import Method

OURS = row("ours", [0.90, 0.80, 0.85])
NEAR = row("near", [0.88, 0.79, 0.80], OURS)
"""ours minus near: .02 .01 .05: mean .02667, deviation .02082, error .01202, times 4.3027: .05171"""
FAR = row("far", [0.88, 0.77, 0.81], OURS)
"""ours minus far: .02 .03 .04: mean .03, deviation .01, error .005774, times 4.3027: .02484"""
ABOVE = row("above", [0.92, 0.83, 0.89], OURS)
"""ours minus above: -.02 -.03 -.04"""


def methods(*rows: Mapping[str, Any]) -> list[Method]:
    return [Method.model_validate(one) for one in rows]


def test_gap_is_the_mean_of_paired_differences_with_students_interval() -> None:
    found = gap(*methods(OURS, FAR))
    assert (found.mean, found.half, found.seeds) == (pytest.approx(0.03), pytest.approx(0.02484, abs=1e-5), 3)
    assert found.settled
    found = gap(*methods(OURS, NEAR))
    assert (found.mean, found.half) == (pytest.approx(0.026667, abs=1e-6), pytest.approx(0.05171, abs=1e-5))
    assert not found.settled


def test_seeds_are_paired_by_number_not_by_place() -> None:
    """In the other order of seeds the differences are the same; by place they would be .13 .03 -.08."""
    turned = {**FAR, "seeds": [2, 1, 0], "means": [0.81, 0.77, 0.88]}
    assert gap(*methods(OURS, turned)).half == pytest.approx(0.02484, abs=1e-5)


def test_only_seeds_that_both_have_are_paired() -> None:
    found = gap(*methods(OURS, {**FAR, "seeds": [0, 1], "means": [0.88, 0.77]}))
    assert (found.mean, found.seeds) == (pytest.approx(0.025), 2)


def test_without_means_the_row_says_its_difference() -> None:
    told = {"to": "ours", "mean": -0.03, "ci95": 0.02, "per_seed": [-0.02, -0.04]}
    found = gap(*methods(OURS, method("old", 0.82, 0.01, difference=told)))
    assert (found.mean, found.half, found.seeds) == (0.03, 0.02, 2)
    bare = gap(*methods(OURS, method("old", 0.82, 0.01)))
    assert (bare.mean, bare.half, bare.settled) == (pytest.approx(0.03), None, False)


def test_the_best_other_has_the_highest_mean_and_has_not_failed() -> None:
    found = methods(OURS, FAR, NEAR, {**ABOVE, "status": "failed"}, FAILED)
    best = best_other(found, "ours")
    assert best is not None
    assert best.method == "near"
    rival = best_other(found, "ours", ["far"])
    assert rival is not None
    assert rival.method == "far"


@pytest.mark.parametrize(
    ("rows", "rivals", "told"),
    [
        (
            [OURS, FAR],
            [],
            "ours is 3.0 points above far, the best of the others (95 % interval 0.5 to 5.5 over 3 seeds).",
        ),
        (
            [OURS, FAR, NEAR],
            [],
            "ours is 2.7 points above near, the best of the others, but that is not settled (95 % interval −2.5 to 7.8 "
            "over 3 seeds).",
        ),
        (
            [OURS, ABOVE],
            [],
            "ours is 3.0 points below above, the best of the others (95 % interval 0.5 to 5.5 over 3 seeds).",
        ),
        (
            [OURS, FAR, ABOVE],
            ["far"],
            "ours is 3.0 points above far, the best of the rivals (95 % interval 0.5 to 5.5 over 3 seeds); above it, "
            "though no rival: above by 3.0 points (95 % interval 0.5 to 5.5 over 3 seeds).",
        ),
        (
            [row("ours", [0.9]), row("near", [0.88])],
            [],
            "ours is 2.0 points above near, the best of the others (one seed).",
        ),
        (
            [row("ours", [0.9]), row("near", [0.9])],
            [],
            "ours is level with near, the best of the others (one seed).",
        ),
        ([{**FAILED, "method": "ours"}, FAR], [], "ours failed: client 3 sent fc/weight (10, 64), a_b | c & d < e."),
        ([FAR], [], "ours was not run."),
        ([OURS, FAILED], [], "No other method finished beside ours."),
    ],
)
def test_verdict(rows: list[dict[str, Any]], rivals: list[str], told: str) -> None:
    assert verdicts.verdict(methods(*rows), "ours", rivals) == told


def test_sentence_of_a_comparison_with_a_reference(tmp_path: Path) -> None:
    alone = row("standalone", [0.70, 0.59, 0.66], OURS)
    folder = write_comparison(tmp_path / "c", [OURS, NEAR, ABOVE, alone, FAILED])
    assert sentence(folder) == (
        "ours is 3.0 points below above, the best of the others (95 % interval 0.5 to 5.5 over 3 seeds). "
        "Its mean accuracy is 0.850 ± 0.124 (95 % interval over 3 seeds); of the 3 others it is above 1 and below 1; 1 "
        "is not settled. It is 20.0 points above standalone (95 % interval 17.5 to 22.5 over 3 seeds). fedmd failed."
    )


def test_a_single_seed_is_said_to_be_one(tmp_path: Path) -> None:
    ours = row("ours", [0.9])
    folder = write_comparison(tmp_path / "c", [ours, row("near", [0.88], ours), row("standalone", [0.7], ours)])
    assert sentence(folder) == (
        "ours is 2.0 points above near, the best of the others (one seed). Its mean accuracy is 0.900. With a single "
        "seed there is no interval: these differences may be chance. It is 20.0 points above standalone."
    )


def test_nulls_are_as_if_missing(tmp_path: Path) -> None:
    sparse = dict.fromkeys(OURS) | {"method": "ours", "mean": 0.8, "status": "done"}
    told = {"to": "ours", "mean": None, "ci95": None, "per_seed": [None]}
    folder = write_comparison(tmp_path / "c", [sparse, {**sparse, "method": "b", "mean": 0.7, "difference": told}])
    assert json.loads((folder / "compare.json").read_text())[0]["chosen"] is None
    assert sentence(folder).startswith("ours is 10.0 points above b, the best of the others.")
