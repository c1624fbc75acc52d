"""pFedAFM, equation by equation, and the faults of the public code that must not come back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from unalike import api, models, tree
from unalike.algorithms.pfedafm import PFedAFM, bound_shift, clamp_alpha, mix, mixed_loss, shared_loss
from unalike.data.federation import Federation
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1


@pytest.fixture(scope="module")
def method(unlike: Federation) -> PFedAFM:
    prepared = api.prepare("pfedafm", unlike, local_epochs=1, lr=0.05)
    assert isinstance(prepared.algorithm, PFedAFM)
    return prepared.algorithm


def job(method: PFedAFM, federation: Federation, client: int, **state: Any) -> Job[Any, Any]:
    info = federation.clients[client]
    private = {**method.init_client(info, INIT), **state}
    down = method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, down, private, federation.data(client, "train"), KEY / client)


def test_mixing_by_hand() -> None:
    """R = α ⊙ F + (1 − α) ⊙ G."""
    alpha, f, g = torch.tensor([1.0, 0.0, 0.25]), torch.tensor([[2.0, 2.0, 4.0]]), torch.tensor([[5.0, 6.0, 8.0]])
    assert mix(alpha, f, g).tolist() == [[2.0, 6.0, 7.0]]


def test_alpha_is_clamped_to_the_unit_interval_and_to_its_reach() -> None:
    params = {"alpha": torch.tensor([-0.5, 0.5, 1.5, 0.9])}
    clamp_alpha(torch.full((4,), 0.5), 1.0, params)
    assert params["alpha"].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.9])
    clamp_alpha(torch.full((4,), 0.5), 0.1, params)
    assert params["alpha"].tolist() == pytest.approx([0.4, 0.5, 0.6, 0.6])


def test_bound_shift_by_hand() -> None:
    """‖f‖ = 5 and ‖r − f‖ = 10: with limit 1 half of the shift is left, with limit 3 all of it."""
    f, r = torch.tensor([[3.0, 4.0]]), torch.tensor([[9.0, 12.0]])
    assert bound_shift(f, r, 1.0).tolist() == [[6.0, 8.0]]
    assert torch.equal(bound_shift(f, r, 3.0), r)
    assert bound_shift(f, r, 0.0) is r


def test_step_1_trains_model_and_alpha_beside_a_frozen_theta(method: PFedAFM, unlike: Federation) -> None:
    """One batch of one epoch equals a hand-written gradient step on F, header and α; θ gets none."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0, alpha_wd=0.0)
    it = job(one, unlike, 0)
    state = one.client_update(it).state
    own = one.models[it.info.tier]
    params = tree.map_leaves(lambda t: t.clone().requires_grad_(), {k: it.state[k] for k in ("model", "alpha")})
    loss = mixed_loss(own, one.shared, one.task, params, {"theta": it.down["theta"]}, it.data)
    leaves = tree.flatten(params)
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    assert gradients["alpha"].abs().max() > 0
    expected = (it.state["alpha"] - one.lr_alpha * gradients["alpha"]).clamp(0, 1)
    assert torch.allclose(state["alpha"], expected, atol=1e-7)
    header = it.state["model"]["header"]["weight"] - one.lr * gradients["model/header/weight"]
    assert torch.allclose(state["model"]["header"]["weight"], header, atol=1e-6)


def test_step_2_trains_theta_alone_through_the_frozen_new_header(method: PFedAFM, unlike: Federation) -> None:
    """θ_k = θ − η ∇CE(header(G(x)), y), where the header is the one that step 1 has just trained."""
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0)
    it = job(one, unlike, 1)
    update = one.client_update(it)
    theta = tree.map_leaves(lambda t: t.clone().requires_grad_(), it.down["theta"])
    given = {"header": update.state["model"]["header"]}
    loss = shared_loss(one.models[it.info.tier], one.shared, one.task, {"theta": theta}, given, it.data)
    leaves = tree.flatten(theta)
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        found = tree.flatten(update.up["theta"])[name]
        assert torch.allclose(found, leaf - one.lr * gradient, atol=1e-6), name


def test_the_shared_loss_is_the_mixed_loss_at_alpha_0(method: PFedAFM, unlike: Federation) -> None:
    it = job(method, unlike, 2)
    own, theta, model = method.models[it.info.tier], it.down["theta"], it.state["model"]
    zero = {"model": model, "alpha": torch.zeros_like(it.state["alpha"])}
    mixed = mixed_loss(own, method.shared, method.task, zero, {"theta": theta}, it.data)
    alone = shared_loss(own, method.shared, method.task, {"theta": theta}, {"header": model["header"]}, it.data)
    assert torch.allclose(mixed, alone)


def test_aggregation_is_the_mean_weighted_by_samples(method: PFedAFM, unlike: Federation) -> None:
    """θ ← Σ n_k θ_k / Σ n_k; the public code stores uploads by reference, so its mean is the last client's θ."""
    server = method.init_server(INIT)
    arrivals = [
        Arrival(
            unlike.clients[k], {"theta": tree.map_leaves(lambda t, k=k: torch.full_like(t, k), server["theta"])}, w, {}
        )
        for k, w in ((1, 30.0), (4, 10.0))
    ]
    found = tree.flatten(method.aggregate(server, arrivals, 1, KEY))
    assert all(torch.equal(leaf, torch.full_like(leaf, 1.75)) for leaf in found.values())


def test_uploads_of_two_clients_do_not_alias(method: PFedAFM, unlike: Federation) -> None:
    """Fault 1 of the public code: after the second client trained, the first one's upload must be what it was."""
    first = method.client_update(job(method, unlike, 0)).up
    copy = tree.clone(first)
    second = method.client_update(job(method, unlike, 1)).up
    assert tree.equal(first, copy)
    assert not tree.equal(first, second)
    assert not tree.shares_storage(first, second)


def test_alpha_of_a_client_is_its_own(method: PFedAFM, unlike: Federation) -> None:
    """Fault 2: a client must not resume from the α of the client that trained before it."""
    alone = method.client_update(job(method, unlike, 1)).state["alpha"]
    method.client_update(job(method, unlike, 0))
    after_other = method.client_update(job(method, unlike, 1)).state["alpha"]
    assert torch.equal(alone, after_other)
    assert float((alone - 0.5).abs().max()) > 0


def test_no_momentum_passes_between_visits(method: PFedAFM, unlike: Federation) -> None:
    """Fault 3: optimisers are fresh, so training A then B equals training B alone."""
    expected = method.client_update(job(method, unlike, 2))
    for other in (0, 1, 2):
        method.client_update(job(method, unlike, other))
    again = method.client_update(job(method, unlike, 2))
    assert tree.equal(expected.up, again.up)
    assert tree.equal(expected.state, again.state)


def test_only_the_extractor_of_g_travels(method: PFedAFM, unlike: Federation) -> None:
    """Fault 4: no header in the payload; nothing private in it; the same bytes for every architecture."""
    update = [method.client_update(job(method, unlike, k)) for k in range(5)]
    assert len({info.tier for info in unlike.clients[:5]}) == 5
    for u in update:
        assert all(name.startswith("theta/") for name in tree.flatten(u.up))
        assert not any("header" in name or "alpha" in name for name in tree.flatten(u.up))
        assert not tree.shares_storage(u.up, u.state)
    assert {tree.nbytes(u.up) for u in update} == {4 * models.parameters(method.shared, "extractor")}


def test_one_architecture_starts_from_one_set_of_weights(method: PFedAFM, unlike: Federation) -> None:
    a, b = (method.init_client(unlike.clients[k], INIT) for k in (0, 5))
    assert unlike.clients[0].tier == unlike.clients[5].tier
    assert tree.equal(a["model"], b["model"])
    other = method.init_client(unlike.clients[4], INIT)
    assert not tree.equal(other["model"]["extractor"], method.init_server(INIT)["theta"])


def test_prediction_uses_the_theta_that_step_1_saw(method: PFedAFM, unlike: Federation) -> None:
    it = job(method, unlike, 0)
    state = method.client_update(it).state
    assert tree.equal(state["theta"], it.down["theta"])
    other = {"theta": tree.map_leaves(torch.zeros_like, it.down["theta"])}
    batch = {"x": it.data["x"][:4], "y": it.data["y"][:4]}
    seen, current = (method.predict(method.prepare(it.info, d, state, it.data, KEY), batch) for d in (it.down, other))
    assert torch.equal(seen, current)


def test_fixed_alpha_stays_and_alpha_1_ignores_theta(method: PFedAFM, unlike: Federation) -> None:
    fixed = dataclasses.replace(method, mixing="fixed", alpha0=1.0)
    it = job(fixed, unlike, 0)
    state = fixed.client_update(it).state
    assert torch.equal(state["alpha"], torch.ones_like(state["alpha"]))
    batch = {"x": it.data["x"][:4]}
    silent = {**state, "theta": tree.map_leaves(torch.zeros_like, state["theta"])}
    outputs = [fixed.predict(fixed.prepare(it.info, it.down, s, it.data, KEY), batch) for s in (state, silent)]
    assert torch.equal(*outputs)


def test_prediction_shared_is_alpha_0(method: PFedAFM, unlike: Federation) -> None:
    it = job(method, unlike, 0)
    state = method.client_update(it).state
    shared = dataclasses.replace(method, prediction="shared")
    ready, batch = method.prepare(it.info, it.down, state, it.data, KEY), {"x": it.data["x"][:4]}
    zero = {**ready, "state": {**state, "alpha": torch.zeros_like(state["alpha"])}}
    assert torch.equal(shared.predict(ready, batch), method.predict(zero, batch))
    assert not torch.equal(shared.predict(ready, batch), method.predict(ready, batch))


def test_joint_training_moves_all_three_in_one_step(method: PFedAFM, unlike: Federation) -> None:
    joint = dataclasses.replace(method, training="joint")
    it = job(joint, unlike, 0)
    update = joint.client_update(it)
    assert not tree.equal(update.up["theta"], it.down["theta"])
    assert tree.equal(update.up["theta"], update.state["theta"])
    assert not torch.equal(update.state["alpha"], it.state["alpha"])


def test_max_alpha_step_bounds_a_round(method: PFedAFM, unlike: Federation) -> None:
    bounded = dataclasses.replace(method, max_alpha_step=0.001, lr_alpha=10.0)
    alpha = bounded.client_update(job(bounded, unlike, 0)).state["alpha"]
    assert float((alpha - 0.5).abs().max()) == pytest.approx(0.001, abs=1e-6)
