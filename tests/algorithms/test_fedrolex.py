"""FedRolex, equation by equation; what it shares with HeteroFL is in test_widths.py and test_heterofl.py."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import digits, needs, wines
from by_hand import INIT, KEY, arrivals, constant, is_all, prepared

from unalike import api, tree
from unalike.algorithms.fedrolex import FedRolex
from unalike.data.federation import Federation
from unalike.engines.checkpoint import Checkpoints
from unalike.errors import InputError
from unalike.models import narrow
from unalike.protocol import Job

QUARTER = 13 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
"""Weights of mlp-5 on the wines at a quarter of its width."""


@pytest.fixture(scope="module")
def wine() -> Federation:
    """Four clients: no budget, the whole model, a quarter, less than anything."""
    found = wines()
    return found.with_budgets((*needs(prepared("fedrolex", found), None, 0, 2), 1))


@pytest.fixture(scope="module")
def method(wine: Federation) -> FedRolex:
    found = prepared("fedrolex", wine, rounds=100)
    assert isinstance(found, FedRolex)
    return found


def sent(method: FedRolex, wine: Federation, round: int, client: int = 2) -> Any:
    return method.broadcast(method.init_server(INIT), wine.clients[client], round)["model"]


def test_the_window_begins_at_the_first_channel_and_moves_on_by_one_a_round(method: FedRolex, wine: Federation) -> None:
    """S_j = {(j + i) mod 64 : i < 16} with j = round − 1: at round 61 it is 60 to 63 and 0 to 11."""
    whole = method.init_server(INIT)["model"]["extractor"]["3.weight"]
    assert sent(method, wine, 1)["extractor"]["3.weight"].equal(whole[:16, :16])
    assert sent(method, wine, 2)["extractor"]["3.weight"].equal(whole[1:17, 1:17])
    wrapped = [60, 61, 62, 63, *range(12)]
    assert sent(method, wine, 61)["extractor"]["3.weight"].equal(whole[wrapped][:, wrapped])
    faster = dataclasses.replace(method, stride=5)
    assert sent(faster, wine, 3)["extractor"]["3.weight"].equal(whole[10:26, 10:26])


def test_the_whole_model_does_not_roll(method: FedRolex, wine: Federation) -> None:
    assert tree.equal(sent(method, wine, 7, client=1), method.init_server(INIT)["model"])


def test_over_a_full_cycle_every_weight_is_held_equally_often(method: FedRolex, wine: Federation) -> None:
    """64 rounds, 16 of 64 at both sides: each of the first layer's 16 times."""
    held = torch.zeros(64, 13)
    inner = torch.zeros(64, 64)
    for round in range(1, 65):
        where = narrow.places(method.shared, narrow.narrowed(method.shared, 0.25), method._shift(round))
        held[narrow.mesh(where["extractor/1.weight"])] += 1
        inner[narrow.mesh(where["extractor/3.weight"])] += 1
    assert is_all({"held": held}, 16.0)
    assert inner.diagonal().eq(16).all()
    assert inner.sum() == 64 * 16 * 16


def test_what_comes_back_is_put_where_it_was_taken_from(method: FedRolex, wine: Federation) -> None:
    """In round 3, channels 2 to 17: 5 there; nobody holds the others, and they stay."""
    server, labels = method.init_server(INIT), {"labels": torch.arange(3)}
    up = {"model": constant(sent(method, wine, 3), 5.0), **labels}
    full = {"model": constant(server["model"], 1.0), **labels}
    told = arrivals(wine, (full, 1.0), (full, 1.0), (up, 2.0))
    alone = method.aggregate(server, told[2:], 3, KEY)["model"]["extractor"]["3.weight"]
    before = server["model"]["extractor"]["3.weight"]
    assert is_all({"w": alone[2:18, 2:18]}, 5.0)
    assert alone[:2].equal(before[:2])
    assert alone[18:].equal(before[18:])
    assert alone[2:18, 18:].equal(before[2:18, 18:])
    both = method.aggregate(server, told, 3, KEY)["model"]["extractor"]["3.weight"]
    assert is_all({"w": both[2:18, 2:18]}, 3.0)
    assert is_all({"w": both[18:]}, 1.0)


def test_a_quarter_travels_both_ways(method: FedRolex, wine: Federation) -> None:
    info = wine.clients[2]
    down = method.broadcast(method.init_server(INIT), info, 5)
    update = method.client_update(Job(info, 5, down, {}, wine.data(2, "train"), KEY))
    assert (tree.nbytes(down), tree.nbytes(update.up)) == (4 * QUARTER, 4 * QUARTER + 3 * 8)


def run(folder: Path, given: Federation, name: str, **keys: Any) -> tuple[dict[str, Any], str]:
    """The summary, and the hash of the model."""
    plain = {"local_epochs": 1, "engine": "serial", "batch_size": 16}
    summary = api.run(name, given, out=folder, report=False, **{**plain, **keys}).summary
    checkpoints = Checkpoints(folder / "checkpoint")
    return summary, tree.sha256(checkpoints.server(checkpoints.read())["model"])


def test_one_round_is_heterofls_and_two_are_not(tmp_path: Path) -> None:
    """The first window is the first channels."""
    plain = api.prepare("fedrolex", digits(), batch_size=16).algorithm
    given = digits().with_budgets(tuple(needs(plain, None, 0, 2, 2)))
    found = {(m, n): run(tmp_path / f"{m}{n}", given, m, rounds=n) for m in ("heterofl", "fedrolex") for n in (1, 2)}
    assert found["heterofl", 1][0]["accuracy"] == found["fedrolex", 1][0]["accuracy"]
    assert found["heterofl", 1][1] == found["fedrolex", 1][1]
    tracked = [run(tmp_path / f"{m}-t", given, m, rounds=2, bn="tracked") for m in ("heterofl", "fedrolex")]
    assert tracked[0][1] != tracked[1][1]
    assert all(summary["memory"]["over"] == 0 for summary, _ in found.values())


def test_models_whose_windows_do_not_agree_are_refused_where_someone_must_be_narrow() -> None:
    with pytest.raises(InputError, match="fedrolex trains a window of the channels"):
        prepared("fedrolex", digits().with_budgets((None, 1, 1, 1)), shared_model="vit-tiny(width=0.1, depth=1)")
