"""FedKD, equation by equation."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unalike import api, models, tree
from unalike.algorithms import fedkd
from unalike.algorithms.fedkd import SMALLEST_C, FedKD, adaptive, hidden_loss, joint_loss, lesson, mutual_loss
from unalike.compression import compress, decompress
from unalike.data.federation import Federation
from unalike.distillation import kl_divergence
from unalike.protocol import Arrival, Job, Spec
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round"
MATRICES = [(16, 25), (32, 400), (500, 512), (500, 500), (10, 500)]
"""Of cnn-5 for the digits, layer by layer: 8 x 8 is scaled to 28 x 28, which two blocks make 12 x 12 and 4 x 4."""
BIASES = 16 + 32 + 500 + 500 + 10


@pytest.fixture(scope="module")
def method(unlike: Federation) -> FedKD:
    prepared = api.prepare("fedkd", unlike, local_epochs=1, lr=0.05, rounds=4)
    assert isinstance(prepared.algorithm, FedKD)
    return prepared.algorithm


def job(
    method: FedKD, federation: Federation, client: int, server: Any = None, state: Any = None, round: int = 1
) -> Any:
    info = federation.clients[client]
    down = method.broadcast(server or method.init_server(INIT), info, round)
    private = state or method.init_client(info, INIT)
    return Job(info, round, down, private, federation.data(client, "train"), KEY / round / client)


def arrival(job: Job[Any, Any], up: Any) -> Arrival[Any]:
    return Arrival(job.info, tree.from_bytes(tree.to_bytes(up)), job.info.n, {})


def test_the_lessons_by_hand() -> None:
    """KL(teacher ‖ student): KL((3/4, 1/4) ‖ (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2)."""
    student, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 1.0]]).log()
    expected = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert float(lesson(student, teacher)) == pytest.approx(expected, rel=1e-6)


def test_the_hidden_loss_by_hand() -> None:
    """W_h (1, 2; 0, 1; 1, 0) makes (3, 4) into (11, 4, 3): from (10, 4, 1) that is (1 + 0 + 4) / 3."""
    h_s, w = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0, 2.0], [0.0, 1.0], [1.0, 0.0]])
    assert float(hidden_loss(torch.tensor([[10.0, 4.0, 1.0]]), h_s, w)) == pytest.approx(5 / 3)


def test_the_denominator_is_constant_and_not_too_small() -> None:
    """L + D / c with c = L: of L = 2, D = 6 that is 5, and its gradient by L is 1, not 1 − D / L²."""
    losses, distilled = torch.tensor(2.0, requires_grad=True), torch.tensor(6.0, requires_grad=True)
    value = adaptive(losses, distilled)
    assert value.item() == 5.0
    assert [g.item() for g in torch.autograd.grad(value, (losses, distilled))] == [1.0, 0.5]
    assert adaptive(torch.tensor(0.0), torch.tensor(6.0)).item() == pytest.approx(6 / SMALLEST_C)


def test_each_learns_from_its_own_three_losses(method: FedKD, unlike: Federation) -> None:
    """L_t + KL(y_s ‖ y_t) / c + MSE(H_t, W_h H_s) / c for the mentor, likewise for the mentee, all else constant."""
    it = job(method, unlike, 0)
    own, x, y = method.models[it.info.tier], it.data["x"], it.data["y"]
    start = {"mentor": it.state["mentor"], "mentee": it.down["mentee"], "hidden": it.state["hidden"]}
    params = tree.map_leaves(lambda t: t.clone().requires_grad_(), start)
    loss = mutual_loss(own, method.shared, method.task, params, {}, it.data)

    h_t, h_s = (
        models.features(spec, params[who]["extractor"], x) for spec, who in ((own, "mentor"), (method.shared, "mentee"))
    )
    y_t, y_s = (
        models.head(spec, params[who]["header"], h)
        for spec, who, h in ((own, "mentor", h_t), (method.shared, "mentee", h_s))
    )
    ce, mse = torch.nn.functional.cross_entropy, torch.nn.functional.mse_loss
    l_t, l_s, w = ce(y_t, y), ce(y_s, y), params["hidden"]
    c = float((l_t + l_s).detach())
    seen = (w.detach() @ h_s.detach().T).T
    of_mentor = l_t + kl_divergence(y_s.detach(), y_t) / c + mse(h_t, seen) / c
    of_mentee = l_s + kl_divergence(y_t.detach(), y_s) / c + mse(h_t.detach(), (w @ h_s.T).T) / c
    for branch, alone in (("mentor", of_mentor), ("mentee", of_mentee), ("hidden", of_mentee)):
        leaves = list(tree.flatten({branch: params[branch]}).values())
        expected = torch.autograd.grad(alone, leaves, retain_graph=True)
        found = torch.autograd.grad(loss, leaves, retain_graph=True)
        assert all(torch.allclose(a, b, rtol=1e-3, atol=1e-9) for a, b in zip(found, expected, strict=True)), branch
        assert any(float(g.abs().max()) > 1e-6 for g in found)
    hidden = mse(h_t, seen).item() / c
    assert loss.item() == pytest.approx((of_mentor + of_mentee).item() - hidden, rel=1e-5)


def test_the_joint_loss_holds_nothing_constant(method: FedKD, unlike: Federation) -> None:
    """c + (KL(y_s ‖ y_t) + KL(y_t ‖ y_s)) / (10 c) + 2 MSE / c: its value by numpy, its slope by differences."""
    it = job(method, unlike, 0)
    own, x, y = method.models[it.info.tier], it.data["x"][:16], it.data["y"][:16]
    start = {"mentor": it.state["mentor"], "mentee": it.down["mentee"], "hidden": it.state["hidden"]}
    batch = {"x": x.double(), "y": y}
    params = tree.map_leaves(Tensor.double, start)

    def by_numpy(params: tree.Tree) -> float:
        specs = {"mentor": own, "mentee": method.shared}
        h = {who: models.features(spec, params[who]["extractor"], batch["x"]) for who, spec in specs.items()}
        logits = {who: models.head(spec, params[who]["header"], h[who]).numpy() for who, spec in specs.items()}
        p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (logits["mentor"], logits["mentee"]))
        c = -np.log(p[range(16), y]).mean() - np.log(q[range(16), y]).mean()
        kl = ((p * np.log(p / q)).sum() + (q * np.log(q / p)).sum()) / (16 * 10)
        hidden = ((h["mentor"] - h["mentee"] @ params["hidden"].T) ** 2).mean()
        return float(c + kl / c + 2 * hidden / c)

    assert joint_loss(own, method.shared, method.task, params, {}, batch).item() == pytest.approx(by_numpy(params))
    leaf = tree.map_leaves(lambda t: t.clone().requires_grad_(), params)
    gradients = torch.autograd.grad(
        joint_loss(own, method.shared, method.task, leaf, {}, batch), list(tree.flatten(leaf).values())
    )
    for name, gradient in zip(tree.flatten(leaf), gradients, strict=True):
        direction = gradient / gradient.norm()
        ends = [
            by_numpy(tree.unflatten({**tree.flatten(params), name: tree.flatten(params)[name] + step * direction}))
            for step in (1e-4, -1e-4)
        ]
        assert (ends[0] - ends[1]) / 2e-4 == pytest.approx(float(gradient.norm()), rel=1e-3), name


def test_either_loss_is_the_one_that_is_trained_on(
    method: FedKD, unlike: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    joint = dataclasses.replace(method, losses="joint")
    results = [m.client_update(job(m, unlike, 0)).metrics["loss"] for m in (method, joint)]
    assert results[0] != results[1]
    monkeypatch.setattr(fedkd, "mutual_loss", joint_loss)
    assert method.client_update(job(method, unlike, 0)).metrics["loss"] == results[1]


def test_the_step_is_that_gradients(method: FedKD, unlike: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of one epoch: mentor, mentee and W_h ← · − η ∇."""
    monkeypatch.setattr(fedkd, "compress", lambda delta, energy: delta)
    one = dataclasses.replace(method, batch_size=10**6, momentum=0.0, weight_decay=0.0)
    it = job(one, unlike, 1)
    update = one.client_update(it)
    start = {"mentor": it.state["mentor"], "mentee": it.down["mentee"], "hidden": it.state["hidden"]}
    params = tree.map_leaves(lambda t: t.clone().requires_grad_(), start)
    loss, leaves = (
        mutual_loss(one.models[it.info.tier], one.shared, one.task, params, {}, it.data),
        tree.flatten(params),
    )
    gradients = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    ends = tree.flatten({"mentor": update.state["mentor"], "hidden": update.state["hidden"]})
    for name, end in ends.items():
        assert torch.allclose(end, leaves[name] - one.lr * gradients[name], atol=1e-6), name
    for name, delta in tree.flatten({"mentee": update.up["update"]}).items():
        assert torch.allclose(delta, -one.lr * gradients[name], atol=1e-6), name
    assert update.metrics["loss"] == pytest.approx(loss.item(), rel=1e-5)


def test_the_energy_rises_over_the_run(method: FedKD) -> None:
    """T(t) = 0.95 + 0.03 t, with t the share of the run that is done after the round."""
    ten = dataclasses.replace(method, rounds=10)
    assert [ten.energy(r) for r in (1, 5, 10)] == pytest.approx([0.953, 0.965, 0.98])


def smallest_k(matrix: np.ndarray, energy: float) -> int:
    """The definition, one K after the other."""
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return next(k for k in range(len(squares) + 1) if squares[:k].sum() > energy * squares.sum())


def test_bytes_are_those_of_the_factors(method: FedKD, unlike: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 · Σ min(K (m + n + 1), m n) over the matrices, and 4 a bias."""
    it = job(method, unlike, 2)
    sent = method.client_update(it).up
    monkeypatch.setattr(fedkd, "compress", lambda delta, energy: delta)
    deltas = [leaf.numpy() for leaf in tree.flatten(method.client_update(it).up).values()]
    matrices = [d.reshape(len(d), -1) for d in deltas if d.ndim > 1]
    assert sorted(m.shape for m in matrices) == sorted(MATRICES)
    energy, numbers = 0.95 + 0.03 / 4, BIASES
    for m in matrices:
        numbers += min(smallest_k(m, energy) * (sum(m.shape) + 1), m.size)
    assert tree.nbytes(sent) == 4 * numbers
    assert numbers < 0.5 * (tree.count(it.down["mentee"]))
    assert {name.split("/")[0] for name in tree.flatten(sent)} == {"update"}


def test_updates_are_averaged_by_samples_and_the_mentee_moves_by_what_is_sent(
    method: FedKD, unlike: Federation
) -> None:
    """Δ = (30 · 1 + 10 · 4) / 40 = 1.75 everywhere, of rank 1; s ← s + Δ, and Δ is sent as factors."""
    server = method.init_server(INIT)
    full = {v: tree.map_leaves(lambda t, v=v: torch.full_like(t, v), server["mentee"]) for v in (1.0, 4.0)}
    arrivals = [
        Arrival(unlike.clients[k], {"update": compress(full[v], 0.9)}, w, {})
        for k, v, w in ((4, 1.0, 30.0), (1, 4.0, 10.0))
    ]
    after = method.aggregate(server, arrivals, 1, KEY)
    assert after["last"].tolist() == [4, 1]
    for name, leaf in tree.flatten(after["mentee"]).items():
        assert torch.allclose(leaf, tree.flatten(server["mentee"])[name] + 1.75, atol=1e-5), name
    assert tree.nbytes(after["update"]) == 4 * sum(m + n + 1 for m, n in MATRICES) + 4 * BIASES


def test_all_stay_in_step_whoever_is_sampled(method: FedKD, unlike: Federation) -> None:
    """Client 0 trains in every round, client 1 in the first and third: bit by bit both have what the server has."""
    server: Any = method.init_server(INIT)
    states: dict[int, Any] = {}
    for round, chosen in ((1, (0, 1)), (2, (0,)), (3, (0, 1))):
        arrivals = []
        for client in chosen:
            given = job(method, unlike, client, server, states.get(client), round)
            it = dataclasses.replace(given, down=tree.from_bytes(tree.to_bytes(given.down)))
            assert set(it.down) == ({"update"} if client == 0 and round > 1 else {"mentee"})
            update = method.client_update(it)
            states[client] = tree.from_bytes(tree.to_bytes(update.state))
            assert tree.equal(states[client]["mentee"], server["mentee"]), f"round {round}, client {client}"
            arrivals.append(arrival(it, update.up))
        server = tree.from_bytes(tree.to_bytes(method.aggregate(server, arrivals, round, KEY)))


def test_clients_of_one_round_get_the_same_tensors(method: FedKD, unlike: Federation) -> None:
    """So a broadcast is encoded once."""
    it = job(method, unlike, 3)
    up = method.client_update(it).up
    server = method.init_server(INIT)
    after = method.aggregate(server, [Arrival(unlike.clients[k], up, 1.0, {}) for k in (0, 3)], 1, KEY)
    downs = [tree.flatten(method.broadcast(after, unlike.clients[k], 2)) for k in (0, 3)]
    assert downs[0].keys() == downs[1].keys()
    assert all(leaf is downs[1][name] for name, leaf in downs[0].items())
    whole = method.broadcast(after, unlike.clients[1], 2)
    assert whole["mentee"] is after["mentee"]


def test_a_wider_mentor_and_a_mentee_with_batchnorm(method: FedKD, unlike: Federation) -> None:
    """W_h is (300, 500); the mean of BatchNorm's integer counters is one of them."""
    small = "cnn-5(norm=True)"
    specs = {"wide": Spec("cnn-4", (1, 8, 8), 10, features=300), small: Spec(small, (1, 8, 8), 10)}
    other = dataclasses.replace(method, models=specs, shared_model=small)
    info = dataclasses.replace(unlike.clients[0], tier="wide")
    server = other.init_server(INIT)
    state = other.init_client(info, INIT)
    assert state["hidden"].shape == (300, 500)
    assert float(state["hidden"].abs().max()) <= 500**-0.5
    it: Job[Any, Any] = Job(info, 1, other.broadcast(server, info, 1), state, unlike.data(0, "train"), KEY)
    update = other.client_update(it)
    after = other.aggregate(server, [arrival(it, update.up)], 1, KEY)
    counters = [leaf for name, leaf in tree.flatten(after["mentee"]).items() if "num_batches" in name]
    batches = -(-len(it.data["x"]) // other.batch_size)
    assert [(c.dtype, int(c)) for c in counters] == [(torch.int64, batches)] * 2
    assert not torch.equal(update.state["hidden"], state["hidden"])
    moved = decompress(after["update"], server["mentee"])
    assert all(isinstance(leaf, Tensor) for leaf in tree.flatten(moved).values())


def test_a_client_predicts_with_its_mentor(method: FedKD, unlike: Federation) -> None:
    it = job(method, unlike, 2)
    state, batch = method.client_update(it).state, {"x": it.data["x"][:4]}
    found = method.predict(method.prepare(it.info, {}, state, it.data, KEY), batch)
    assert torch.equal(found, models.logits(method.models[it.info.tier], state["mentor"], batch["x"]))
