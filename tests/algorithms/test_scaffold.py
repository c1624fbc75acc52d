"""SCAFFOLD, equation by equation."""

from __future__ import annotations

import math

import pytest
import torch
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, gradient, is_all, job, minus, noise, outputs, prepared

from unalike import models, tree
from unalike.algorithms.scaffold import corrected_loss
from unalike.data.federation import Federation, federation
from unalike.protocol import Job


def visit(method: object, found: Federation) -> Job[object, object]:
    """A visit in which both control variates are something."""
    it = job(method, found)
    zeros = it.state["control"]
    down = {"model": it.down["model"], "control": noise(zeros, 1, 0.01)}
    return job(method, found, down=down, control=noise(zeros, 2, 0.01))


def test_two_steps_and_the_new_control_variate_by_hand(alike: Federation) -> None:
    """y ← y − η (g − c_k + c) twice; c_k⁺ = c_k − c + (x − y) / (2 η), which is the mean of the two g."""
    method = prepared("scaffold", alike, local_epochs=2)
    it = visit(method, alike)
    x, c, c_k = it.down["model"], it.down["control"], it.state["control"]
    y, gradients = x, []
    for _ in range(2):
        gradients.append(gradient(method, y, it.data))
        y = minus(y, method.lr, minus(minus(gradients[-1], 1.0, c_k), -1.0, c))
    mean = tree.map_leaves(lambda a, b: (a + b) / 2, *gradients)
    update = method.client_update(it)
    assert close(update.up["model"], y)
    assert close(update.state["control"], mean, atol=1e-5)
    assert close(update.up["control"], minus(mean, 1.0, c_k), atol=1e-5)


def test_weight_decay_is_part_of_what_a_control_variate_estimates(alike: Federation) -> None:
    """One step: c_k⁺ = g + decay · x, since the step was η (g − c_k + c + decay · x)."""
    method = prepared("scaffold", alike, weight_decay=0.5)
    it = visit(method, alike)
    x = it.down["model"]
    expected = minus(gradient(method, x, it.data), -0.5, x)
    assert close(method.client_update(it).state["control"], expected, atol=1e-5)


def test_a_client_whose_gradient_is_its_control_variate_follows_c(alike: Federation) -> None:
    """With c_k = ∇L(x) one step is y = x − η c, whatever the client's own data say."""
    method = prepared("scaffold", alike)
    it = visit(method, alike)
    x, c = it.down["model"], it.down["control"]
    knowing = job(method, alike, down=it.down, control=gradient(method, x, it.data))
    assert close(method.client_update(knowing).up["model"], minus(x, method.lr, c))


@pytest.mark.parametrize("size", [16, 32])
def test_k_is_the_number_of_batches_taken(alike: Federation, size: int) -> None:
    """c_k⁺ = (x − y) / (K η) from c_k = c = 0, where K is two epochs of ⌈n / size⌉ batches."""
    method = prepared("scaffold", alike, local_epochs=2, batch_size=size)
    it = job(method, alike)
    n = len(it.data["y"])
    assert n % size != 1
    update = method.client_update(it)
    difference = minus(it.down["model"], 1.0, update.up["model"])
    K = 2 * math.ceil(n / size)
    assert close(update.state["control"], tree.map_leaves(lambda leaf: leaf / (K * method.lr), difference), atol=1e-5)


def test_a_lone_row_that_is_left_out_is_no_batch(alike: Federation) -> None:
    method = prepared("scaffold", alike, batch_size=32)
    it = job(method, alike)
    few = Job(it.info, 1, it.down, it.state, {name: rows[:65] for name, rows in it.data.items()}, it.key)
    update = method.client_update(few)
    expected = tree.map_leaves(lambda x, y: (x - y) / (2 * method.lr), it.down["model"], update.up["model"])
    assert close(update.state["control"], expected, atol=1e-5)


def test_the_server_steps_by_hand(alike: Federation) -> None:
    """x = 1, y = 2 and 6: 1 + 0.5 · (4 − 1) = 2.5. c = 1, changes 2 and 4, half of the clients: 1 + 0.5 · 3 = 2.5."""
    method = prepared("scaffold", alike, lr_server=0.5, fraction=0.5)
    first = method.init_server(INIT)
    server = constant(first, 1.0)
    ups = [
        {"model": constant(first["model"], y), "control": constant(first["control"], change)}
        for y, change in ((2.0, 2.0), (6.0, 4.0))
    ]
    after = method.aggregate(server, arrivals(alike, (ups[0], 1.0), (ups[1], 1.0)), 1, KEY)
    assert is_all(after["model"], 2.5)
    assert is_all(after["control"], 2.5)


def test_all_clients_count_equally(alike: Federation) -> None:
    method = prepared("scaffold", alike)
    assert len({info.n for info in alike.clients}) > 1
    assert {method.client_update(job(method, alike, k)).weight for k in range(2)} == {1.0}


def test_the_correction_changes_the_gradient_and_not_the_reported_loss(alike: Federation) -> None:
    """∇ of the corrected loss is ∇L + c − c_k."""
    method = prepared("scaffold", alike)
    it = visit(method, alike)
    x = it.down["model"]
    working = tree.map_leaves(lambda leaf: leaf.clone().requires_grad_(), x)
    correction = noise(it.state["control"], 5, 0.1)
    loss = corrected_loss(method.shared, method.task, {"model": working}, {"correction": correction}, it.data)
    plain = models.supervised_loss(method.shared, method.task, {"model": x}, {}, it.data)
    assert loss.detach().equal(plain)
    leaves = tree.flatten(working)
    found = tree.unflatten(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    assert close(found, minus(gradient(method, x, it.data), -1.0, correction))


def test_buffers_have_no_control_variate_and_are_averaged_without_the_servers_step() -> None:
    normed = federation("digits", clients=2, partition="iid", models=["cnn-5(norm=True)"], seed=3)
    method = prepared("scaffold", normed, lr_server=0.5)
    server = method.init_server(INIT)
    assert not any("~" in name for name in tree.flatten(server["control"]))
    ups = [{"model": constant(server["model"], y), "control": server["control"]} for y in (2.0, 6.0)]
    start = {"model": constant(server["model"], 1.0), "control": server["control"]}
    after = method.aggregate(start, arrivals(normed, (ups[0], 1.0), (ups[1], 1.0)), 1, KEY)["model"]["extractor"]
    assert is_all({name: leaf for name, leaf in after.items() if "~" in name}, 4.0)
    assert is_all({name: leaf for name, leaf in after.items() if "~" not in name}, 2.5)
    buffers = 2 * (16 + 32)
    affine = buffers
    sent = method.client_update(job(method, normed)).up
    assert tree.nbytes(sent["model"]) == 4 * (CNN5 + affine + buffers) + 2 * 8
    assert tree.nbytes(sent["control"]) == 4 * (CNN5 + affine)


def test_the_first_round_from_zero_is_fedavgs_local_training(alike: Federation) -> None:
    """c = c_k = 0 corrects nothing; momentum is 0 unless asked for, and first weights are common to all methods."""
    method, plain = (prepared(name, alike, batch_size=32) for name in ("scaffold", "fedavg"))
    assert type(method)().momentum == 0.0
    assert tree.equal(method.init_server(INIT)["model"], plain.init_server(INIT)["model"])
    found, expected = (m.client_update(job(m, alike)).up["model"] for m in (method, plain))
    assert close(found, expected)


def test_model_and_control_variate_travel_both_ways(alike: Federation) -> None:
    method = prepared("scaffold", alike)
    it = job(method, alike)
    update = method.client_update(it)
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == 2 * 4 * CNN5
    assert tree.nbytes(update.state) == 4 * CNN5


def test_every_client_predicts_with_the_common_model(alike: Federation) -> None:
    method = prepared("scaffold", alike)
    it = job(method, alike)
    expected = models.logits(method.shared, it.down["model"], it.data["x"][:4])
    assert outputs(method, it, it.state).equal(expected)
