"""Sub-models of progressive training: the last step is the model, frozen blocks are frozen, proxies stand in."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from unalike import local, models, tree
from unalike.errors import InputError
from unalike.models import chain, progressive
from unalike.models.progressive import SubModel
from unalike.protocol import Spec
from unalike.rng import Key
from unalike.tasks import Classification

SPEC = Spec("resnet18(width=0.125)", (3, 16, 16), 4)
CUTS = (0, 3, 5, 7, 9)
KEY = Key.root(1)
TASK = Classification(4)
BATCH = {"x": torch.randn(20, 3, 16, 16, generator=torch.Generator().manual_seed(0)), "y": torch.arange(20) % 4}


def step(t: int, spec: Spec = SPEC, cuts: tuple[int, ...] = CUTS) -> tuple[SubModel, dict[str, Any]]:
    sub = SubModel(spec, cuts, t)
    return sub, progressive.initial(sub, KEY)


def trained(sub: SubModel, weights: dict[str, Any], **options: bool) -> dict[str, Any]:
    loss = functools.partial(progressive.supervised_loss, sub, TASK, **options)
    params = {"model": {name: weights[name] for name in ("active", "proxies", "header")}}
    steps = [local.Step(loss, {"model": local.SGD(0.1)})]
    return local.train(steps, params, {"frozen": weights["frozen"]}, [BATCH], KEY)[0]["model"]


def test_the_last_step_is_the_model() -> None:
    sub, weights = step(4)
    assert not weights["proxies"]
    x = BATCH["x"][: progressive.AT_ONCE[0]]
    assert torch.equal(progressive.forward(sub, weights, x), models.logits(SPEC, models.initial(SPEC, KEY), x))


def test_a_step_is_its_blocks_its_convolutions_and_the_mean() -> None:
    sub, weights = step(2)
    extractor = models.initial(SPEC, KEY)["extractor"]
    x = BATCH["x"][:5]
    y = chain.run(SPEC, 0, 5, extractor, x)
    for block, shape in (("3", (32, 16, 3, 3)), ("4", (64, 32, 3, 3))):
        kernel = weights["proxies"][block]["weight"]
        assert kernel.shape == shape
        y = F.conv2d(y, kernel, stride=2, padding=1)
    expected = F.linear(y.mean((2, 3)), weights["header"]["weight"], weights["header"]["bias"])
    assert torch.allclose(progressive.forward(sub, weights, x), expected, atol=1e-6)


def test_headers_have_one_shape_at_every_step() -> None:
    shapes = {tuple(step(t)[1]["header"]["weight"].shape) for t in (1, 2, 3, 4)}
    assert shapes == {(4, 64)}


def test_everything_but_the_frozen_blocks_trains() -> None:
    sub, weights = step(2)
    before = tree.flatten(tree.clone(weights))
    after = tree.flatten(trained(sub, weights))
    assert {name for name, leaf in after.items() if torch.equal(leaf, before[name])} == set()
    assert before.keys() - after.keys() == {f"frozen/{name}" for name in weights["frozen"]}
    assert all(torch.equal(leaf, before[f"frozen/{name}"]) for name, leaf in weights["frozen"].items())


@pytest.mark.parametrize("frozen_train", [False, True])
def test_frozen_blocks_write_their_statistics_only_when_asked(frozen_train: bool) -> None:
    sub, weights = step(2)
    weights["frozen"] = tree.clone(weights["frozen"])
    before = tree.sha256(weights["frozen"])
    trained(sub, weights, frozen_train=frozen_train)
    assert (tree.sha256(weights["frozen"]) != before) == frozen_train


def test_rows_pass_the_frozen_blocks_in_slices_as_they_pass_together() -> None:
    sub, weights = step(3)
    whole = chain.run(SPEC, 0, sub.start, weights["frozen"], BATCH["x"])
    assert torch.allclose(progressive.prefix(sub, weights["frozen"], BATCH["x"]), whole, atol=1e-6)


def test_mapping_is_the_squared_distance_of_logits_and_trains_the_proxy_only() -> None:
    sub, weights = step(3)
    proxy = progressive.proxy(sub, 3, KEY)
    params = {"model": {"proxy": {"weight": proxy["weight"].clone().requires_grad_()}}}
    loss = progressive.mapping_loss(sub, params, weights, BATCH)
    teacher = progressive.forward(sub, weights, BATCH["x"])
    y = progressive.prefix(sub, weights["frozen"], BATCH["x"])
    for kernel in (proxy["weight"], weights["proxies"]["4"]["weight"]):
        y = F.conv2d(y, kernel, stride=2, padding=1)
    student = models.head(SPEC, weights["header"], y.mean((2, 3)))
    assert loss.item() == pytest.approx(float((student - teacher).square().mean()), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, [params["model"]["proxy"]["weight"]])
    assert gradient.abs().sum() > 0


def test_mapping_may_train_the_header_along() -> None:
    sub, weights = step(4)
    other = tree.map_leaves(torch.zeros_like, weights["header"])
    params = {"model": {"proxy": progressive.proxy(sub, 4, KEY), "header": other}}
    expected = progressive.forward(sub, weights, BATCH["x"]).square().mean()
    assert float(progressive.mapping_loss(sub, params, weights, BATCH)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("name", "shape", "cuts", "proxies"),
    [
        ("cnn-5", (3, 16, 16), (0, 1, 2, 3, 4), {"2": (32, 16, 3, 3), "3": (500, 32, 3, 3), "4": (500, 500)}),
        ("cnn1d-5", (6, 20), (0, 1, 3), {"2": (128, 16, 3)}),
        ("vit-tiny(width=0.25)", (3, 16, 16), (0, 2, 7), {"2": (48, 48)}),
        ("mlp-1", (13,), (0, 1, 2, 3), {"2": (128, 256), "3": (64, 128)}),
    ],
)
def test_maps_windows_tokens_and_vectors_have_proxies_of_their_kind(
    name: str, shape: tuple[int, ...], cuts: tuple[int, ...], proxies: dict[str, tuple[int, ...]]
) -> None:
    spec = Spec(name, shape, 4)
    x = torch.randn(3, *shape)
    sub, weights = step(1, spec, cuts)
    assert {block: tuple(leaf["weight"].shape) for block, leaf in weights["proxies"].items()} == proxies
    for t in range(1, len(cuts)):
        sub, weights = step(t, spec, cuts)
        assert progressive.forward(sub, weights, x).shape == (3, 4)
        if t > 1:
            params = {"model": {"proxy": progressive.proxy(sub, t, KEY)}}
            assert progressive.mapping_loss(sub, params, weights, {"x": x}).ndim == 0


def test_a_step_or_a_proxy_that_does_not_exist_says_so() -> None:
    with pytest.raises(InputError, match="cut into 4 blocks: there is no step 5"):
        SubModel(SPEC, CUTS, 5)
    with pytest.raises(InputError, match="block 1 of 4 has no proxy"):
        progressive.proxy(step(1)[0], 1, KEY)


def test_an_output_module_is_what_is_known_and_fresh_for_the_rest() -> None:
    sub = SubModel(SPEC, CUTS, 2)
    fresh = progressive.output_module(sub, KEY)
    assert tree.equal(fresh, {name: progressive.initial(sub, KEY)[name] for name in ("proxies", "header")})
    known = {"proxies": {"2": {}, "4": {"weight": torch.zeros(64, 32, 3, 3)}}, "header": fresh["header"]}
    found = progressive.output_module(sub, KEY, known)
    assert found["proxies"]["4"] is known["proxies"]["4"]
    assert found["header"] is known["header"]
    assert tree.equal(found["proxies"]["3"], fresh["proxies"]["3"])
    assert set(found["proxies"]) == {"3", "4"}


def test_a_taught_proxy_joins_those_of_the_step_before() -> None:
    sub, weights = step(3)
    student = progressive.student(sub, KEY, weights["header"])
    before = SubModel(SPEC, CUTS, 2)
    found = progressive.mapped(sub, {name: weights[name] for name in ("proxies", "header")}, student)
    assert {b: leaf["weight"].shape for b, leaf in found["proxies"].items()} == {
        str(b): before.proxy_shape(b) for b in before.missing
    }
    assert found["proxies"]["3"] is student["proxy"]
    assert found["header"] is weights["header"]
    assert student.keys() == {"proxy"}
    last, whole = step(4)
    student = progressive.student(last, KEY, whole["header"])
    assert tree.equal(student["header"], whole["header"])
    assert not tree.shares_storage(student, whole)
    assert progressive.mapped(last, whole, student)["header"] is student["header"]


def test_a_step_without_proxies_has_a_linear_header_of_its_width() -> None:
    x = BATCH["x"][:3]
    for t, wide in ((1, 8), (2, 16), (4, 64)):
        sub = SubModel(SPEC, CUTS, t, proxied=False)
        weights = progressive.initial(sub, KEY)
        assert weights["header"]["weight"].shape == (4, wide)
        y = chain.run(SPEC, 0, sub.stop, {**weights["frozen"], **weights["active"]}, x)
        y = y if t == 4 else y.mean((2, 3))
        expected = F.linear(y, weights["header"]["weight"], weights["header"]["bias"])
        assert torch.allclose(progressive.forward(sub, weights, x), expected, atol=1e-6)


def test_a_header_of_more_than_one_layer_needs_proxies(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Module):\n"
        "    def __init__(self, input, classes):\n"
        "        super().__init__()\n"
        "        self.extractor = nn.Sequential(nn.Flatten(), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6))\n"
        "        self.header = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, classes))\n"
        "    def forward(self, x):\n"
        "        return self.header(self.extractor(x))\n"
    )
    spec = Spec(f"{tmp_path / 'own.py'}:Net", (5,), 4)
    progressive.output_module(SubModel(spec, (0, 1, 2), 1), KEY)
    with pytest.raises(InputError, match="needs proxies: its header is more than one linear layer"):
        progressive.output_module(SubModel(spec, (0, 1, 2), 1, proxied=False), KEY)


def test_blocks_are_the_extractor_in_parts() -> None:
    extractor = models.initial(SPEC, KEY)["extractor"]
    found = progressive.blocks(SubModel(SPEC, CUTS, 1), extractor)
    assert list(found) == ["1", "2", "3", "4"]
    leaves = {name: leaf for block in found.values() for name, leaf in block.items()}
    assert leaves.keys() == extractor.keys()
    assert all(leaf is extractor[name] for name, leaf in leaves.items())
    assert all(name.removeprefix("~").startswith("stage2") for name in found["2"])
