"""VHL, equation by equation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from by_hand import CNN5, INIT, KEY, arrivals, close, constant, is_all, job, minus, outputs, prepared

from unalike import models, tree
from unalike.algorithms.vhl import beside, contrast, virtual, virtual_loss
from unalike.data.federation import Federation, federation
from unalike.protocol import Spec
from unalike.rng import Key

SPEC = Spec("cnn-5", (1, 28, 28), 10)


def test_the_alignment_by_hand() -> None:
    """Rows along (1, 0), (1, 0), (0, 1) of classes 0, 0, 1 at τ = 0.5: cosines 1 and 0, so e² and 1.

    Rows 0 and 1 have each other: log(e² / (e² + 1)); row 2 has nobody. Lengths do not count.
    """
    r, y = torch.tensor([[2.0, 0.0], [5.0, 0.0], [0.0, 0.1]]), torch.tensor([0, 0, 1])
    alike = -math.log(math.e**2 / (math.e**2 + 1))
    assert float(contrast(r, y, 0.5)) == pytest.approx((alike + alike + 0) / 3)
    three = torch.tensor([0, 0, 0])
    apart = -math.log(1 / (math.e**2 + 1))
    middle = (alike + apart) / 2  # of two others of its class, one along with it and one across
    assert float(contrast(r, three, 0.5)) == pytest.approx((2 * middle + math.log(2)) / 3)
    leaf = r.requires_grad_()
    assert bool(torch.autograd.grad(contrast(leaf, y), leaf)[0].isfinite().all())


def test_the_virtual_set_is_a_pure_function_of_its_key_balanced_bounded_and_separable() -> None:
    found = virtual(Key.root(1), SPEC, 20)
    assert torch.bincount(found["y"]).tolist() == [20] * 10
    assert found["x"].shape == (200, 1, 28, 28)
    assert float(found["x"].abs().max()) <= 1.0
    virtual.cache_clear()
    assert tree.equal(virtual(Key.root(1), SPEC, 20), found)
    assert not tree.equal(virtual(Key.root(2), SPEC, 20), found)
    means = torch.stack([found["x"][found["y"] == c].mean(0) for c in range(10)]).flatten(1)
    nearest = torch.cdist(found["x"].flatten(1), means).argmin(1)
    assert bool((nearest == found["y"]).all())
    within = found["x"][found["y"] == 0].std(0).mean()
    assert float(within) > 0.1


@pytest.mark.parametrize("shape", [(13,), (6, 50), (3, 32, 32), (3, 2, 5)])
def test_there_are_virtual_samples_of_every_kind_of_input(shape: tuple[int, ...]) -> None:
    found = virtual(Key.root(1), Spec("mlp-5", shape, 3), 4)["x"]
    assert found.shape == (12, *shape)
    assert float(found.std()) > 0.3


def test_each_batch_has_as_many_virtual_rows_and_a_pass_uses_each_once() -> None:
    known = {"x": torch.arange(10.0)[:, None], "y": torch.arange(10)}
    real = [{"x": torch.full((n, 1), float(n)), "y": torch.full((n,), n)} for n in (5, 5, 5, 5, 3)]
    found = list(beside(iter(real), known, 5, KEY))
    assert [batch["y"].tolist() for batch in found] == [batch["y"].tolist() for batch in real]
    drawn = [batch["virtual_y"].tolist() for batch in found]
    assert [len(rows) for rows in drawn] == [5, 5, 5, 5, 3]
    assert sorted(drawn[0] + drawn[1]) == sorted(drawn[2] + drawn[3]) == list(range(10))
    assert drawn[:2] != drawn[2:4]
    assert all(torch.equal(batch["virtual_x"][:, 0], batch["virtual_y"].float()) for batch in found)


def test_one_step_by_hand(alike: Federation) -> None:
    """The gradient of CE(B) + α CE(B̃) + λ SupCon, taken apart: virtual features are constants in the last."""
    method = prepared("vhl", alike, alpha=0.5, lam=2.0)
    it = job(method, alike)
    known = virtual(Key(bytes(it.state["virtual"].tolist())), method.shared, method.virtual_rows)
    weights = tree.map_leaves(lambda leaf: leaf.clone().requires_grad_(), it.down["model"])

    def features(x: torch.Tensor) -> torch.Tensor:
        return models.features(method.shared, weights["extractor"], x)

    [rows] = beside([it.data], known, 10**6, it.key / "virtual")
    r, r_virtual = features(rows["x"]), features(rows["virtual_x"])
    ce = torch.nn.functional.cross_entropy
    loss = ce(models.head(method.shared, weights["header"], r), rows["y"])
    loss = loss + 0.5 * ce(models.head(method.shared, weights["header"], r_virtual), rows["virtual_y"])
    align = contrast(torch.cat([r, r_virtual.detach()]), torch.cat([rows["y"], rows["virtual_y"]]))
    total = loss + 2.0 * align
    flat = tree.flatten(weights)
    expected = tree.unflatten(dict(zip(flat, torch.autograd.grad(total, list(flat.values())), strict=True)))
    update = method.client_update(it)
    assert close(update.up["model"], minus(it.down["model"], method.lr, expected), atol=1e-5)
    assert update.metrics["loss"] == pytest.approx(float(total.detach()), rel=1e-4)
    params = {"model": it.down["model"]}
    unaligned = virtual_loss(method.shared, method.task, 0.5, 0.0, params, {}, rows)
    assert float(unaligned.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)


def test_at_alpha_and_lambda_0_it_is_fedavg(alike: Federation) -> None:
    def trained(name: str, **own: Any) -> Any:
        method = prepared(name, alike, batch_size=32, momentum=0.9, **own)
        return method.client_update(job(method, alike)).up

    plain = trained("fedavg")
    assert tree.equal(trained("vhl", alpha=0.0, lam=0.0), plain)
    for own in ({"alpha": 0.0}, {"lam": 0.0}, {}):
        assert not tree.equal(trained("vhl", **own), plain)


def test_the_virtual_set_is_the_same_at_all_clients_and_no_byte_of_it_travels(alike: Federation) -> None:
    method = prepared("vhl", alike)
    first, second = (job(method, alike, k) for k in (0, 1))
    assert first.state["virtual"].equal(second.state["virtual"])
    update = method.client_update(first)
    assert tree.nbytes(first.down) == tree.nbytes(update.up) == 4 * CNN5
    assert tree.equal(update.state, first.state)


def test_batch_statistics_mix_in_the_virtual_rows() -> None:
    normed = federation("digits", rows=100, clients=2, partition="iid", models=["cnn-5(norm=True)"])

    def statistics(**own: Any) -> Any:
        method = prepared("vhl", normed, lr=1e-9, **own)
        up = tree.flatten(method.client_update(job(method, normed)).up)
        return tree.unflatten({name: leaf for name, leaf in up.items() if name.endswith("running_mean")})

    assert not close(statistics(), statistics(alpha=0.0, lam=0.0), atol=1e-4)


def test_aggregation_is_the_mean_weighted_by_samples(alike: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, and a client is weighted by its rows."""
    method = prepared("vhl", alike)
    server = method.init_server(INIT)
    sent = arrivals(alike, (constant(server, 1.0), 3.0), (constant(server, 5.0), 1.0))
    assert is_all(method.aggregate(server, sent, 2, KEY), 2.0)
    assert method.client_update(job(method, alike, 1)).weight == alike.clients[1].n


def test_every_client_predicts_with_the_common_model(alike: Federation) -> None:
    method = prepared("vhl", alike)
    it = job(method, alike)
    expected = models.logits(method.shared, it.down["model"], it.data["x"][:4])
    assert outputs(method, it, it.state).equal(expected)
