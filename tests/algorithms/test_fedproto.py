"""FedProto, equation by equation, with classes that only some clients have and rounds in which some are missing."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unalike import api, models, tree
from unalike.algorithms.fedproto import FedProto, nearness, tied_loss
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1


@pytest.fixture(scope="module")
def method(unlike: Federation) -> FedProto:
    algorithm = api.prepare("fedproto", unlike, local_epochs=1).algorithm
    assert isinstance(algorithm, FedProto)
    return algorithm


def job(method: FedProto, found: Federation, client: int, down: dict[str, Tensor]) -> Job[Any, Any]:
    """A visit; an empty branch vanishes on its way, as it does in a run."""
    info = found.clients[client]
    wire = tree.unflatten(tree.flatten({"prototypes": down}))
    return Job(info, 1, wire, method.init_client(info, INIT), found.data(client, "train"), KEY / client)


def arrival(unlike: Federation, client: int, **named: list[float]) -> Arrival[Any]:
    prototypes = {name.removeprefix("l"): torch.tensor(values) for name, values in named.items()}
    return Arrival(unlike.clients[client], {"prototypes": prototypes}, float(unlike.clients[client].n), {})


def test_the_loss_by_hand(method: FedProto, unlike: Federation) -> None:
    """CE + λ R, R the mean of (F(x) − C_y)² over rows and features; a row of a class without C has R = 0."""
    it, own = job(method, unlike, 0, {}), method.models["cnn-1"]
    model, batch = it.state["model"], {"x": it.data["x"][:3], "y": torch.tensor([0, 4, 0])}
    r = models.features(own, model["extractor"], batch["x"])
    prototypes = torch.full((10, 500), math.nan)
    prototypes[4] = 0.0
    prototypes[4, :2] = torch.tensor([3.0, -1.0])
    squares = (r[1, 0] - 3.0) ** 2 + (r[1, 1] + 1.0) ** 2 + (r[1, 2:] ** 2).sum()
    hard = F.cross_entropy(models.head(own, model["header"], r), batch["y"])
    found = tied_loss(own, method.task, 100.0, {"model": model}, {"prototypes": prototypes}, batch)
    assert float(found) == pytest.approx(float(hard + 100.0 * squares / (3 * 500)), rel=1e-5)


def test_a_visit_is_gradient_descent_on_the_loss(method: FedProto, unlike: Federation) -> None:
    """(F_k, H_k) ← (F_k, H_k) − η ∇[CE + λ R], where some classes have no prototype."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0, lam=5.0)
    target = torch.ones(500)
    it = job(one, unlike, 0, {"0": target})
    model, own = tree.map_leaves(lambda t: t.clone().requires_grad_(), it.state["model"]), one.models["cnn-1"]
    r, y = models.features(own, model["extractor"], it.data["x"]), it.data["y"]
    pull = ((r - target)[y == 0] ** 2).sum() / (len(y) * 500)
    loss = F.cross_entropy(models.head(own, model["header"], r), y) + 5.0 * pull
    leaves, found = tree.flatten(model), tree.flatten(one.client_update(it).state["model"])
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert torch.allclose(found[name], leaf - one.lr * gradient, atol=1e-6), name


def test_prototypes_are_mean_features_of_the_trained_model_in_evaluation_mode() -> None:
    """C_k,j is the mean of F_k(x) over all rows of class j, dropout and batch statistics off."""
    found = federation("digits", clients=2, models=["cnn-5(norm=True, dropout=0.5)"], min_per_client=60, seed=3)
    method: Any = api.prepare("fedproto", found, local_epochs=1).algorithm
    it = job(method, found, 0, {})
    update = method.client_update(it)
    r = models.features(method.models[it.info.tier], update.state["model"]["extractor"], it.data["x"])
    for name, prototype in update.up["prototypes"].items():
        assert torch.allclose(prototype, r[it.data["y"] == int(name)].mean(0), atol=1e-5), name


def test_prototypes_of_the_classes_a_client_has_are_sent_and_nothing_else(method: FedProto, unlike: Federation) -> None:
    """Classes · 500 · 4 bytes up, whatever the architecture; down 10 · 500 · 4 at most."""
    ups = [method.client_update(job(method, unlike, client, {})) for client in range(5)]
    for client, update in enumerate(ups):
        labels = unlike.data(client, "train")["y"].unique().tolist()
        assert set(tree.flatten(update.up)) == {f"prototypes/{label}" for label in labels}
        assert tree.nbytes(update.up) == len(labels) * 500 * 4
        assert not tree.shares_storage(update.up, update.state)
    assert (tree.nbytes(ups[0].up), tree.nbytes(ups[3].up)) == (20_000, 18_000)  # client 3 never saw a 9
    arrivals = [Arrival(unlike.clients[k], update.up, update.weight, {}) for k, update in enumerate(ups)]
    server = method.aggregate(method.init_server(INIT), arrivals, 1, KEY)
    assert tree.nbytes(method.broadcast(server, unlike.clients[3], 2)) == 10 * 500 * 4


def test_the_server_takes_the_mean_over_the_clients_that_sent_a_class(method: FedProto, unlike: Federation) -> None:
    """C_j ← mean of the C_k,j, whatever the clients' sizes; a class that only one has is that one's."""
    arrivals = [arrival(unlike, 0, l3=[1.0, 2.0]), arrival(unlike, 1, l3=[5.0, 4.0], l5=[9.0, 9.0])]
    assert arrivals[0].weight != arrivals[1].weight
    found = method.aggregate(method.init_server(INIT), arrivals, 1, KEY)["prototypes"]
    assert {name: mean.tolist() for name, mean in found.items()} == {"3": [3.0, 3.0], "5": [9.0, 9.0]}


def test_a_class_that_nobody_sent_keeps_its_prototype(method: FedProto, unlike: Federation) -> None:
    before = method.aggregate({}, [arrival(unlike, 0, l3=[1.0], l7=[7.0])], 1, KEY)
    copy = tree.clone(before)
    found = method.aggregate(before, [arrival(unlike, 1, l3=[2.0])], 2, KEY)["prototypes"]
    assert {name: mean.tolist() for name, mean in found.items()} == {"3": [2.0], "7": [7.0]}
    assert tree.equal(before, copy)


def test_the_first_round_pulls_nothing(method: FedProto, unlike: Federation) -> None:
    """It is local training, bit for bit, and so is every round with λ = 0."""
    assert tree.flatten(method.broadcast(method.init_server(INIT), unlike.clients[0], 1)) == {}
    alone = api.prepare("standalone", unlike, local_epochs=1).algorithm
    first, tied = job(method, unlike, 3, {}), job(method, unlike, 3, {"0": torch.ones(500), "8": torch.zeros(500)})
    expected = alone.client_update(first).state["model"]
    free = dataclasses.replace(method, lam=0.0)
    for found in (method.client_update(first), free.client_update(tied)):
        for name, leaf in tree.flatten(found.state["model"]).items():
            assert torch.equal(leaf, tree.flatten(expected)[name]), name
    assert not tree.equal(method.client_update(tied).state["model"], expected)


def test_nearness_by_hand() -> None:
    """−‖(0, 0) − (3, 4)‖ = −5 and −‖(0, 0) − (0, 1)‖ = −1; a class without a prototype is below both, at −6."""
    prototypes = {"0": torch.tensor([3.0, 4.0]), "2": torch.tensor([0.0, 1.0])}
    found = nearness(torch.tensor([[0.0, 0.0], [3.0, 4.0]]), prototypes, 4)
    assert found[0].tolist() == [-5.0, -6.0, -1.0, -6.0]
    assert found[1].tolist() == pytest.approx([0.0, -math.sqrt(18) - 1, -math.sqrt(18), -math.sqrt(18) - 1])


@pytest.mark.parametrize("scale", [0.0, 1e-6, 1.0, 1e4])
def test_a_class_without_a_prototype_never_wins_and_its_loss_stays_finite(scale: float) -> None:
    r = scale * torch.randn(20, 8, generator=KEY.torch())
    found = nearness(r, {"1": scale * torch.ones(8), "10": torch.zeros(8)}, 12)
    missing = [c for c in range(12) if c not in (1, 10)]
    assert (found[:, missing].amax(1) < found[:, [1, 10]].amin(1)).all()
    assert torch.isfinite(F.cross_entropy(found, torch.zeros(20, dtype=torch.long)))


def test_the_nearest_prototype_predicts(method: FedProto, unlike: Federation) -> None:
    it = job(method, unlike, 0, {})
    state, batch = method.client_update(it).state, {"x": it.data["x"][:4], "y": it.data["y"][:4]}
    r = models.features(method.models["cnn-1"], state["model"]["extractor"], batch["x"])
    down = {"prototypes": {"6": r[2].clone(), "1": r[0].clone()}}
    found = method.predict(method.prepare(it.info, down, state, it.data, KEY), batch)
    assert found.shape == (4, 10)
    assert (int(found[0].argmax()), int(found[2].argmax())) == (1, 6)
    assert float(found[2, 1]) == pytest.approx(-float((r[2] - r[0]).norm()), rel=1e-5)


def test_the_header_predicts_where_it_is_asked_to_or_there_are_no_prototypes(
    method: FedProto, unlike: Federation
) -> None:
    it, by_header = job(method, unlike, 1, {}), dataclasses.replace(method, prediction="header")
    batch, down = {"x": it.data["x"][:4]}, {"prototypes": {"0": torch.ones(500)}}
    expected = models.logits(method.models[it.info.tier], it.state["model"], batch["x"])
    assert torch.equal(method.predict(method.prepare(it.info, it.down, it.state, it.data, KEY), batch), expected)
    assert torch.equal(by_header.predict(by_header.prepare(it.info, down, it.state, it.data, KEY), batch), expected)
    assert not torch.equal(method.predict(method.prepare(it.info, down, it.state, it.data, KEY), batch), expected)


def test_models_of_unequal_width_are_refused(method: FedProto, unlike: Federation) -> None:
    narrow = dataclasses.replace(method.models["cnn-1"], features=20)
    with pytest.raises(InputError, match=r"fedproto needs one feature width, but model cnn-2 emits 500.* emits 20"):
        dataclasses.replace(method, models={**method.models, "cnn-1": narrow}).require(unlike.clients)
