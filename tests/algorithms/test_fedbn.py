"""FedBN, equation by equation."""

from __future__ import annotations

import pytest
import torch
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, outputs, prepared
from torch.nn import functional as F

from unalike import models, tree
from unalike.algorithms.fedbn import split
from unalike.data.federation import Federation, federation
from unalike.errors import InputError

LEAVES = ("weight", "bias", "~running_mean", "~running_var", "~num_batches_tracked")
NORM = {f"extractor/{'~' * (leaf[0] == '~')}{layer}.{leaf.strip('~')}" for layer in (2, 6) for leaf in LEAVES}
"""The two BatchNorm layers stand behind the scaling and the convolutions, 1 and 5."""


@pytest.fixture(scope="module")
def normed() -> Federation:
    models = ["cnn-5(norm=True)"]
    return federation("digits", clients=4, partition="dirichlet:1.0", min_per_client=60, models=models, seed=3)


def test_split_by_hand() -> None:
    a, b, c = (torch.tensor([v]) for v in (1.0, 2.0, 3.0))
    w, own = split(
        {"extractor": {"0.weight": a, "1.weight": b}, "header": {"bias": c}}, frozenset({"extractor/1.weight"})
    )
    assert w == {"extractor": {"0.weight": a}, "header": {"bias": c}}
    assert own == {"extractor": {"1.weight": b}}


def test_a_step_moves_all_weights_and_each_goes_its_way(normed: Federation) -> None:
    """(w_k, b_k) ← (w_k, b_k) − η ∇L(w_k, b_k), from a b_k of the client's own."""
    method = prepared("fedbn", normed)
    start = job(method, normed).state["norm"]
    own = tree.map_leaves(lambda leaf: leaf + 0.25 if leaf.is_floating_point() else leaf, start)
    it = job(method, normed, norm=own)
    whole = tree.merge(it.down["model"], own)
    expected = tree.flatten(minus(whole, method.lr, gradient(method, whole, it.data)))
    update = method.client_update(it)
    assert set(tree.flatten(update.state["norm"])) == NORM
    found = tree.flatten(update.up["model"]) | tree.flatten(update.state["norm"])
    assert not set(tree.flatten(update.up["model"])) & NORM
    assert close(tree.unflatten(found), tree.unflatten(expected))


def test_the_statistics_are_the_clients(normed: Federation) -> None:
    """After one batch the running mean is 0.9 · 0 + 0.1 · the mean of the first convolution's outputs."""
    method = prepared("fedbn", normed)
    it = job(method, normed)
    weights = it.down["model"]["extractor"]
    x = F.interpolate(it.data["x"], size=(28, 28), mode="bilinear", align_corners=False)
    expected = 0.1 * F.conv2d(x, weights["1.weight"], weights["1.bias"]).mean((0, 2, 3))
    norm = method.client_update(it).state["norm"]["extractor"]
    assert torch.allclose(norm["~2.running_mean"], expected, atol=1e-5)
    assert int(norm["~2.num_batches_tracked"]) == 1


def test_prediction_is_by_the_common_weights_and_the_own_layers(normed: Federation) -> None:
    method = prepared("fedbn", normed)
    it = job(method, normed)
    state = method.client_update(it).state
    whole = tree.merge(it.down["model"], state["norm"])
    expected = models.logits(method.shared, whole, it.data["x"][:4])
    assert outputs(method, it, state).equal(expected)
    assert not outputs(method, it, it.state).equal(expected)


def test_the_parts_start_as_fedavgs_whole(normed: Federation) -> None:
    method, plain = (prepared(name, normed) for name in ("fedbn", "fedavg"))
    parts = method.init_server(INIT)["model"], method.init_client(normed.clients[1], INIT)["norm"]
    assert tree.equal(tree.merge(*parts), plain.init_server(INIT)["model"])


def test_aggregation_is_the_mean_weighted_by_samples(normed: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("fedbn", normed)
    server = method.init_server(INIT)
    sent = arrivals(normed, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, normed, 1)).weight == normed.clients[1].n


def test_all_but_the_batch_norm_travels_both_ways(normed: Federation) -> None:
    """Kept are scale, shift, mean and variance of 16 + 32 channels, and two counters of 8 bytes."""
    method = prepared("fedbn", normed)
    it = job(method, normed)
    update = method.client_update(it)
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == 4 * CNN5
    assert tree.nbytes(update.state) == 4 * 4 * (16 + 32) + 2 * 8


def test_a_model_without_batch_norm_is_refused_in_one_line_with_the_remedy(alike: Federation) -> None:
    with pytest.raises(InputError) as caught:
        prepared("fedbn", alike)
    said = str(caught.value)
    assert "model cnn-5 has none" in said
    assert "--shared-model 'cnn-5(norm=True)'" in said
    assert "\n" not in said
    assert prepared("fedbn", alike, shared_model="cnn-5(norm=True)").shared.name == "cnn-5(norm=True)"
