"""DepthFL, equation by equation."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
from budgets import digits, needs, wines
from by_hand import INIT, KEY, arrivals, constant, is_all, job, outputs, prepared

from unalike import api, runs, tree
from unalike.algorithms.depthfl import DepthFL, _evaluation, ensemble, mutual_loss
from unalike.data.federation import Federation
from unalike.distillation import mutual_divergence
from unalike.errors import NobodyFitsError
from unalike.models import exits
from unalike.tasks import Classification

LAYERS = (13 * 64 + 64, 64 * 64 + 64)
CLASSIFIER = 64 * 3 + 3
"""Weights of mlp-5 on the wines: two blocks, the second one's classifier is the header."""


@pytest.fixture(scope="module")
def wine() -> Federation:
    """Four clients: no budget, the whole model, the first block, less than anything."""
    found = wines()
    return found.with_budgets((*needs(prepared("depthfl", found), None, 0, 1), 1))


@pytest.fixture(scope="module")
def method(wine: Federation) -> DepthFL:
    found = prepared("depthfl", wine, rounds=1000)
    assert isinstance(found, DepthFL)
    return found


def test_budgets_decide_who_trains_how_deep(method: DepthFL, wine: Federation) -> None:
    assert [method.depth(info) for info in wine.clients] == [2, 2, 1, None]
    chosen = method.select(method.init_server(INIT), wine.clients, 1, KEY)
    assert [info.id for info in chosen] == [0, 1, 2]


def test_the_ramp_by_hand(method: DepthFL) -> None:
    """λ_t = exp(−5 (1 − (t − 1) / R)²) with R = 300: e⁻⁵, e^(−5/4) half way, then 1."""
    assert method.ramp * method.rounds == 300
    assert method.weight(1) == pytest.approx(math.exp(-5))
    assert method.weight(151) == pytest.approx(math.exp(-1.25))
    assert method.weight(301) == method.weight(999) == 1.0
    assert dataclasses.replace(method, ramp=0.0).weight(1) == 1.0
    assert dataclasses.replace(method, distillation=0.5).weight(301) == 0.5


def test_a_step_is_on_the_sum_of_all_classifiers_losses(method: DepthFL, wine: Federation) -> None:
    it = job(method, wine, 1)
    update, task, y = method.client_update(it), Classification(3), it.data["y"]
    params = tree.map_leaves(lambda leaf: leaf.clone().requires_grad_(), it.down["model"])
    z = exits.forward(method.shared, params, 2, it.data["x"], train=True)
    ce = sum(torch.nn.functional.cross_entropy(logits, y) for logits in z)
    loss = ce + math.exp(-5) * mutual_divergence(z)
    assert update.metrics["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    leaves = tree.flatten(params)
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        found = tree.flatten(update.up["model"])[name]
        assert torch.allclose(found, leaf - method.lr * gradient, atol=1e-6), name
    alone = {"model": it.down["model"]}
    given = {"weight": torch.tensor(7.0)}
    one = mutual_loss(method.shared, task, 1, alone, given, it.data)
    assert torch.allclose(one, torch.nn.functional.cross_entropy(z[0].detach(), y), atol=1e-6)


def test_a_shallow_client_gets_and_sends_its_blocks_and_their_classifiers(method: DepthFL, wine: Federation) -> None:
    it = job(method, wine, 2)
    update = method.client_update(it)
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == 4 * (LAYERS[0] + CLASSIFIER)
    assert set(tree.flatten(update.up["model"])) == {
        "extractor/1.weight",
        "extractor/1.bias",
        "classifiers/1/weight",
        "classifiers/1/bias",
    }
    assert tree.nbytes(job(method, wine, 1).down) == 4 * (sum(LAYERS) + 2 * CLASSIFIER)


def test_each_tensor_is_the_mean_over_its_holders(method: DepthFL, wine: Federation) -> None:
    """(1 · 3 + 3 · 1) / 4 = 1.5 of the first block, 3 of the second; with the shallow alone the second stays."""
    server = method.init_server(INIT)
    deep = {"model": constant(server["model"], 3.0)}
    shallow = {"model": constant(job(method, wine, 2).down["model"], 1.0)}
    told = arrivals(wine, (deep, 1.0), (deep, 0.0), (shallow, 3.0))
    after = method.aggregate(server, told, 1, KEY)["model"]
    assert is_all({n: leaf for n, leaf in after["extractor"].items() if n[0] == "1"}, 1.5)
    assert is_all(after["classifiers"], 1.5)
    assert is_all({n: leaf for n, leaf in after["extractor"].items() if n[0] == "3"}, 3.0)
    assert is_all(after["header"], 3.0)
    alone = method.aggregate(server, told[2:], 1, KEY)["model"]
    assert tree.equal(alone["header"], server["model"]["header"])
    assert is_all(alone["classifiers"], 1.0)


def test_the_ensemble_predicts(method: DepthFL, wine: Federation) -> None:
    it = job(method, wine, 1)
    z = exits.forward(method.shared, it.down["model"], 2, it.data["x"][:4])
    assert torch.allclose(outputs(method, it, {}), (z[0] + z[1]) / 2, atol=1e-6)
    assert torch.equal(outputs(dataclasses.replace(method, prediction="deepest"), it, {}), z[1])
    shallow = ensemble(method.shared, exits.part(method.shared, it.down["model"], 1), "ensemble", it.data["x"][:4])
    assert torch.allclose(shallow, z[0], atol=1e-6)


def test_a_client_predicts_with_the_deepest_it_can_evaluate(method: DepthFL, wine: Federation) -> None:
    server = {**method.init_server(INIT), "rounds": torch.tensor(4), "deepest": torch.tensor(2)}
    assert tree.equal(method.broadcast(server, wine.clients[2], 4)["model"], server["model"])
    assert exits.depth_of(method.broadcast(server, wine.clients[3], 4)["model"]) == 1
    assert exits.depth_of(method.broadcast(server, wine.clients[2], 5)["model"]) == 1
    least = _evaluation(method.shared, 2, 8)
    poor = dataclasses.replace(wine.clients[2], memory=least - 1)
    assert method.predicts(dataclasses.replace(poor, memory=least)) == 2
    assert method.predicts(poor) == 1


def test_what_nobody_has_trained_predicts_nothing(method: DepthFL, wine: Federation) -> None:
    server = method.init_server(INIT)
    shallow, deep = ({"model": job(method, wine, k).down["model"]} for k in (2, 1))
    told = arrivals(wine, (deep, 1.0), (deep, 1.0), (shallow, 1.0))
    first = method.aggregate(server, told[2:], 1, KEY)
    assert exits.depth_of(method.broadcast(first, wine.clients[0], 1)["model"]) == 1
    second = method.aggregate(method.aggregate(first, told[:1], 2, KEY), told[2:], 3, KEY)
    assert exits.depth_of(method.broadcast(second, wine.clients[0], 3)["model"]) == 2


def test_nobody_who_holds_the_first_block_is_refused(wine: Federation) -> None:
    with pytest.raises(NobodyFitsError, match="depthfl: no client's memory holds the first block of mlp-5"):
        prepared("depthfl", wine.with_budgets((1, 2, 3, 4)))


def test_a_run_stays_within_all_budgets(tmp_path: Path) -> None:
    given = digits()
    plain = api.prepare("depthfl", given, batch_size=16).algorithm
    budgeted = given.with_budgets(tuple(needs(plain, None, 0, 1, 3)))
    keys = {"rounds": 2, "local_epochs": 1, "engine": "serial", "batch_size": 16}
    found = api.run("depthfl", budgeted, out=tmp_path / "run", report=False, **keys)
    assert found.summary["memory"]["over"] == 0
    assert 0.5 < found.summary["memory"]["largest_share"] <= 1
    method = runs.reopen(tmp_path / "run").algorithm
    event = next(e for e in found.events() if e["event"] == "round")
    stages = method.plan()
    assert [method.depth(info) for info in budgeted.clients] == [4, 4, 3, 1]
    trains = [stages[i] for i in (0, 0, 1, 3)]
    assert event["bytes_down"] == event["bytes_up"] == sum(stage.down for stage in trains)
    expected = sum(stage.flops * info.n for stage, info in zip(trains, given.clients, strict=True))
    assert event["flops"] == pytest.approx(expected, rel=0.02)
