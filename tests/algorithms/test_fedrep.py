"""FedRep, equation by equation."""

from __future__ import annotations

import torch
from by_hand import EXTRACTOR, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.data.federation import Federation, federation


def test_first_the_header_moves_then_the_body_through_the_new_header(alike: Federation) -> None:
    """h1 = h − η ∇_h L(h ∘ φ), φ1 = φ − η ∇_φ L(h1 ∘ φ), two header steps here."""
    method = prepared("fedrep", alike, local_epochs=2)
    it = job(method, alike)
    phi, h = it.down["extractor"], it.state["header"]
    for _ in range(2):
        g = gradient(method, {"extractor": phi, "header": h}, it.data)
        h = minus(h, method.lr, g["header"])
    g = gradient(method, {"extractor": phi, "header": h}, it.data)
    update = method.client_update(it)
    assert close(update.state["header"], h)
    assert close(update.up["extractor"], minus(phi, method.lr, g["extractor"]))


def test_body_epochs_are_the_bodys_own(alike: Federation) -> None:
    method = prepared("fedrep", alike, body_epochs=2)
    it = job(method, alike)
    update, h = method.client_update(it), method.client_update(it).state["header"]
    phi = it.down["extractor"]
    for _ in range(2):
        phi = minus(phi, method.lr, gradient(method, {"extractor": phi, "header": h}, it.data)["extractor"])
    assert close(update.up["extractor"], phi)
    assert tree.equal(h, prepared("fedrep", alike).client_update(it).state["header"])


def test_weight_decay_does_not_move_the_fixed_part(alike: Federation) -> None:
    """With decay every trained weight shrinks, so the header of a second body epoch would give itself away."""
    one, two = (
        prepared("fedrep", alike, weight_decay=0.5, momentum=0.9, body_epochs=epochs).client_update(
            job(prepared("fedrep", alike), alike)
        )
        for epochs in (1, 2)
    )
    assert tree.equal(one.state, two.state)
    assert not tree.equal(one.up, two.up)


def test_batch_norm_statistics_of_a_fixed_body_follow_the_data() -> None:
    """Six forward passes of one batch each: five for the header and one for the body."""
    normed = federation("digits", clients=2, partition="iid", models=["cnn-5(norm=True)"], seed=3)
    method = prepared("fedrep", normed, local_epochs=5)
    it = job(method, normed)
    before = tree.clone(it.down)
    up = method.client_update(it).up["extractor"]
    assert int(up["~2.num_batches_tracked"]) == 6
    assert tree.equal(it.down, before)


def test_headers_start_alike_and_as_fedavgs(alike: Federation) -> None:
    method, plain = (prepared(name, alike) for name in ("fedrep", "fedavg"))
    whole = plain.init_server(INIT)["model"]
    for info in alike.clients:
        assert tree.equal({**method.init_server(INIT), **method.init_client(info, INIT)}, whole)


def test_prediction_is_the_own_header_on_the_common_body(alike: Federation) -> None:
    method = prepared("fedrep", alike)
    it = job(method, alike)
    state = method.client_update(it).state
    other = tree.map_leaves(lambda leaf: 1.5 * leaf, it.down)
    features = models.features(method.shared, other["extractor"], it.data["x"][:4])
    expected = features @ state["header"]["weight"].T + state["header"]["bias"]
    assert torch.allclose(outputs(method, it, state, other), expected, atol=1e-5)


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("fedrep", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_the_extractor_travels_both_ways_and_the_header_never(alike: Federation) -> None:
    method = prepared("fedrep", alike)
    it = job(method, alike)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * EXTRACTOR
