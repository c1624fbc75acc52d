"""FedProx, equation by equation."""

from __future__ import annotations

import pytest
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.algorithms.fedprox import proximal_loss
from unalike.data.federation import Federation


def test_the_proximal_term_by_hand(alike: Federation) -> None:
    """Every weight 0.1 away: μ/2 ‖w_k − w_t‖² = 0.5 / 2 · CNN5 · 0.01, on top of L."""
    method = prepared("fedprox", alike)
    sent, data = method.init_server(INIT), alike.data(0, "train")
    moved = tree.map_leaves(lambda leaf: leaf + 0.1, sent)
    loss = models.supervised_loss(method.shared, method.task, moved, {}, data)
    found = proximal_loss(method.shared, method.task, 0.5, moved, sent, data)
    assert float(found - loss) == pytest.approx(0.25 * CNN5 * 0.01, rel=1e-4)


def test_two_steps_by_hand(alike: Federation) -> None:
    """w1 = w − η ∇L(w), where the term is 0, then w2 = w1 − η (∇L(w1) + μ (w1 − w))."""
    method = prepared("fedprox", alike, local_epochs=2, mu=5.0)
    it = job(method, alike)
    w = it.down["model"]
    first = minus(w, method.lr, gradient(method, w, it.data))
    second = minus(first, method.lr, gradient(method, first, it.data))
    expected = minus(second, method.lr * 5.0, minus(first, 1.0, w))
    up = method.client_update(it).up
    assert close(up["model"], expected)
    assert not close(up["model"], second)


def test_at_mu_0_it_is_fedavg(alike: Federation) -> None:
    prox, plain = (prepared(name, alike, batch_size=32, momentum=0.9) for name in ("fedprox", "fedavg"))
    it = job(plain, alike)
    free = prepared("fedprox", alike, batch_size=32, momentum=0.9, mu=0.0)
    assert close(free.client_update(it).up, plain.client_update(it).up, atol=0.0)
    assert not close(prox.client_update(it).up, plain.client_update(it).up, atol=0.0)
    assert tree.equal(free.init_server(INIT), plain.init_server(INIT))


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("fedprox", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_model_travels_both_ways_and_nothing_is_kept(alike: Federation) -> None:
    method = prepared("fedprox", alike)
    it = job(method, alike)
    update = method.client_update(it)
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == 4 * CNN5
    assert not tree.flatten(update.state)


def test_every_client_predicts_with_the_common_model(alike: Federation) -> None:
    method = prepared("fedprox", alike)
    it = job(method, alike)
    expected = models.logits(method.shared, it.down["model"], it.data["x"][:4])
    assert outputs(method, it, {}).equal(expected)
