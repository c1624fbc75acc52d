"""LG-FedAvg, equation by equation."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import api, models, tree
from unalike.algorithms.lg_fedavg import LGFedAvg
from unalike.data.federation import Federation
from unalike.errors import InputError
from unalike.protocol import Arrival, Job, Spec
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1


@pytest.fixture(scope="module")
def method(unlike: Federation) -> LGFedAvg:
    algorithm = api.prepare("lg-fedavg", unlike, local_epochs=1).algorithm
    assert isinstance(algorithm, LGFedAvg)
    return algorithm


def job(method: LGFedAvg, federation: Federation, client: int) -> Job[Any, Any]:
    info = federation.clients[client]
    down = method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, down, method.init_client(info, INIT), federation.data(client, "train"), KEY / client)


def test_both_parts_take_one_step_together(method: LGFedAvg, unlike: Federation) -> None:
    """(F_k, H_k) ← (F_k, H_k) − η ∇CE(H_k(F_k(x)), y), with H_k = H before it."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0)
    it = job(one, unlike, 1)
    update = one.client_update(it)
    model = tree.map_leaves(lambda t: t.clone().requires_grad_(), {**it.state, **it.down})
    outputs = models.logits(one.models[it.info.tier], model, it.data["x"])
    leaves, found = tree.flatten(model), tree.flatten({**update.state, **update.up})
    gradients = torch.autograd.grad(torch.nn.functional.cross_entropy(outputs, it.data["y"]), list(leaves.values()))
    assert leaves.keys() == found.keys()
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        assert gradient.abs().max() > 0
        assert torch.allclose(found[name], leaf - one.lr * gradient, atol=1e-6), name
    assert update.weight == it.info.n


def test_the_header_is_the_mean_weighted_by_samples(method: LGFedAvg, unlike: Federation) -> None:
    """H ← Σ n_k H_k / Σ n_k: (30 · 1 + 10 · 5) / 40 = 2."""
    server = method.init_server(INIT)
    arrivals = [
        Arrival(
            unlike.clients[k],
            {"header": tree.map_leaves(lambda t, v=v: torch.full_like(t, v), server["header"])},
            n,
            {},
        )
        for k, n, v in ((0, 30.0, 1.0), (3, 10.0, 5.0))
    ]
    found = tree.flatten(method.aggregate(server, arrivals, 1, KEY))
    assert all(torch.equal(leaf, torch.full_like(leaf, 2.0)) for leaf in found.values())


def test_a_header_travels_and_nothing_else(method: LGFedAvg, unlike: Federation) -> None:
    """(500 · 10 + 10) · 4 bytes down and up, whatever the architecture."""
    for client in range(5):
        it = job(method, unlike, client)
        update = method.client_update(it)
        assert set(tree.flatten(update.up)) == {"header/weight", "header/bias"}
        assert tree.nbytes(it.down) == tree.nbytes(update.up) == (500 * 10 + 10) * 4
        assert set(update.state) == {"extractor"}


def test_it_starts_like_the_rivals(method: LGFedAvg, unlike: Federation) -> None:
    """Extractors as in local training; the header is that of the shared architecture."""
    alone = api.prepare("standalone", unlike).algorithm
    for info in unlike.clients:
        assert tree.equal(
            method.init_client(info, INIT)["extractor"], alone.init_client(info, INIT)["model"]["extractor"]
        )
    assert method.shared_model == unlike.clients[4].tier
    assert tree.equal(method.init_server(INIT)["header"], alone.init_client(unlike.clients[4], INIT)["model"]["header"])


def test_the_broadcast_header_predicts_on_the_own_extractor(method: LGFedAvg, unlike: Federation) -> None:
    it = job(method, unlike, 2)
    state, batch = method.client_update(it).state, {"x": it.data["x"][:4]}
    header = {"weight": torch.randn(10, 500, generator=KEY.torch()), "bias": torch.arange(10.0)}
    found = method.predict(method.prepare(it.info, {"header": header}, state, it.data, KEY), batch)
    r = models.features(method.models[it.info.tier], state["extractor"], batch["x"])
    assert torch.allclose(found, r @ header["weight"].T + header["bias"], atol=1e-5)


def test_models_of_unequal_width_or_header_are_refused(unlike: Federation, tmp_path: Path) -> None:
    method = api.prepare("lg-fedavg", unlike).algorithm
    narrow = dataclasses.replace(method.models["cnn-1"], features=20)
    with pytest.raises(InputError, match=r"lg-fedavg needs one feature width, but model cnn-2 emits 500.* emits 20"):
        dataclasses.replace(method, models={**method.models, "cnn-1": narrow}).require(unlike.clients)
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "def net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 500), nn.ReLU(), nn.Linear(500, 10, bias=False))\n"
    )
    unbiased = Spec(f"{tmp_path}/mine.py:net", method.models["cnn-2"].input, 10)
    with pytest.raises(
        InputError, match=r"model cnn-2 has weight \(10, 500\) and that of cnn-1 weight .*, bias \(10,\)"
    ):
        dataclasses.replace(method, models={**method.models, "cnn-2": unbiased}).require(unlike.clients)
    method.require(unlike.clients)
