"""Sub-models by width: shapes, places, windows that roll, and models whose windows would not agree."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from unalike import models, tree
from unalike.errors import InputError
from unalike.models import narrow
from unalike.models.narrow import LEVELS, narrowed
from unalike.models.statistics import recomputed
from unalike.protocol import Spec
from unalike.rng import Key
from unalike.tasks import Classification

RESNET = Spec("resnet18(width=0.125)", (1, 8, 8), 10)
MLP = Spec("mlp-5", (4,), 3)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=Key.root(seed).torch())


def test_narrowed_multiplies_the_width_and_keeps_other_options() -> None:
    assert narrowed(RESNET, 0.5).name == "resnet18(width=0.0625)"
    assert narrowed(Spec("cnn-5(norm=True)", (1, 8, 8), 10), 0.25).name == "cnn-5(norm=True, width=0.25)"
    assert narrowed(MLP, 1.0) is MLP


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "vgg11", "vgg16"])
@pytest.mark.parametrize("r", LEVELS)
def test_channels_are_the_share_r_of_each_layers(name: str, r: float) -> None:
    """⌈r C⌉ at every axis but the inputs' and the classes'; these channel counts are multiples of 16."""
    spec = Spec(f"{name}(width=0.25)", (3, 8, 8), 10)
    whole, part = narrow.shapes(spec), narrow.shapes(narrowed(spec, r))
    for leaf, shape in whole.items():
        expected = [math.ceil(r * size) if axis < 2 else size for axis, size in enumerate(shape.shape)]
        if leaf.startswith("header"):
            expected[0] = 10
        if leaf in ("extractor/stem.0.weight", "extractor/stage1_1.0.weight"):
            expected[1] = 3
        assert list(part[leaf].shape) == expected, leaf


def test_a_model_without_a_width_is_refused() -> None:
    with pytest.raises(InputError, match=r"model torch.nn:Linear cannot be made narrower: .* has no option `width`"):
        narrowed(Spec("torch.nn:Linear", (4,), 3), 0.5)


def test_places_by_hand() -> None:
    """mlp-5 of width 1/16: 4 of 64 hidden units, 4 of 64 features; inputs and classes whole."""
    found = narrow.places(MLP, narrowed(MLP, 1 / 16), 62)
    wrapped = [62, 63, 0, 1]
    assert [p.tolist() for p in found["extractor/1.weight"]] == [wrapped, [0, 1, 2, 3]]
    assert [p.tolist() for p in found["extractor/3.weight"]] == [wrapped, wrapped]
    assert [p.tolist() for p in found["header/weight"]] == [[0, 1, 2], wrapped]
    assert found["header/bias"] == ()
    first = narrow.places(MLP, narrowed(MLP, 1 / 16))
    assert [p.tolist() for p in first["extractor/3.weight"]] == [[0, 1, 2, 3]] * 2


def test_a_part_is_a_leading_slice_or_a_window_that_wraps() -> None:
    w = {"w": torch.arange(24.0).reshape(4, 6)}
    leading = {"w": narrow._places((4, 6), (2, 3), 0)}
    assert narrow.part(w, leading) == {"w": pytest.approx(torch.tensor([[0.0, 1, 2], [6, 7, 8]]))}
    rolled = {"w": narrow._places((4, 6), (2, 3), 5)}  # rows 1, 2; columns 5, 0, 1
    assert narrow.part(w, rolled)["w"].tolist() == [[11, 6, 7], [17, 12, 13]]  # type: ignore[attr-defined]
    assert narrow.part(w, {"w": ()})["w"] is w["w"]


@pytest.mark.parametrize(("size", "part"), [(8, 1), (8, 4), (6, 4), (16, 1)])
def test_over_a_full_cycle_each_channel_is_held_equally_often(size: int, part: int) -> None:
    counts = torch.zeros(size, dtype=torch.int64)
    for shift in range(size):
        counts[narrow._places((size,), (part,), shift)[0]] += 1
    assert counts.tolist() == [part] * size


def test_the_two_sides_of_a_residual_sum_have_one_window() -> None:
    found = narrow.places(RESNET, narrowed(RESNET, 0.5), 3)
    last, shortcut = (found[f"extractor/stage2_1.{name}.weight"][0] for name in ("residual.3", "shortcut.0"))
    after = found["extractor/stage2_2.residual.0.weight"][1]
    assert last.tolist() == shortcut.tolist() == after.tolist() == [(3 + i) % 16 for i in range(8)]


@pytest.mark.parametrize("name", ["resnet18(width=0.125)", "vgg11(width=0.125)", "cnn-5(norm=True, width=0.1)"])
def test_the_first_channels_are_a_network_within_the_network(name: str) -> None:
    spec = Spec(name, (1, 8, 8), 10)
    narrow.require_nested("m", spec, narrowed(spec, 0.5))


def test_windows_of_flattened_maps_move_by_whole_maps() -> None:
    """32 maps of 4 x 4 pixels: half of them, moved on by 3 channels, begin at pixel 48 of 512."""
    spec = Spec("cnn-5", (1, 8, 8), 10)
    found = narrow.places(spec, narrowed(spec, 0.5), 3)["extractor/8.weight"]
    assert found[0].tolist() == [(3 + i) % 500 for i in range(250)]
    assert found[1].tolist() == [48 + i for i in range(256)]
    narrow.require_nested("m", spec, narrowed(spec, 0.5), 3)


@pytest.mark.parametrize("shift", [0, 1])
def test_attention_is_refused(shift: int) -> None:
    spec = Spec("vit-tiny(width=0.1)", (1, 8, 8), 10)
    with pytest.raises(InputError, match=r"m trains .* but in model .* these do not make up a network"):
        narrow.require_nested("m", spec, narrowed(spec, 0.5), shift)


def test_windows_of_a_convolutional_net_and_of_a_perceptron_agree() -> None:
    narrow.require_nested("m", RESNET, narrowed(RESNET, 0.5), 3)
    narrow.require_nested("m", MLP, narrowed(MLP, 0.5), 3)


def test_the_scaler_multiplies_what_layers_emit_but_not_the_header() -> None:
    """On mlp-5: ŷ = H (s (B relu(s (A x + a)) + b))+ + h."""
    w, batch = models.initial(MLP, Key.root(0)), {"x": drawn(5, 4), "y": torch.tensor([0, 1, 2, 0, 1])}
    e, h = w["extractor"], w["header"]
    hidden = F.relu(2 * F.linear(batch["x"], e["1.weight"], e["1.bias"]))
    features = F.relu(2 * F.linear(hidden, e["3.weight"], e["3.bias"]))
    expected = F.cross_entropy(F.linear(features, h["weight"], h["bias"]), batch["y"])
    assert torch.allclose(narrow.loss(MLP, Classification(3), 2.0, {"model": w}, {}, batch), expected)
    plain = models.supervised_loss(MLP, Classification(3), {"model": w}, {}, batch)
    assert torch.equal(narrow.loss(MLP, Classification(3), 1.0, {"model": w}, {}, batch), plain)
    assert not torch.allclose(plain, expected)


def test_masked_cross_entropy_by_hand() -> None:
    """The logit of an absent class counts as 0: −log(e^a / (e^a + e^b + 1)), and its row gets no gradient."""
    w, x = models.initial(MLP, Key.root(0)), drawn(1, 4)
    a, b, _ = models.logits(MLP, w, x)[0].tolist()
    header = {name: leaf.clone().requires_grad_() for name, leaf in w["header"].items()}
    params, given = {"model": {**w, "header": header}}, {"absent": torch.tensor([False, False, True])}
    loss = narrow.loss(MLP, Classification(3), 1.0, params, given, {"x": x, "y": torch.tensor([0])})
    assert float(loss.detach()) == pytest.approx(-math.log(math.exp(a) / (math.exp(a) + math.exp(b) + 1)), rel=1e-5)
    rows = torch.autograd.grad(loss, header["weight"])[0].abs().sum(1)
    assert rows[2] == 0
    assert rows[0] > 0


def test_statistics_are_the_means_of_the_batches_own() -> None:
    """Of the first BatchNorm of ResNet over two batches: (μ₁ + μ₂) / 2 and (σ₁² + σ₂²) / 2, unbiased."""
    w, xs = models.initial(RESNET, Key.root(0)), [drawn(6, 1, 8, 8), 2 + drawn(4, 1, 8, 8, seed=1)]
    before = tree.clone(w)
    found = recomputed(RESNET, w, xs, Key.root(0))["extractor"]
    maps = [F.conv2d(x, w["extractor"]["stem.0.weight"], padding=1) for x in xs]
    mean = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    variance = torch.stack([m.var((0, 2, 3)) for m in maps]).mean(0)
    assert torch.allclose(found["~stem.1.running_mean"], mean, atol=1e-6)
    assert torch.allclose(found["~stem.1.running_var"], variance, rtol=1e-5)
    assert tree.equal(before, w)
    rest = {name for name, leaf in found.items() if not torch.equal(leaf, w["extractor"][name])}
    assert rest == {name for name in found if name.startswith("~")}
    again = models.logits(RESNET, tree.clone(w), xs[0], train=True)  # momentum is what it was
    assert torch.isfinite(again).all()
    tracked = tree.clone(w)
    models.logits(RESNET, tracked, xs[0], train=True)
    assert torch.allclose(tracked["extractor"]["~stem.1.running_mean"], 0.1 * maps[0].mean((0, 2, 3)), atol=1e-6)
