"""FML, equation by equation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from unalike import api, models, tree
from unalike.algorithms.fml import FML, lesson, mutual_loss
from unalike.data.federation import Federation
from unalike.distillation import kl_divergence
from unalike.protocol import Arrival, Job
from unalike.rng import Key
from unalike.tasks import Classification

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1
CNN_5 = (16 * 1 * 25 + 16) + (32 * 16 * 25 + 32) + (512 * 500 + 500) + (500 * 500 + 500) + (500 * 10 + 10)
"""Scalars of cnn-5 for the digits: 8 x 8 is scaled to 28 x 28, which two blocks make 12 x 12 and 4 x 4."""


@pytest.fixture(scope="module")
def method(unlike: Federation) -> FML:
    prepared = api.prepare("fml", unlike, local_epochs=1, lr=0.05, alpha=0.7, beta=0.2)
    assert isinstance(prepared.algorithm, FML)
    return prepared.algorithm


def job(method: FML, federation: Federation, client: int) -> Job[Any, Any]:
    info = federation.clients[client]
    down = method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, down, method.init_client(info, INIT), federation.data(client, "train"), KEY / client)


def gradients(loss: torch.Tensor, params: Any) -> dict[str, torch.Tensor]:
    leaves = tree.flatten(params)
    found = torch.autograd.grad(loss, list(leaves.values()), retain_graph=True)
    return dict(zip(leaves, found, strict=True))


def test_the_losses_by_hand() -> None:
    """α CE(own, y) + (1 − α) KL(p_meme ‖ p_own), mean over two rows."""
    own, meme, y = np.array([[1.0, 0.0, -1.0], [0.0, 2.0, 0.0]]), np.array([[0.0, 0.0, 0.5], [1.0, 1.0, 3.0]]), [0, 2]
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (own, meme))
    ce, kl = -np.log(p[[0, 1], y]).mean(), (q * np.log(q / p)).sum(1).mean()
    task, batch, logits = Classification(3), {"y": torch.tensor(y)}, (torch.tensor(own), torch.tensor(meme))
    for share, expected in ((1.0, ce), (0.0, kl), (0.3, 0.3 * ce + 0.7 * kl)):
        assert float(lesson(task, batch, share, *logits)) == pytest.approx(expected, rel=1e-6)


def test_both_models_take_the_step_of_their_own_loss_at_once(method: FML, unlike: Federation) -> None:
    """One batch of one epoch: own ← own − η ∇L_own with the meme constant, and the other way round."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0)
    it = job(one, unlike, 0)
    update, y = one.client_update(it), it.data["y"]
    start = {"model": it.state["model"], "meme": it.down["meme"]}
    params = tree.map_leaves(lambda t: t.clone().requires_grad_(), start)
    own = models.logits(one.models[it.info.tier], params["model"], it.data["x"])
    meme = models.logits(one.shared, params["meme"], it.data["x"])
    ce = torch.nn.functional.cross_entropy
    l_own = 0.7 * ce(own, y) + 0.3 * kl_divergence(meme.detach(), own)
    l_meme = 0.2 * ce(meme, y) + 0.8 * kl_divergence(own.detach(), meme)
    ends = {"model": (l_own, update.state["model"]), "meme": (l_meme, update.up["meme"])}
    for branch, (loss, end) in ends.items():
        for name, gradient in gradients(loss, params[branch]).items():
            expected = tree.flatten(params[branch])[name] - one.lr * gradient
            assert torch.allclose(tree.flatten(end)[name], expected, atol=1e-6), f"{branch}/{name}"
    assert update.metrics["loss"] == pytest.approx((l_own + l_meme).item(), rel=1e-5)


def test_the_loss_of_one_model_leaves_the_other_alone(method: FML, unlike: Federation) -> None:
    """With α = 0 at the own model's and β = 1 at the meme's, the meme's gradient is that of its CE."""
    it = job(method, unlike, 1)
    spec = method.models[it.info.tier]
    params = tree.map_leaves(
        lambda t: t.clone().requires_grad_(), {"model": it.state["model"], "meme": it.down["meme"]}
    )
    loss = mutual_loss(spec, method.shared, method.task, 0.0, 1.0, params, {}, it.data)
    alone = models.supervised_loss(method.shared, method.task, {"model": params["meme"]}, {}, it.data)
    found, expected = gradients(loss, params["meme"]), gradients(alone, params["meme"])
    assert all(torch.allclose(found[name], expected[name], atol=1e-7) for name in expected)


def test_without_distillation_the_two_are_standalone_and_fedavg(method: FML, unlike: Federation) -> None:
    """At α = β = 1, from the same first weights and in the same batches."""
    plain = dataclasses.replace(method, alpha=1.0, beta=1.0)
    alone, together = (
        api.prepare(name, unlike, local_epochs=1, lr=0.05).algorithm for name in ("standalone", "fedavg")
    )
    it = job(plain, unlike, 3)
    update = plain.client_update(it)
    own = alone.client_update(dataclasses.replace(it, down={}, state=alone.init_client(it.info, INIT)))
    meme = together.client_update(dataclasses.replace(it, down={"model": it.down["meme"]}, state={}))
    for found, expected in ((update.state["model"], own.state["model"]), (update.up["meme"], meme.up["model"])):
        for name, leaf in tree.flatten(expected).items():
            assert torch.allclose(tree.flatten(found)[name], leaf, atol=1e-6), name


def test_memes_are_averaged_by_samples(method: FML, unlike: Federation) -> None:
    """meme ← Σ n_k meme_k / Σ n_k: (30 · 1 + 10 · 4) / 40 = 1.75."""
    server = method.init_server(INIT)
    ups = {v: {"meme": tree.map_leaves(lambda t, v=v: torch.full_like(t, v), server["meme"])} for v in (1.0, 4.0)}
    arrivals = [Arrival(unlike.clients[k], ups[v], w, {}) for k, v, w in ((1, 1.0, 30.0), (4, 4.0, 10.0))]
    found = tree.flatten(method.aggregate(server, arrivals, 1, KEY))
    assert all(torch.equal(leaf, torch.full_like(leaf, 1.75)) for leaf in found.values())


def test_the_whole_meme_travels_and_nothing_else(method: FML, unlike: Federation) -> None:
    for client in range(5):
        it = job(method, unlike, client)
        update = method.client_update(it)
        assert {name.split("/")[0] for name in tree.flatten(update.up)} == {"meme"}
        assert tree.nbytes(update.up) == tree.nbytes(it.down) == 4 * CNN_5
        assert update.weight == it.info.n


def test_a_client_predicts_with_its_own_model(method: FML, unlike: Federation) -> None:
    it = job(method, unlike, 2)
    state, batch = method.client_update(it).state, {"x": it.data["x"][:4]}
    found = method.predict(method.prepare(it.info, {}, state, it.data, KEY), batch)  # type: ignore[typeddict-item]
    assert torch.equal(found, models.logits(method.models[it.info.tier], state["model"], batch["x"]))
