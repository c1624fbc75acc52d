"""FedAvg and standalone training, equation by equation."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from unalike import api, models, tree
from unalike.data.federation import Federation
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1


def test_fedavg_averages_by_samples_and_trains_one_architecture(unlike: Federation) -> None:
    """w ← Σ n_k w_k / Σ n_k, of the smallest architecture where clients differ."""
    method = api.prepare("fedavg", unlike, local_epochs=1).algorithm
    assert method.shared_model == "cnn-5"
    server = method.init_server(INIT)
    ups = [{"model": tree.map_leaves(lambda t, v=v: torch.full_like(t, v), server["model"])} for v in (1.0, 5.0)]
    arrivals = [Arrival(unlike.clients[k], ups[k], weight, {}) for k, weight in ((0, 3.0), (1, 1.0))]
    assert all(
        torch.equal(t, torch.full_like(t, 2.0))
        for t in tree.flatten(method.aggregate(server, arrivals, 1, KEY)).values()
    )


def test_fedavg_with_one_client_and_one_batch_is_gradient_descent(unlike: Federation) -> None:
    """w_k ← w_k − η ∇L(w_k)."""
    method = api.prepare("fedavg", unlike, local_epochs=1, batch_size=10**6, momentum=0.0, weight_decay=0.0).algorithm
    data, info = unlike.data(0, "train"), unlike.clients[0]
    server = method.init_server(INIT)
    update = method.client_update(Job(info, 1, method.broadcast(server, info, 1), {}, data, KEY))
    params = {"model": tree.map_leaves(lambda t: t.clone().requires_grad_(), server["model"])}
    leaves = tree.flatten(params)
    gradients = torch.autograd.grad(
        models.supervised_loss(method.shared, method.task, params, {}, data), list(leaves.values())
    )
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert torch.allclose(tree.flatten(update.up)[name], leaf - method.lr * gradient, atol=1e-6), name
    assert tree.flatten(update.state) == {}
    assert update.weight == info.n


def test_standalone_sends_nothing_and_starts_like_pfedafms_own_models(unlike: Federation) -> None:
    alone = api.prepare("standalone", unlike, local_epochs=1).algorithm
    mixed = api.prepare("pfedafm", unlike).algorithm
    for info in unlike.clients:
        assert tree.equal(alone.init_client(info, INIT)["model"], mixed.init_client(info, INIT)["model"])
    info = unlike.clients[3]
    update = alone.client_update(Job(info, 1, {}, alone.init_client(info, INIT), unlike.data(3, "train"), KEY))
    assert tree.flatten(update.up) == {}
    assert models.parameters(alone.models[info.tier]) == tree.count(update.state)


def test_standalone_equals_pfedafm_with_alpha_fixed_at_1(unlike: Federation) -> None:
    """At α = 1 the mixture is the client's own model, so with the whole data as one batch both take the same steps."""
    mixed = api.prepare("pfedafm", unlike, local_epochs=1, mixing="fixed", alpha0=1.0).algorithm
    alone = api.prepare("standalone", unlike, local_epochs=1).algorithm
    info, data = unlike.clients[0], unlike.data(0, "train")
    down = mixed.broadcast(mixed.init_server(INIT), info, 1)
    same = dataclasses.replace(alone, batch_size=10**6), dataclasses.replace(mixed, batch_size=10**6)
    a = same[1].client_update(Job(info, 1, down, mixed.init_client(info, INIT), data, KEY)).state["model"]
    b = same[0].client_update(Job(info, 1, {}, alone.init_client(info, INIT), data, KEY)).state["model"]
    for name, leaf in tree.flatten(a).items():
        assert torch.allclose(leaf, tree.flatten(b)[name], atol=1e-5), name


@pytest.mark.parametrize("name", ["fedavg", "standalone", "pfedafm"])
def test_defaults_are_the_same_for_rivals(name: str, unlike: Federation) -> None:
    method = api.prepare(name, unlike).algorithm
    assert (method.local_epochs, method.batch_size, method.momentum, method.weight_decay, method.clip) == (
        2,
        32,
        0.9,
        1e-3,
        50.0,
    )
