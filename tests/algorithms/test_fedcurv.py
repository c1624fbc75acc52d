"""FedCurv, equation by equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, noise, outputs, prepared

from unalike import models, tree
from unalike.algorithms.fedcurv import others, penalty
from unalike.data.federation import Federation, federation
from unalike.local import trainable
from unalike.protocol import Job


def positive(like: tree.Tree, seed: int) -> dict[str, Any]:
    return tree.map_leaves(torch.square, noise(like, seed, 0.5))


def second_visit(method: Any, found: Federation, was_there_in: int = 1) -> Job[Any, Any]:
    """A visit in round 2 by a client that has last sent something in the round given."""
    it = job(method, found)
    weights = tree.unflatten(trainable(it.down["model"]))
    own = {"u": positive(weights, 1), "v": noise(weights, 2, 0.1)}
    down = {"model": it.down["model"], "u": positive(weights, 3), "v": noise(weights, 4, 0.1)}
    return Job(it.info, 2, down, {**own, "round": torch.tensor(was_there_in)}, it.data, it.key)


def test_the_penalty_by_hand() -> None:
    """Others at w_j = 1 and 3 with F = 2 and 4: Σ F_j (w − w_j)² is 2 + 4 = 6 at w = 2, and 0 + 16 at the 1 sent."""
    w, sent = {"w": torch.tensor([2.0]), "~n": torch.tensor(5.0)}, {"w": torch.tensor([1.0]), "~n": torch.tensor(3.0)}
    u, v = {"w": torch.tensor([2.0 + 4.0])}, {"w": torch.tensor([2 * 1.0 + 4 * 3.0])}
    assert float(penalty(w, sent, u, v)) == pytest.approx(6 - 16)
    assert float(penalty(sent, sent, u, v)) == 0.0


def test_two_steps_by_hand(alike: Federation) -> None:
    """w ← w − η (∇L(w) + 2 λ ((u − u_k) w − (v − v_k))), twice."""
    method = prepared("fedcurv", alike, local_epochs=2, lam=0.5, clip=1e9)
    it = second_visit(method, alike)
    u, v = (tree.map_leaves(torch.sub, it.down[name], it.state[name]) for name in ("u", "v"))
    w = it.down["model"]
    for _ in range(2):
        pull = tree.map_leaves(lambda u, v, w: u * w - v, u, v, w)
        w = minus(minus(w, method.lr, gradient(method, w, it.data)), method.lr * 2 * 0.5, pull)
    assert close(method.client_update(it).up["model"], w)


def test_what_is_its_own_leaves_the_sums_only_after_a_round_it_took_part_in(alike: Federation) -> None:
    method = prepared("fedcurv", alike)
    there, away = (second_visit(method, alike, last) for last in (1, 0))
    assert tree.equal(others(away), {name: away.down[name] for name in ("u", "v")})
    for name in ("u", "v"):
        assert tree.equal(others(there)[name], minus(there.down[name], 1.0, there.state[name]))
    alone = Job(there.info, 2, {**there.state, "model": there.down["model"]}, there.state, there.data, there.key)
    assert all(is_all(found, 0.0) for found in others(alone).values())


def test_the_fisher_by_hand(alike: Federation) -> None:
    """The mean over the rows of the squared gradient of each; v is it times the new weights; both are kept."""
    method = prepared("fedcurv", alike)
    it = job(method, alike)
    few = Job(it.info, 3, it.down, it.state, {name: rows[:5] for name, rows in it.data.items()}, it.key)
    update = method.client_update(few)
    w = update.up["model"]
    each = [gradient(method, w, {name: rows[i : i + 1] for name, rows in few.data.items()}) for i in range(5)]
    F = tree.map_leaves(lambda *g: sum(leaf.square() for leaf in g) / 5, *each)
    assert close(update.up["u"], F, atol=1e-7)
    assert close(update.up["v"], tree.map_leaves(torch.mul, F, w), atol=1e-7)
    assert tree.equal(update.state, {"u": update.up["u"], "v": update.up["v"], "round": torch.tensor(3)})
    assert not close(update.up["u"], tree.map_leaves(torch.square, gradient(method, w, few.data)), atol=1e-7)


def test_the_fisher_is_of_so_many_rows_and_of_weighed_ones(alike: Federation) -> None:
    it = job(prepared("fedcurv", alike), alike)
    found = {
        key: prepared("fedcurv", alike, lr=1e-9, **{"fisher_rows": 4, **own}).client_update(it).up["u"]
        for key, own in {"4": {}, "6": {"fisher_rows": 6}, "balanced": {"class_balance": 1.0}}.items()
    }
    assert not any(close(found["4"], found[name], atol=0.0) for name in ("6", "balanced"))


def test_at_lambda_0_and_in_the_first_round_it_is_fedavg(alike: Federation) -> None:
    plain, method, free = (
        prepared(name, alike, batch_size=32, momentum=0.9, **own)
        for name, own in (("fedavg", {}), ("fedcurv", {}), ("fedcurv", {"lam": 0.0}))
    )
    expected = plain.client_update(job(plain, alike)).up["model"]
    assert tree.equal(method.client_update(job(method, alike)).up["model"], expected)
    it = second_visit(free, alike)
    assert tree.equal(free.client_update(it).up["model"], expected)
    assert not tree.equal(method.client_update(it).up["model"], expected)


def test_the_server_averages_models_by_samples_and_sums_the_rest(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2; 1 + 5 = 6."""
    method = prepared("fedcurv", alike)
    like = method.init_server(INIT)["model"]
    ups = [{name: constant(like, value) for name in ("model", "u", "v")} for value in (1.0, 5.0)]
    after = method.aggregate({}, arrivals(alike, (ups[0], 3.0), (ups[1], 1.0)), 2, KEY)
    assert is_all(after["model"], 2.0)
    assert is_all(after["u"], 6.0)
    assert is_all(after["v"], 6.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_buffers_have_no_fisher() -> None:
    normed = federation("digits", rows=100, clients=2, partition="iid", models=["cnn-5(norm=True)"])
    method = prepared("fedcurv", normed)
    up = method.client_update(job(method, normed)).up
    assert any("~" in name for name in tree.flatten(up["model"]))
    assert tree.flatten(up["u"]).keys() == trainable(up["model"]).keys()


def test_three_times_the_model_travels_but_for_the_first_way_down(alike: Federation) -> None:
    method = prepared("fedcurv", alike)
    it = job(method, alike)
    update = method.client_update(it)
    assert (tree.nbytes(it.down), tree.nbytes(update.up)) == (4 * CNN5, 3 * 4 * CNN5)
    server = method.aggregate(method.init_server(INIT), arrivals(alike, (update.up, 1.0)), 1, KEY)
    assert tree.nbytes(method.broadcast(server, it.info, 2)) == 3 * 4 * CNN5


def test_every_client_predicts_with_the_common_model(alike: Federation) -> None:
    method = prepared("fedcurv", alike)
    it = job(method, alike)
    expected = models.logits(method.shared, it.down["model"], it.data["x"][:4])
    assert outputs(method, it, {}).equal(expected)
