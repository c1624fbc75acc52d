"""FedPer, equation by equation."""

from __future__ import annotations

import torch
from by_hand import EXTRACTOR, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.data.federation import Federation


def test_base_and_header_take_one_step_together(alike: Federation) -> None:
    """(φ_k, h_k) = (φ, h) − η ∇L(h ∘ φ), both gradients at the same point."""
    method = prepared("fedper", alike)
    it = job(method, alike)
    before = {**it.down, **it.state}
    expected = minus(before, method.lr, gradient(method, before, it.data))
    update = method.client_update(it)
    assert close(update.up["extractor"], expected["extractor"])
    assert close(update.state["header"], expected["header"])


def test_base_and_headers_start_as_fedavgs(alike: Federation) -> None:
    method, plain = (prepared(name, alike) for name in ("fedper", "fedavg"))
    for info in alike.clients:
        started = {**method.init_server(INIT), **method.init_client(info, INIT)}
        assert tree.equal(started, plain.init_server(INIT)["model"])


def test_prediction_is_the_own_header_on_the_common_base(alike: Federation) -> None:
    method = prepared("fedper", alike)
    it = job(method, alike)
    state = method.client_update(it).state
    other = tree.map_leaves(lambda leaf: 1.5 * leaf, it.down)
    features = models.features(method.shared, other["extractor"], it.data["x"][:4])
    expected = features @ state["header"]["weight"].T + state["header"]["bias"]
    assert torch.allclose(outputs(method, it, state, other), expected, atol=1e-5)


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("fedper", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_base_travels_both_ways_and_the_header_never(alike: Federation) -> None:
    method = prepared("fedper", alike)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * EXTRACTOR
