"""FedImpres, round by round: warm-up, what travels, what a client trains on, averages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import api, models, tree
from unalike.algorithms.fedimpres import FedImpres
from unalike.check import check_algorithm
from unalike.data.federation import Federation, federation
from unalike.impressions.transport import decode

QUICK: dict[str, Any] = {"images": 20, "image_batch": 20, "admm": 1, "image_steps": 2, "lr_img": 10.0}
SMALL = "cnn-5(width=0.25, norm=True)"


@pytest.fixture(scope="module")
def clients() -> Federation:
    return federation("digits", rows=150, clients=3, partition="iid", models=[SMALL])


def after(method: Any, alike: Federation, round: int = 1) -> Any:
    """The server after a round in which two clients sent back what they were sent."""
    server = method.init_server(INIT)
    up = {"model": server["model"]}
    return method.aggregate(server, arrivals(alike, (up, 3.0), (up, 1.0)), round, KEY / "aggregate")


def test_it_keeps_the_contract(clients: Federation) -> None:
    check_algorithm(FedImpres(**QUICK, labels="prior", syn_bn="frozen"), clients)


def test_the_warm_up_is_fedavg_to_the_bit(clients: Federation, tmp_path: Path) -> None:
    """Of 4 rounds with 2 of warm-up the first two are FedAvg's; impressions come down in the third, not before."""
    keys: dict[str, Any] = {"rounds": 4, "local_epochs": 1, "engine": "serial", "report": False}
    found = api.run("fedimpres", clients, out=tmp_path / "a", warm_up=2, **QUICK, **keys)
    plain = api.run("fedavg", clients, out=tmp_path / "b", **keys)
    rounds, alone = ([e for e in run.events() if e["event"] == "round"] for run in (found, plain))
    same = [a["metrics"]["train"] == b["metrics"]["train"] for a, b in zip(rounds, alone, strict=True)]
    assert same == [True, True, False, False]
    more = [a["bytes_down"] - b["bytes_down"] for a, b in zip(rounds, alone, strict=True)]
    assert more == [0, 0] + 2 * [3 * (20 * 64 + 20 * 8)]
    assert ["server" in event["metrics"] for event in rounds] == [False, True, True, True]
    assert all(event["server_seconds"] > 0 for event in rounds)


def test_a_step_by_hand(alike: Federation) -> None:
    """w − η ∇ (CE(rows) + λ CE(X, y)) / (1 + λ) for all rows in one batch and each image once beside it."""
    n = alike.clients[0].n
    method = prepared("fedimpres", alike, **QUICK, lam=3.0, mix=20 / n, warm_up=1, gate=False)
    server = after(method, alike)
    it = job(method, alike, down=method.broadcast(server, alike.clients[0], 2))
    w, X = it.down["model"], {"x": decode(it.down["impressions"]["images"]), "y": it.down["impressions"]["labels"]}
    step = tree.map_leaves(lambda a, b: (a + 3 * b) / 4, gradient(method, w, it.data), gradient(method, w, X))
    up = method.client_update(it).up
    assert close(up["model"], minus(w, method.lr, step))
    assert not close(up["model"], minus(w, method.lr, gradient(method, w, it.data)))


def test_concat_is_the_authors_step(alike: Federation) -> None:
    """w − η ∇ CE of the rows and all images in one mean."""
    n = alike.clients[0].n
    method = prepared("fedimpres", alike, **QUICK, concat=True, warm_up=1, batch_size=n)
    it = job(method, alike, down=method.broadcast(after(method, alike), alike.clients[0], 2))
    X = {"x": decode(it.down["impressions"]["images"]), "y": it.down["impressions"]["labels"]}
    both = {name: torch.cat([it.data[name], X[name]]) for name in ("x", "y")}
    expected = minus(it.down["model"], method.lr, gradient(method, it.down["model"], both))
    assert close(method.client_update(it).up["model"], expected)


@pytest.mark.parametrize(("averaging", "mean"), [("samples", 2.0), ("uniform", 3.0)])
def test_the_average_is_by_samples_or_uniform(averaging: str, mean: float, alike: Federation) -> None:
    """Of 1 and 5: (3 · 1 + 1 · 5) / 4 = 2 for 3 and 1 rows, 3 where both count the same."""
    method = prepared("fedimpres", alike, averaging=averaging, warm_up=9)
    weights = [method.client_update(job(method, alike, k)).weight for k in (0, 1)]
    assert weights == ([alike.clients[k].n for k in (0, 1)] if averaging == "samples" else [1.0, 1.0])
    server = method.init_server(INIT)
    ups = [({"model": constant(server["model"], value)}, w) for value, w in ((1.0, 3.0), (5.0, 1.0))]
    sent = arrivals(alike, *(ups if averaging == "samples" else [(up, 1.0) for up, _ in ups]))
    assert is_all(method.aggregate(server, sent, 1, KEY)["model"], mean)


def test_batch_norm_statistics_are_averaged(clients: Federation) -> None:
    method = prepared("fedimpres", clients, warm_up=9)
    server = method.init_server(INIT)
    sent = arrivals(clients, (constant(server, 1.0), 1.0), (constant(server, 3.0), 1.0))
    found = tree.flatten(method.aggregate(server, sent, 1, KEY))
    statistics = [leaf for name, leaf in found.items() if "running" in name]
    assert statistics
    assert all(bool((leaf == 2).all()) for leaf in statistics)


def test_the_model_travels_both_ways_and_images_down(alike: Federation) -> None:
    method = prepared("fedimpres", alike, **QUICK, warm_up=1)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * CNN5
    it = job(method, alike, down=method.broadcast(after(method, alike), alike.clients[0], 2))
    assert tree.nbytes(it.down) == 4 * CNN5 + 20 * 64 + 20 * 8
    assert tree.nbytes(method.client_update(it).up) == 4 * CNN5 + 1
    assert not tree.flatten(method.client_update(it).state)


def test_every_client_predicts_with_the_common_model(alike: Federation) -> None:
    method = prepared("fedimpres", alike, **QUICK, warm_up=1)
    it = job(method, alike, down=method.broadcast(after(method, alike), alike.clients[0], 2))
    expected = models.logits(method.shared, it.down["model"], it.data["x"][:4])
    assert outputs(method, it, {}).equal(expected)
    ready = method.prepare(it.info, it.down, {}, it.data, KEY)
    assert ready["down"].keys() == {"model"}, "an exported model has no impressions"
