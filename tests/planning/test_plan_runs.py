"""What a plan says is what a run does: who takes part, bytes and operations; and nobody exceeds a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unalike import api, config
from unalike.planning.make import make

KEYS: dict[str, Any] = {
    "data": "digits",
    "clients": 4,
    "partition": "iid",
    "rows": 300,
    "min_per_client": 20,
    "models": "resnet18(width=0.0625)",
    "local_epochs": 2,
    "batch_size": 16,
    "engine": "serial",
    "seed": 5,
}


def both(method: str, folder: Path, **keys: Any) -> tuple[dict[str, Any], list[dict[str, Any]], dict[str, Any]]:
    """The plan, and the rounds and the summary of the run that it is of."""
    planned = make(config.resolve({**KEYS, **keys, "method": method})).as_json()
    keys["fleet"] = planned["fleet"]
    result = api.run(method, out=folder / method, report=False, **KEYS, **keys)
    return planned, [event for event in result.events() if event["event"] == "round"], result.summary


def test_profl_costs_what_its_plan_says_phase_by_phase(tmp_path: Path) -> None:
    cut = {"cuts": "0,5,9", "freeze": "fixed", "rounds": 6, "fleet": "uniform:0.5:1.2"}
    planned, rounds, summary = both("profl", tmp_path, **cut)
    stages = [stage for stage in planned["stages"] for _ in range(stage["rounds"])]
    assert len(stages) == len(rounds) == 6
    begun: set[str] = set()
    for stage, event in zip(stages, rounds, strict=True):
        able = [c["client"] for c in planned["clients"] if stage["name"] in c["stages"]]
        n, once = len(able), 0 if stage["name"] in begun else stage["bytes_once"]
        begun.add(stage["name"])
        assert event["clients"] == able, stage["name"]
        assert (event["bytes_up"], event["bytes_down"]) == (n * stage["bytes_up"], n * (stage["bytes_down"] + once))
        assert event["flops"] == pytest.approx(n * stage["flops_a_visit"])
    assert len({len(event["clients"]) for event in rounds}) > 1, "the fleet tells nothing apart: draw another"
    counted = summary["memory"]
    assert (counted["visits"], counted["over"]) == (sum(len(event["clients"]) for event in rounds), 0)
    assert 1 / 1.1 - 0.02 < counted["largest_bytes"] / max(s["need_bytes"] for s in stages) <= 1


def test_levels_cost_what_their_plan_says(tmp_path: Path) -> None:
    planned, rounds, summary = both("depthfl", tmp_path, rounds=1, fleet="uniform:0.3:1.2")
    level = {stage["name"]: stage for stage in planned["stages"]}
    done = [level[c["stages"][0]] for c in planned["clients"]]
    assert len({stage["name"] for stage in done}) > 1
    for way in ("bytes_down", "bytes_up"):
        assert rounds[0][way] == planned["total"][way] == sum(stage[way] for stage in done)
    assert summary["flops"] == pytest.approx(planned["total"]["flops"])
    assert summary["memory"]["over"] == 0
