"""Networks: the paper's sizes, purity, users' own modules."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.func import functional_call

from unalike import models, tree
from unalike.errors import InputError
from unalike.models import Skeleton
from unalike.plugins import absolute
from unalike.protocol import Spec
from unalike.rng import Key

PAGE = {
    (3, 32, 32): (2_621_558, 1_815_142, 1_320_558, 1_060_358, 670_058, 665_048),
    (1, 28, 28): (2_044_758, 1_526_342, 1_031_758, 829_158, 525_258, 520_248),
}


@pytest.mark.parametrize("shape", PAGE)
def test_parameter_counts_are_the_papers(shape: tuple[int, ...]) -> None:
    specs = [Spec(f"cnn-{i}", shape, 10) for i in range(1, 6)]
    found = (*(models.parameters(s) for s in specs), models.parameters(specs[-1], "extractor"))
    assert found == PAGE[shape]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 64, 48), (2, 9, 30)])
def test_cnns_take_any_image(shape: tuple[int, ...]) -> None:
    for name in models.DEFAULTS["image"]:
        spec = Spec(name, shape, 7)
        models.check(spec)
        assert models.width(spec) == 500


def test_small_images_are_scaled_up_to_28() -> None:
    assert models.parameters(Spec("cnn-5", (1, 8, 8), 10)) == PAGE[(1, 28, 28)][4]


@pytest.mark.parametrize("kind", ["table", "window"])
def test_tables_and_windows_have_five_sizes_of_one_width(kind: str) -> None:
    shape = (13,) if kind == "table" else (6, 50)
    specs = [Spec(name, shape, 3) for name in models.DEFAULTS[kind]]
    assert len({models.width(s) for s in specs}) == 1
    assert len({models.parameters(s) for s in specs}) == 5
    assert models.smallest({s.name: s for s in specs}) == specs[-1].name


def test_a_window_of_any_length_passes() -> None:
    for time in (1, 3, 7):
        models.check(Spec("cnn1d-1", (2, time), 4))


def test_pool_before_relu_is_relu_before_pool() -> None:
    x = torch.randn(2, 3, 8, 8)
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    assert torch.equal(pool(relu(x)), relu(pool(x)))


def test_a_skeleton_is_a_pure_function_of_its_weights() -> None:
    spec = Spec("cnn-5(norm=True)", (1, 8, 8), 10)
    a, b = (models.initial(spec, Key.root(k)) for k in (0, 1))
    x = torch.randn(4, 1, 8, 8)
    first = models.logits(spec, a, x)
    other = models.logits(spec, b, x)
    assert not torch.equal(first, other)
    assert torch.equal(models.logits(spec, a, x), first)
    before = tree.clone(a)
    models.logits(spec, a, x)
    assert tree.equal(a, before)


def test_a_skeleton_agrees_with_functional_call() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    skeleton = Skeleton(net)
    weights = {n: torch.randn_like(t) if t.is_floating_point() else t for n, t in skeleton.weights().items()}
    weights["~1.running_var"] = weights["~1.running_var"].abs()
    x = torch.randn(3, 1, 8, 8)
    plain = {name.replace("~", ""): t.clone() for name, t in weights.items()}
    assert torch.equal(skeleton(weights, x), functional_call(net, plain, (x,)))
    trained = skeleton(weights, x, train=True)
    assert torch.equal(trained, functional_call(net.train(), plain, (x,)))


def test_recurrent_and_tied_weights_are_bound() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(4, 4, batch_first=True)
            self.a = nn.Linear(4, 4, bias=False)
            self.b = nn.Linear(4, 4, bias=False)
            self.b.weight = self.a.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.b(self.a(self.rnn(x)[0][:, -1]))

    skeleton, x = Skeleton(Tied()), torch.randn(2, 3, 4)
    weights = skeleton.weights()
    assert [name for name in weights if name.endswith("weight")] == ["a.weight"]
    first = skeleton(weights, x)
    for name in weights:
        changed = {**weights, name: weights[name] + 1}
        assert not torch.equal(skeleton(changed, x), first), name
        assert torch.equal(skeleton(weights, x), first)


def test_building_a_skeleton_in_a_scope_draws_nothing_from_it() -> None:
    models._skeletons.cache_clear()
    with Key.root(0).scope():
        models.features(
            spec := Spec("cnn-5", (1, 8, 8), 2), models.initial(spec, Key.root(1))["extractor"], torch.zeros(1, 1, 8, 8)
        )
        late = torch.rand(1)
    with Key.root(0).scope():
        assert torch.equal(torch.rand(1), late)


def test_normalisation_names_the_leaves_of_batch_norm_alone(tmp_path: Path) -> None:
    """In CNN-5 for small images 0 is the scaling, 1 and 5 are the convolutions, 2 and 6 their BatchNorm."""
    leaves = ("2.weight", "2.bias", "~2.running_mean", "~2.running_var", "~2.num_batches_tracked")
    expected = {f"extractor/{leaf.replace('2.', f'{layer}.')}" for leaf in leaves for layer in (2, 6)}
    spec = Spec("cnn-5(norm=True)", (1, 8, 8), 10)
    assert models.normalisation(spec) == expected
    assert models.normalisation(Spec("cnn-5", (1, 8, 8), 10)) == frozenset()
    models.logits(spec, models.initial(spec, Key.root(0)), torch.zeros(2, 1, 8, 8))
    models.leaves_of.cache_clear()
    assert models.normalisation(spec) == expected


def test_normalisation_in_a_users_header_and_not_other_kinds_of_it(tmp_path: Path) -> None:
    name = own(
        tmp_path,
        "def net(classes):\n"
        "    whole = nn.Module()\n"
        "    whole.extractor = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.LayerNorm(8), nn.GroupNorm(2, 8))\n"
        "    whole.header = nn.Sequential(nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, classes))\n"
        "    whole.header[0].bias.requires_grad_(False)\n"
        "    whole.forward = lambda x: whole.header(whole.extractor(x))\n"
        "    return whole\n",
    )
    assert models.normalisation(Spec(name, (1, 8, 8), 3)) == {"header/0.weight", "header/~0.bias"}


def own(tmp_path: Path, body: str) -> str:
    (tmp_path / "mine.py").write_text("import torch\nfrom torch import nn\n" + body)
    return f"{tmp_path / 'mine.py'}:net"


def test_a_users_module_is_cut_before_its_last_linear_layer(tmp_path: Path) -> None:
    name = own(
        tmp_path,
        "def net(num_classes):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.ReLU(), nn.Linear(9, num_classes))\n",
    )
    spec = Spec(name, (1, 8, 8), 3)
    models.check(spec)
    assert models.width(spec) == 9
    weights = models.initial(spec, Key.root(0))
    assert set(weights["header"]) == {"weight", "bias"}
    assert weights["header"]["weight"].shape == (3, 9)


def test_arguments_in_parentheses_reach_the_users_function(tmp_path: Path) -> None:
    name = own(
        tmp_path,
        "def net(input, classes, hidden=4):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), nn.Linear(hidden, classes))\n",
    )
    assert models.width(Spec(f"{name}(hidden=12)", (1, 8, 8), 3)) == 12


def test_features_can_be_pooled_to_a_common_width() -> None:
    spec = Spec("mlp-5", (13,), 3, features=20)
    models.check(spec)
    assert models.width(spec) == 20


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("def net():\n    return 3\n", "returned a int, not a torch.nn.Module"),
        ("def net():\n    return nn.Flatten()\n", "no final torch.nn.Linear with 3 outputs"),
        ("def net():\n    raise RuntimeError('boom')\n", "cannot be built for input (1, 8, 8): boom"),
        ("def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(5, 3))\n", "its header cannot take"),
        (
            "def net():\n    return nn.Sequential(nn.Conv2d(4, 2, 3), nn.Linear(6, 3))\n",
            "cannot take an input of shape (1, 8, 8)",
        ),
        (
            "def net():\n    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(6, 3))\n",
            "must emit (batch, features), not (2, 2, 6, 6)",
        ),
        ("def other():\n    pass\n", "has no 'net'"),
        ("def net(:\n", "cannot be imported: SyntaxError"),
    ],
)
def test_a_users_module_that_does_not_fit_is_explained(tmp_path: Path, body: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        models.check(Spec(own(tmp_path, body), (1, 8, 8), 3))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unequal_widths_are_refused_with_the_remedy() -> None:
    specs = {"mlp-5": Spec("mlp-5", (13,), 3), "b": Spec("mlp-5", (13,), 3, features=20)}
    with pytest.raises(InputError, match=r"b emits 20 and mlp-5 emits 64.*--feature-width 64"):
        models.require_equal_widths("pfedafm", ["mlp-5", "b"], specs)


def test_an_unknown_model_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown model 'resnet'.*cnn-1.*package.module:function"):
        models.check(Spec("resnet", (1, 8, 8), 3))


def test_names_of_files_become_absolute_with_their_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert absolute("mine.py:net(a='x:y')") == f"{tmp_path}/mine.py:net(a='x:y')"
    assert absolute("package.module:net") == "package.module:net"
    assert absolute("cnn-1(norm=True)") == "cnn-1(norm=True)"
