"""The ADMM of the paper, equation by equation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unalike import models, tree
from unalike.data.federation import Federation
from unalike.impressions.settings import Impressions
from unalike.impressions.synthesis import (
    ENOUGH,
    STEPS,
    head_gradient,
    label_of_each,
    lagrangian,
    noise,
    search,
    synthesise,
    total_variation,
)
from unalike.models.statistics import distance_to_statistics
from unalike.protocol import Spec
from unalike.rng import Key

KEY = Key.root(5)
FORTY = Impressions(images=40, image_batch=20)


@given(
    rows=st.integers(1, 40),
    classes=st.integers(2, 11),
    width=st.integers(1, 30),
    gamma=st.floats(0, 1),
    scale=st.floats(0.01, 30),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None)
def test_g_is_autograds_gradient_of_the_heads_weight(
    rows: int, classes: int, width: int, gamma: float, scale: float, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    r, W, b = (torch.randn(s, generator=g, dtype=torch.float64) for s in ((rows, width), (classes, width), (classes,)))
    r, y = scale * r, torch.randint(0, classes, (rows,), generator=g)
    W.requires_grad_()
    loss = F.cross_entropy(F.linear(r, W, b), y) + gamma / 2 * W.square().sum()
    (expected,) = torch.autograd.grad(loss, W)
    found = head_gradient(r, F.linear(r, W, b), y, W, gamma)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)


def test_g_of_a_network_is_the_gradient_of_its_header(small: Federation, trained: dict[str, Any]) -> None:
    spec, data = small.models[small.clients[0].tier], small.data(1, "train")
    working = tree.clone(trained)
    W = working["header"]["weight"].requires_grad_()
    r = models.features(spec, working["extractor"], data["x"])
    f = models.head(spec, working["header"], r)
    (expected,) = torch.autograd.grad(F.cross_entropy(f, data["y"]) + 0.01 / 2 * W.square().sum(), W, retain_graph=True)
    torch.testing.assert_close(head_gradient(r, f, data["y"], W, 0.01), expected)


def test_the_lagrangian_by_hand(small: Federation, trained: dict[str, Any]) -> None:
    """CE + ρ/2 ‖G‖² + ⟨Λ, G⟩, and each regulariser beside it."""
    spec, (x, y) = _spec(small), _start(small, 6)
    r = models.features(spec, trained["extractor"], x)
    f, W = models.head(spec, trained["header"], r), trained["header"]["weight"]
    G = head_gradient(r, f, y, W, 0.5)
    multiplier = torch.linspace(-1, 1, W.numel()).reshape(W.shape)
    plain = F.cross_entropy(f, y) + 3.0 / 2 * float((G**2).sum()) + float((multiplier * G).sum())
    asked = {"gamma": 0.5, "rho": 3.0}
    found = lagrangian(spec, trained, x, y, multiplier, Impressions(**asked))  # type: ignore[arg-type]
    assert float(found) == pytest.approx(float(plain), rel=1e-5)
    for name, value in (("tv", total_variation(x)), ("l2", x.square().mean())):
        more = lagrangian(spec, trained, x, y, multiplier, Impressions(**asked, **{name: 2.0}))  # type: ignore[arg-type]
        assert float(more - found) == pytest.approx(2 * float(value), rel=1e-3)


def test_total_variation_by_hand() -> None:
    """Of 1 2 / 4 4: across |1|, |0|, mean 0.5; down |3|, |2|, mean 2.5."""
    assert float(total_variation(torch.tensor([[[[1.0, 2.0], [4.0, 4.0]]]]))) == 3.0


def test_the_distance_to_batch_norms_statistics_by_hand() -> None:
    """After 1 + 2·x, running mean 0 and variance 1: x of −1 and 2 is −1 and 5, of mean 2, variance 9: 4 + 64."""
    spec = Spec(f"{__file__}:normalised", (1, 1, 1), 2)
    weights = models.initial(spec, KEY)
    weights["extractor"] |= {"0.weight": torch.full((1, 1, 1, 1), 2.0), "0.bias": torch.ones(1)}
    x = torch.tensor([-1.0, 2.0]).reshape(2, 1, 1, 1)
    for wanted, expected in ((True, 68.0), (False, 0.0)):
        with distance_to_statistics(spec, wanted) as distance:
            models.features(spec, weights["extractor"], x)
        assert float(distance()) == pytest.approx(expected)
    with distance_to_statistics(spec) as distance:
        pass
    models.features(spec, weights["extractor"], x)
    assert float(distance()) == 0.0, "outside of the block nothing is watched"


def normalised(input: tuple[int, ...], classes: int) -> torch.nn.Module:
    from unalike.models.cnn import assemble

    layers = [torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1), torch.nn.Flatten()]
    return assemble(torch.nn.Sequential(*layers), torch.nn.Linear(1, classes))


def test_a_synthesis_succeeds_on_a_trained_network(small: Federation, trained: dict[str, Any]) -> None:
    """Cross-entropy below 0.1 and a smaller ‖G‖ at the end, within the range of pixels, the network as it was."""
    before = tree.clone(trained)
    x, y = _start(small, 40)
    made = synthesise(_spec(small), trained, y, FORTY, x)
    assert made.after.loss < ENOUGH < made.before.loss
    assert made.after.norm < 0.5 * made.before.norm
    assert made.has_succeeded
    assert made.images.shape == x.shape
    assert made.images.min() >= -1
    assert made.images.max() <= 1
    assert tree.equal(trained, before)
    f = models.logits(_spec(small), trained, made.images)
    assert float(F.cross_entropy(f, y)) == pytest.approx(made.after.loss, rel=1e-3)


def test_batches_at_the_same_time_are_the_same_bits(small: Federation, trained: dict[str, Any]) -> None:
    x, y = _start(small, 40)
    one, several = (synthesise(_spec(small), trained, y, FORTY, x, at_once=n) for n in (1, 3))
    assert torch.equal(one.images, several.images)
    assert (one.lr, one.after) == (several.lr, several.after)


def test_more_iterations_lower_both(small: Federation, trained: dict[str, Any]) -> None:
    x, y = _start(small, 40)
    made = [
        synthesise(_spec(small), trained, y, Impressions(images=40, image_batch=20, admm=n), x, 10.0).after
        for n in (1, 3)
    ]
    assert made[1].loss < made[0].loss
    assert made[1].norm < made[0].norm


def test_the_multiplier_moves_by_rho_times_g(small: Federation, trained: dict[str, Any]) -> None:
    """A second iteration descends on CE + ρ/2 ‖G‖² + ρ ⟨G₁, G⟩, G₁ of all images after the first: by hand."""
    spec, rho = _spec(small), 0.7
    x, y = _start(small, 6)
    asked = Impressions(images=6, image_batch=6, image_steps=1, admm=2, rho=rho)
    images, W = x.clone(), trained["header"]["weight"]
    multiplier = torch.zeros_like(W)
    for _ in range(2):
        leaf = images.clone().requires_grad_()
        r = models.features(spec, trained["extractor"], leaf)
        f = models.head(spec, trained["header"], r)
        G = head_gradient(r, f, y, W, asked.gamma)
        (slope,) = torch.autograd.grad(F.cross_entropy(f, y) + rho / 2 * (G**2).sum() + (multiplier * G).sum(), leaf)
        images = (images - 2.0 * slope).clamp(-1, 1)
        r = models.features(spec, trained["extractor"], images)
        multiplier += rho * head_gradient(r, models.head(spec, trained["header"], r), y, W, asked.gamma)
    torch.testing.assert_close(synthesise(spec, trained, y, asked, x, 2.0).images, images, atol=1e-4, rtol=1e-4)


def test_the_step_size_is_one_that_succeeds(small: Federation, trained: dict[str, Any]) -> None:
    x, y = _start(small, 40)
    found = search(_spec(small), trained, y, FORTY, x)
    tried = {lr: synthesise(_spec(small), trained, y[:20], FORTY, x[:20], lr) for lr in STEPS}
    assert tried[found].has_succeeded
    assert not tried[0.1].has_succeeded, "the search has something to choose from"
    assert tried[found].after.norm == min(t.after.norm for t in tried.values() if t.has_succeeded)
    assert synthesise(_spec(small), trained, y, FORTY, x).lr == found
    fixed = Impressions(images=40, image_batch=20, lr_img=3.0)
    assert synthesise(_spec(small), trained, y, fixed, x).lr == 3.0


def test_noise_is_normal_within_the_range_and_follows_its_key() -> None:
    spec = Spec("", (2, 20, 20), 3)
    x = noise(50, spec, KEY)
    assert x.shape == (50, 2, 20, 20)
    assert x.equal(noise(50, spec, KEY))
    assert not x.equal(noise(50, spec, Key.root(6)))
    assert (x.min(), x.max()) == (-1, 1)
    assert float((x.abs() < 1).float().mean()) == pytest.approx(0.683, abs=0.01)


@pytest.mark.parametrize(
    ("n", "counts", "expected"),
    [(10, None, [4, 3, 3]), (10, [1, 1, 8], [1, 1, 8]), (10, [0, 1, 2], [0, 3, 7]), (2, [5, 5, 5], [1, 1, 0])],
)
def test_labels_are_shared_out(n: int, counts: list[int] | None, expected: list[int]) -> None:
    """By largest remainders, the first classes on a tie: 3.33 each and one more; 3.33 and 6.67 are 3 and 7."""
    labels = label_of_each(n, 3, None if counts is None else torch.tensor(counts))
    assert torch.bincount(labels, minlength=3).tolist() == expected


def test_every_batch_of_images_has_its_share_of_each_label() -> None:
    labels = label_of_each(160, 8)
    for batch in labels.split(32):  # type: ignore[no-untyped-call]
        assert torch.bincount(batch).tolist() == [4] * 8


def _spec(federation: Federation) -> Spec:
    return federation.models[federation.clients[0].tier]


def _start(federation: Federation, n: int) -> tuple[Tensor, Tensor]:
    return noise(n, _spec(federation), KEY), label_of_each(n, 10)
