"""Ditto, equation by equation."""

from __future__ import annotations

import pytest
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.algorithms.ditto import personal_loss
from unalike.data.federation import Federation


def test_the_pull_by_hand(alike: Federation) -> None:
    """Every weight 0.1 away: λ/2 ‖v_k − w_t‖² = 0.5 / 2 · CNN5 · 0.01, on top of L."""
    method = prepared("ditto", alike)
    sent, data = method.init_server(INIT), alike.data(0, "train")
    moved = tree.map_leaves(lambda leaf: leaf + 0.1, sent)
    loss = models.supervised_loss(method.shared, method.task, moved, {}, data)
    found = personal_loss(method.shared, method.task, 0.5, moved, sent, data)
    assert float(found - loss) == pytest.approx(0.25 * CNN5 * 0.01, rel=1e-4)


def test_the_personal_step_by_hand(alike: Federation) -> None:
    """v_k ← v_k − η (∇L(v_k) + λ (v_k − w_t)), where w_t is the model as received."""
    method = prepared("ditto", alike, lam=2.0)
    v = tree.map_leaves(lambda leaf: 1.1 * leaf, job(method, alike).state["personal"])
    it = job(method, alike, personal=v)
    expected = minus(
        minus(v, method.lr, gradient(method, v, it.data)), method.lr * 2.0, minus(v, 1.0, it.down["model"])
    )
    assert close(method.client_update(it).state["personal"], expected)


def test_what_is_sent_is_fedavgs_and_knows_nothing_of_the_personal_model(alike: Federation) -> None:
    """w_k ← w_k − η ∇L(w_k)."""
    method = prepared("ditto", alike)
    it = job(method, alike)
    w = it.down["model"]
    update = method.client_update(it)
    assert close(update.up["model"], minus(w, method.lr, gradient(method, w, it.data)))
    other = method.client_update(job(method, alike, personal=constant(w, 0.1)))
    assert tree.equal(update.up, other.up)
    assert not tree.equal(update.state, other.state)


def test_personal_epochs_0_is_as_many_as_local_epochs(alike: Federation) -> None:
    """At λ = 0 and from w both models take the same steps; with one personal epoch v takes only the first of two."""
    method = prepared("ditto", alike, local_epochs=2, lam=0.0)
    it = job(method, alike)
    update = method.client_update(it)
    assert close(update.state["personal"], update.up["model"])
    once = prepared("ditto", alike, local_epochs=2, lam=0.0, personal_epochs=1).client_update(it)
    w = it.down["model"]
    assert close(once.state["personal"], minus(w, method.lr, gradient(method, w, it.data)))
    assert tree.equal(once.up, update.up)


def test_personal_models_start_at_the_common_one(alike: Federation) -> None:
    method, plain = (prepared(name, alike) for name in ("ditto", "fedavg"))
    assert tree.equal(method.init_client(alike.clients[2], INIT)["personal"], plain.init_server(INIT)["model"])
    assert tree.equal(method.init_server(INIT), plain.init_server(INIT))


def test_prediction_is_by_the_personal_model(alike: Federation) -> None:
    method = prepared("ditto", alike)
    it = job(method, alike)
    state = method.client_update(it).state
    expected = models.logits(method.shared, state["personal"], it.data["x"][:4])
    assert outputs(method, it, state, {"model": constant(it.down["model"], 0.0)}).equal(expected)


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("ditto", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_common_model_travels_both_ways_and_no_other(alike: Federation) -> None:
    method = prepared("ditto", alike)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * CNN5
