"""FD, equation by equation, with labels that only some clients have and clients that only sometimes take part."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from unalike import api, models, tree
from unalike.algorithms.fd import FD, mean_of_others, taught_loss
from unalike.data.federation import Federation, federation
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 4
SPREAD = torch.full((10,), 0.1)


@pytest.fixture(scope="module")
def method(unlike: Federation) -> FD:
    algorithm = api.prepare("fd", unlike, local_epochs=1).algorithm
    assert isinstance(algorithm, FD)
    return algorithm


def job(method: FD, found: Federation, client: int, down: dict[str, Tensor], **state: Any) -> Job[Any, Any]:
    """A visit in round 4; an empty branch vanishes on its way, as it does in a run."""
    info = found.clients[client]
    private = tree.unflatten(tree.flatten({**method.init_client(info, INIT), **state}))
    wire = tree.unflatten(tree.flatten({"outputs": down}))
    return Job(info, 4, wire, private, found.data(client, "train"), KEY / client)


def arrival(unlike: Federation, client: int, **named: list[float]) -> Arrival[Any]:
    outputs = {name.removeprefix("l"): torch.tensor(values) for name, values in named.items()}
    return Arrival(unlike.clients[client], {"outputs": outputs}, float(unlike.clients[client].n), {})


def test_the_mean_of_others_by_hand() -> None:
    """Three clients sent label 0: ((1.5, 1.5) − (.75, .25)) / 2 = (.375, .625)."""
    own = {"0": torch.tensor([0.75, 0.25])}
    assert mean_of_others({"0": torch.tensor([1.5, 1.5])}, own)["0"].tolist() == [0.375, 0.625]


def test_the_mean_of_others_of_a_label_that_was_not_sent_by_itself_is_the_mean_of_all() -> None:
    assert mean_of_others({"0": torch.tensor([0.5, 1.5])}, {})["0"].tolist() == [0.25, 0.75]


def test_a_label_that_nobody_else_has_sent_has_no_teacher() -> None:
    own = {"1": torch.tensor([0.3, 0.7]), "2": torch.tensor([0.9, 0.1])}  # 2 is not in the last round's sums at all
    assert mean_of_others({"1": own["1"].clone()}, own) == {}


def test_the_mean_of_others_is_a_distribution_in_spite_of_rounding() -> None:
    parts = torch.rand(1000, 10, generator=KEY.torch()).pow(20).softmax(1)
    own, total = parts[7], parts.double().sum(0).float()
    found = mean_of_others({"0": total}, {"0": own})["0"]
    assert found.min() >= 0
    assert torch.allclose(found, (parts.double().sum(0) - own).float() / 999, atol=1e-6)


def test_the_loss_by_hand(method: FD, unlike: Federation) -> None:
    """CE(F(x), y) + γ CE(F(x), Ĝ_y) in the mean over rows; without a teacher the second term of a row is 0."""
    it, own = job(method, unlike, 0, {}), method.models["cnn-1"]
    batch = {"x": it.data["x"][:3], "y": torch.tensor([0, 4, 0])}
    teachers = torch.zeros(10, 10)
    teachers[4, 4], teachers[4, 9] = 0.75, 0.25
    log_p = models.logits(own, it.state["model"], batch["x"]).log_softmax(1)
    hard = -(log_p[0, 0] + log_p[1, 4] + log_p[2, 0]) / 3
    soft = -(0.75 * log_p[1, 4] + 0.25 * log_p[1, 9]) / 3
    found = taught_loss(own, method.task, 0.5, {"model": it.state["model"]}, {"teachers": teachers}, batch)
    assert float(found) == pytest.approx(float(hard + 0.5 * soft), abs=1e-6)
    assert float(soft) > 0.1


def test_a_visit_is_gradient_descent_on_the_loss_with_the_teachers_of_others(method: FD, unlike: Federation) -> None:
    """F_k ← F_k − η ∇[CE(F_k(x), y) + γ CE(F_k(x), Ĝ_k,y)], where Ĝ_k leaves out what k sent in the last round."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0, gamma=2.0)
    other = torch.arange(10.0).softmax(0)
    sent = {"0": SPREAD, "2": SPREAD}
    it = job(one, unlike, 0, {"0": SPREAD + other, "2": SPREAD.clone()}, sent=sent, round=torch.tensor(3))
    model = tree.map_leaves(lambda t: t.clone().requires_grad_(), it.state["model"])
    log_p = models.logits(one.models["cnn-1"], model, it.data["x"]).log_softmax(1)
    y = it.data["y"]
    loss = (-log_p.gather(1, y[:, None])[:, 0] - 2.0 * (y == 0) * (log_p @ other)).mean()
    leaves, found = tree.flatten(model), tree.flatten(one.client_update(it).state["model"])
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert torch.allclose(found[name], leaf - one.lr * gradient, atol=1e-6), name


def test_mean_outputs_are_those_of_the_trained_model_in_evaluation_mode() -> None:
    """F̄_k,l is the mean of softmax over all rows of label l, dropout and batch statistics off."""
    found = federation("digits", clients=2, models=["cnn-5(norm=True, dropout=0.5)"], min_per_client=60, seed=3)
    method: Any = api.prepare("fd", found, local_epochs=1).algorithm
    it = job(method, found, 0, {})
    update = method.client_update(it)
    probabilities = models.logits(method.models[it.info.tier], update.state["model"], it.data["x"]).softmax(1)
    for name, mean in update.up["outputs"].items():
        assert torch.allclose(mean, probabilities[it.data["y"] == int(name)].mean(0), atol=1e-6), name
        assert float(mean.sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_labels_a_client_has_are_sent_and_nothing_else(method: FD, unlike: Federation) -> None:
    """Labels · 10 · 4 bytes up; down all labels that were sent: 10 · 10 · 4."""
    ups = [method.client_update(job(method, unlike, client, {})) for client in range(5)]
    for client, update in enumerate(ups):
        labels = unlike.data(client, "train")["y"].unique().tolist()
        assert set(tree.flatten(update.up)) == {f"outputs/{label}" for label in labels}
        assert tree.nbytes(update.up) == len(labels) * 10 * 4
    assert (tree.nbytes(ups[0].up), tree.nbytes(ups[3].up)) == (10 * 10 * 4, 9 * 10 * 4)  # client 3 never saw a 9
    arrivals = [Arrival(unlike.clients[k], update.up, update.weight, {}) for k, update in enumerate(ups)]
    server = method.aggregate(method.init_server(INIT), arrivals, 1, KEY)
    down = method.broadcast(server, unlike.clients[3], 2)
    assert tree.nbytes(down) == 10 * 10 * 4
    assert float(down["outputs"]["9"].sum()) == pytest.approx(4.0, abs=1e-4)  # so its receivers know that four sent it


def test_the_server_sums_by_label_over_the_last_round_alone(method: FD, unlike: Federation) -> None:
    """Σ_j F̄_j,l, whatever the clients' sizes; a label of one client is in it; one of an earlier round is not."""
    before = method.aggregate(method.init_server(INIT), [arrival(unlike, 1, l7=[0.5, 0.5])], 1, KEY)
    found = method.aggregate(
        before, [arrival(unlike, 0, l3=[0.25, 0.75]), arrival(unlike, 1, l3=[1.0, 0.0], l5=[0.5, 0.5])], 2, KEY
    )
    assert {name: total.tolist() for name, total in found["outputs"].items()} == {"3": [1.25, 0.75], "5": [0.5, 0.5]}


def test_the_first_round_has_no_teachers(method: FD, unlike: Federation) -> None:
    """It is local training, bit for bit, and so is every round with γ = 0."""
    assert tree.flatten(method.broadcast(method.init_server(INIT), unlike.clients[0], 1)) == {}
    alone = api.prepare("standalone", unlike, local_epochs=1).algorithm
    taught = job(method, unlike, 3, {str(c): 2 * SPREAD for c in range(10)})
    first, expected = job(method, unlike, 3, {}), alone.client_update(job(method, unlike, 3, {})).state["model"]
    deaf = dataclasses.replace(method, gamma=0.0)
    for found in (method.client_update(first), deaf.client_update(taught)):
        for name, leaf in tree.flatten(found.state["model"]).items():
            assert torch.equal(leaf, tree.flatten(expected)[name]), name
    assert not tree.equal(method.client_update(taught).state["model"], expected)


def test_a_client_that_was_not_in_the_last_round_takes_nothing_off(method: FD, unlike: Federation) -> None:
    """Sent in round 3, it is taken off the sums of round 4's broadcast; sent in round 2, it is not among them."""
    skewed, sums = torch.arange(10.0).softmax(0), {"0": SPREAD + torch.arange(10.0).softmax(0)}
    visits = {
        "last round": job(method, unlike, 0, sums, sent={"0": SPREAD}, round=torch.tensor(3)),
        "earlier": job(method, unlike, 0, sums, sent={"0": SPREAD}, round=torch.tensor(2)),
        "never": job(method, unlike, 0, sums),
        "others alone": job(method, unlike, 0, {"0": skewed}),
    }
    found = {name: method.client_update(it).state["model"] for name, it in visits.items()}
    assert tree.equal(found["earlier"], found["never"])
    assert not tree.equal(found["last round"], found["never"])
    for name, leaf in tree.flatten(found["last round"]).items():
        assert torch.allclose(leaf, tree.flatten(found["others alone"])[name], atol=1e-5), name


def test_a_client_keeps_what_it_sent_and_when(method: FD, unlike: Federation) -> None:
    state = method.init_client(unlike.clients[3], INIT)
    assert (int(state["round"]), state["sent"]) == (0, {})
    update = method.client_update(job(method, unlike, 3, {}))
    assert tree.equal(update.state["sent"], update.up["outputs"])
    assert not tree.shares_storage(update.state, update.up)
    assert update.state["round"].dtype == torch.int64
    assert int(update.state["round"]) == 4


def test_the_own_model_predicts(method: FD, unlike: Federation) -> None:
    it = job(method, unlike, 2, {"0": SPREAD})
    batch = {"x": it.data["x"][:4]}
    found = method.predict(method.prepare(it.info, it.down, it.state, it.data, KEY), batch)
    assert torch.equal(found, models.logits(method.models[it.info.tier], it.state["model"], batch["x"]))
