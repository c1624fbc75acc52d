"""FedAPEN, equation by equation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from unalike import api, models, tree
from unalike.algorithms.fedapen import FedAPEN, ensemble, hold_out, lesson
from unalike.data.federation import Federation
from unalike.distillation import kl_divergence
from unalike.protocol import Arrival, Job
from unalike.rng import Key
from unalike.tasks import Classification

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1
CNN_5 = (16 * 1 * 25 + 16) + (32 * 16 * 25 + 32) + (512 * 500 + 500) + (500 * 500 + 500) + (500 * 10 + 10)
"""Scalars of cnn-5 for the digits: 8 x 8 is scaled to 28 x 28, which two blocks make 12 x 12 and 4 x 4."""


@pytest.fixture(scope="module")
def method(unlike: Federation) -> FedAPEN:
    prepared = api.prepare("fedapen", unlike, local_epochs=1, lr=0.05)
    assert isinstance(prepared.algorithm, FedAPEN)
    return prepared.algorithm


def job(method: FedAPEN, federation: Federation, client: int, **state: Any) -> Job[Any, Any]:
    info = federation.clients[client]
    private = {**method.init_client(info, INIT), **state}
    down = method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, down, private, federation.data(client, "train"), KEY / client)


def both(method: FedAPEN, it: Job[Any, Any], x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of own and shared model before the visit."""
    own = models.logits(method.models[it.info.tier], it.state["model"], x)
    return own, models.logits(method.shared, it.down["shared"], x)


def test_the_losses_by_hand() -> None:
    """CE(own) + KL(p_sha ‖ p_own) + CE(λ own + (1 − λ) sha), mean over two rows, at λ = 0.25."""
    own, shared, y = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]), np.array([[0.0, 0.0, 0.5], [1.0, 1.0, 3.0]]), [0, 2]

    def softmax(z: np.ndarray) -> np.ndarray:
        powers: np.ndarray = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return powers

    def ce(z: np.ndarray) -> float:
        return float(-np.log(softmax(z)[[0, 1], y]).mean())

    p, q = softmax(own), softmax(shared)
    together = 0.25 * own + 0.75 * shared
    expected = ce(own) + (q * np.log(q / p)).sum(1).mean() + ce(together)
    task, batch = Classification(3), {"y": torch.tensor(y)}
    a, b, lam = torch.tensor(own), torch.tensor(shared), torch.tensor(0.25)
    assert np.allclose(ensemble(lam, a, b).numpy(), together)
    assert float(lesson(task, batch, lam, a, b)) == pytest.approx(expected, rel=1e-6)
    expected_of_shared = ce(shared) + (p * np.log(p / q)).sum(1).mean() + ce(together)
    assert float(lesson(task, batch, 1 - lam, b, a)) == pytest.approx(expected_of_shared, rel=1e-6)


def test_both_models_take_the_step_of_their_own_loss_at_once(method: FedAPEN, unlike: Federation) -> None:
    """One batch of one epoch at λ = 0.3: w ← w − η ∇L, where the other model is constant, in the ensemble too."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0, held_out=0.0)
    it = job(one, unlike, 0, lam=torch.tensor(0.3))
    update, y = one.client_update(it), it.data["y"]
    start = {"model": it.state["model"], "shared": it.down["shared"]}
    params = tree.map_leaves(lambda t: t.clone().requires_grad_(), start)
    own = models.logits(one.models[it.info.tier], params["model"], it.data["x"])
    shared = models.logits(one.shared, params["shared"], it.data["x"])
    ce, own_0, shared_0 = torch.nn.functional.cross_entropy, own.detach(), shared.detach()
    l_own = ce(own, y) + kl_divergence(shared_0, own) + ce(0.3 * own + 0.7 * shared_0, y)
    l_shared = ce(shared, y) + kl_divergence(own_0, shared) + ce(0.3 * own_0 + 0.7 * shared, y)
    for branch, loss, end in (("model", l_own, update.state["model"]), ("shared", l_shared, update.up["shared"])):
        leaves = tree.flatten(params[branch])
        for (name, leaf), gradient in zip(
            leaves.items(), torch.autograd.grad(loss, list(leaves.values()), retain_graph=True), strict=True
        ):
            found = tree.flatten(end)[name]
            assert torch.allclose(found, leaf - one.lr * gradient, atol=1e-6), f"{branch}/{name}"
    assert update.metrics["loss"] == pytest.approx((l_own + l_shared).item(), rel=1e-5)
    assert set(update.metrics) == {"loss"}, "λ is private"


def test_lambda_takes_gradient_steps_on_the_rows_held_out_alone(method: FedAPEN, unlike: Federation) -> None:
    """∂CE/∂λ is the mean over those rows of Σ_c (softmax(ŷ)_c − [c = y]) (own_c − shared_c)."""
    two = dataclasses.replace(method, lr_lambda=0.5, lambda_epochs=2)
    it = job(two, unlike, 1)
    held, _ = hold_out(it.data, two.held_out, int(it.state["split"]))
    with torch.no_grad():
        own, shared = (z.double().numpy() for z in both(two, it, held["x"]))
    lam, labels = 0.5, np.eye(10)[held["y"].numpy()]
    for _ in range(2):
        powers = np.exp(lam * own + (1 - lam) * shared)
        wrong = powers / powers.sum(1, keepdims=True) - labels
        lam -= 0.5 * float((wrong * (own - shared)).sum(1).mean())
    assert abs(lam - 0.5) > 1e-3
    update = two.client_update(it)
    assert float(update.state["lam"]) == pytest.approx(lam, abs=1e-5)


def test_lambda_stays_in_the_unit_interval(method: FedAPEN, unlike: Federation) -> None:
    wild = dataclasses.replace(method, lr_lambda=1e4)
    ends = {float(wild.client_update(job(wild, unlike, client)).state["lam"]) for client in range(3)}
    assert ends <= {0.0, 1.0}


def test_rows_held_out_are_training_rows_that_train_lambda_only(method: FedAPEN, unlike: Federation) -> None:
    """A tenth of them, the same at every visit. When they turn into noise, the models come out in the same bits."""
    fixed = dataclasses.replace(method, lr_lambda=0.0)
    it = job(fixed, unlike, 2)
    seed, n = int(it.state["split"]), it.info.n
    held, others = hold_out({"x": torch.arange(n)}, 0.1, seed)
    assert len(held["x"]) == int(0.1 * n + 0.5)
    assert torch.equal(torch.cat([held["x"], others["x"]]).sort().values, torch.arange(n))
    assert torch.equal(held["x"], hold_out({"x": torch.arange(n)}, 0.1, seed)[0]["x"])
    noisy = it.data["x"].clone()
    noisy[held["x"]] = 9.0
    update, other = fixed.client_update(it), fixed.client_update(dataclasses.replace(it, data={**it.data, "x": noisy}))
    assert torch.equal(update.state["split"], it.state["split"])
    assert tree.equal(update.up, other.up)
    noisy[others["x"][0]] = 9.0
    assert not tree.equal(update.up, fixed.client_update(dataclasses.replace(it, data={**it.data, "x": noisy})).up)


def test_clients_hold_out_by_their_own_seeds(method: FedAPEN, unlike: Federation) -> None:
    assert len({int(method.init_client(info, INIT)["split"]) for info in unlike.clients}) == 6


@pytest.mark.parametrize(("rows", "share", "expected"), [(1, 1.0, 0), (2, 1.0, 1), (4, 0.1, 0), (5, 0.1, 1)])
def test_one_row_is_left_to_train_on(rows: int, share: float, expected: int) -> None:
    held, others = hold_out({"x": torch.zeros(rows, 3)}, share, 0)
    assert (len(held["x"]), len(others["x"])) == (expected, rows - expected)


def test_shared_models_are_averaged_by_samples(method: FedAPEN, unlike: Federation) -> None:
    """w ← Σ n_k w_k / Σ n_k: (30 · 1 + 10 · 4) / 40 = 1.75."""
    server = method.init_server(INIT)
    ups = {v: {"shared": tree.map_leaves(lambda t, v=v: torch.full_like(t, v), server["shared"])} for v in (1.0, 4.0)}
    arrivals = [Arrival(unlike.clients[k], ups[v], w, {}) for k, v, w in ((1, 1.0, 30.0), (4, 4.0, 10.0))]
    found = tree.flatten(method.aggregate(server, arrivals, 1, KEY))
    assert all(torch.equal(leaf, torch.full_like(leaf, 1.75)) for leaf in found.values())


def test_the_whole_shared_model_travels_and_nothing_else(method: FedAPEN, unlike: Federation) -> None:
    for client in range(5):
        it = job(method, unlike, client)
        update = method.client_update(it)
        assert {name.split("/")[0] for name in tree.flatten(update.up)} == {"shared"}
        assert tree.nbytes(update.up) == tree.nbytes(it.down) == 4 * CNN_5
        assert update.weight == it.info.n


def test_a_client_predicts_with_the_ensemble_of_its_own_and_the_averaged_model(
    method: FedAPEN, unlike: Federation
) -> None:
    """λ own(x) + (1 − λ) shared(x), with the shared model as it has come down."""
    it = job(method, unlike, 3, lam=torch.tensor(0.25))
    batch = {"x": it.data["x"][:4]}
    with torch.no_grad():
        own, shared = both(method, it, batch["x"])
        found = method.predict(method.prepare(it.info, it.down, it.state, it.data, KEY), batch)
    assert torch.allclose(found, 0.25 * own + 0.75 * shared)
    assert not torch.allclose(found, own)
