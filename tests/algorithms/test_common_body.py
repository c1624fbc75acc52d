"""What FedPer and FedRep have in common: one extractor φ for all, a header h_k for each."""

from __future__ import annotations

import pytest
import torch
from by_hand import EXTRACTOR, INIT, KEY, arrivals, constant, is_all, job, outputs, prepared

from unalike import models, tree
from unalike.data.federation import Federation

pytestmark = pytest.mark.parametrize("name", ["fedper", "fedrep"])


def test_headers_start_alike_and_as_fedavgs(name: str, alike: Federation) -> None:
    method, plain = prepared(name, alike), prepared("fedavg", alike)
    whole = plain.init_server(INIT)["model"]
    for info in alike.clients:
        assert tree.equal({**method.init_server(INIT), **method.init_client(info, INIT)}, whole)


def test_prediction_is_the_own_header_on_the_common_body(name: str, alike: Federation) -> None:
    method = prepared(name, alike)
    it = job(method, alike)
    state = method.client_update(it).state
    other = tree.map_leaves(lambda leaf: 1.5 * leaf, it.down)
    features = models.features(method.shared, other["extractor"], it.data["x"][:4])
    expected = features @ state["header"]["weight"].T + state["header"]["bias"]
    assert torch.allclose(outputs(method, it, state, other), expected, atol=1e-5)


def test_aggregation_is_the_mean_weighted_by_samples(name: str, alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared(name, alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_extractor_travels_both_ways_and_the_header_never(name: str, alike: Federation) -> None:
    method = prepared(name, alike)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * EXTRACTOR
