"""Frozen models of images and questions: as their library computes them, tuned as computed by hand, masked, and left
alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from scipy.special import erf, softmax
from torch import Tensor, nn

from seeing import KINDS, batch, noisy, write_model
from unalike import models, tree
from unalike.errors import InputError
from unalike.models import multimodal
from unalike.models.tuned import Places
from unalike.multimodal import Foundation, reader
from unalike.protocol import Spec
from unalike.rng import Key

Specs = dict[str, Spec]


@pytest.fixture(scope="module")
def specs(foundations: dict[str, Path]) -> Specs:
    return {kind: Spec(f"vl:{folder}", (3, 32, 32), 5) for kind, folder in foundations.items()}


def library(spec: Spec) -> Any:
    return transformers.AutoModel.from_pretrained(Foundation.read(spec.name).model).eval()


def mask_of(spec: Spec, x: Tensor) -> Tensor:
    return reader(Foundation.read(spec.name).model).mask(x)


def features(spec: Spec, asked: Any, tuned: Any = None, **more: Any) -> Tensor:
    with torch.no_grad():
        return multimodal.features(spec, tuned or {}, asked, **more)


# As it is -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_untuned_it_is_what_the_library_computes(kind: str, specs: Specs) -> None:
    spec, asked = specs[kind], batch(specs[kind])
    model, mask = library(spec), mask_of(spec, asked["x"])
    seen = {"pixel_values": (asked["image"] / 255 - 0.5) / 0.5} if "image" in asked else {}
    read = {"input_ids": asked["x"], "attention_mask": mask}
    with torch.no_grad():
        if kind == "clip":
            towers = model.text_model(**read), model.vision_model(**seen)
            expected = torch.cat([tower.pooler_output for tower in towers], 1)
        else:
            expected = model(**(seen if kind == "vit" else read | seen)).pooler_output
    assert torch.allclose(features(spec, asked), expected, atol=1e-5)
    assert features(spec, asked).shape == (5, multimodal.base(spec).width)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_those_beside_it_nor_on_padding(kind: str, specs: Specs) -> None:
    spec, asked = specs[kind], batch(specs[kind])
    tuned = {"adapter": [noisy(spec, "adapter", 1), noisy(spec, "adapter", 2)]}
    together = features(spec, asked, tuned)
    alone = [features(spec, {n: rows[i : i + 1] for n, rows in asked.items()}, tuned) for i in range(5)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)
    if multimodal.base(spec).reader:
        wider = {**asked, "x": nn.functional.pad(asked["x"], (0, 4), value=0)}
        assert torch.allclose(together, features(spec, wider, tuned), atol=1e-5)


def test_colours_are_scaled_as_the_models_folder_says(specs: Specs, tmp_path: Path) -> None:
    asked = batch(specs["vit"])
    copied = Spec(f"vl:{shutil.copytree(Foundation.read(specs['vit'].name).model, tmp_path / 'vit')}", (3, 32, 32), 5)
    means, stds = [0.4, 0.5, 0.6], [0.2, 0.3, 0.25]
    told = {"image_mean": means, "image_std": stds}
    (tmp_path / "vit" / multimodal.NORMALISED).write_text(json.dumps(told))
    mean, std = (torch.tensor(part).reshape(3, 1, 1) for part in (means, stds))
    with torch.no_grad():
        expected = library(copied)(pixel_values=(asked["image"] / 255 - mean) / std).pooler_output
    assert torch.allclose(features(copied, asked), expected, atol=1e-5)
    (tmp_path / "vit" / multimodal.NORMALISED).rename(tmp_path / "vit" / multimodal.PROCESSOR)
    (tmp_path / "vit" / multimodal.PROCESSOR).write_text(json.dumps({"image_processor": told}))
    multimodal._base.cache_clear()
    assert torch.allclose(features(copied, asked), expected, atol=1e-5)
    (tmp_path / "vit" / multimodal.NORMALISED).write_text(json.dumps(told | {"image_std": [0, 1, 1]}))
    multimodal._base.cache_clear()
    with pytest.raises(InputError, match="three above 0 in image_std"):
        multimodal.base(copied)


def test_of_a_model_with_a_head_the_body_is_taken_and_nothing_is_said(
    specs: Specs, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As hubs have them: ViLT for answers or for masked words, whose heads are nobody's here."""
    asked = batch(specs["vilt"])
    seen = {"pixel_values": (asked["image"] / 255 - 0.5) / 0.5, "attention_mask": (asked["x"] != 0).long()}
    for kind in ("ViltForQuestionAnswering", "ViltForMaskedLM"):
        folder = shutil.copytree(Foundation.read(specs["vilt"].name).model, tmp_path / kind)
        with Key.root(1).scope():
            whole = getattr(transformers, kind)(transformers.ViltConfig.from_pretrained(folder)).eval()
        whole.save_pretrained(folder)
        capfd.readouterr()
        found = features(Spec(f"vl:{folder}", (3, 32, 32), 5), asked)
        assert capfd.readouterr() == ("", "")
        with torch.no_grad():
            assert torch.allclose(found, whole.vilt(input_ids=asked["x"], **seen).pooler_output, atol=1e-5)


def test_a_pooler_that_a_folder_has_no_weights_for_is_not_made_up(specs: Specs, tmp_path: Path) -> None:
    """Without one it is the first token after the last normalisation."""
    spec = Spec(f"vl:{tmp_path}", (3, 32, 32), 5)
    shutil.copytree(Foundation.read(specs["vit"].name).model, tmp_path, dirs_exist_ok=True)
    config = transformers.ViTConfig.from_pretrained(tmp_path)
    bare = transformers.ViTModel(config, add_pooling_layer=False)
    bare.save_pretrained(tmp_path)
    asked = batch(specs["vit"])
    with torch.no_grad():
        expected = bare.eval()(pixel_values=(asked["image"] / 255 - 0.5) / 0.5).last_hidden_state[:, 0]
    assert torch.allclose(features(spec, asked), expected, atol=1e-5)


# What is missing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["vilt", "vit", "clip"])
def test_an_image_that_is_missing_is_masked_whatever_its_pixels(kind: str, specs: Specs) -> None:
    spec, asked = specs[kind], batch(specs[kind], lacks={1: "image", 3: "image"})
    tuned = {"adapter": [noisy(spec, "adapter", 1)], "prompt": [noisy(spec, "prompt", 2, tokens=3)]}
    found = features(spec, asked, tuned)
    other = features(spec, {**asked, "image": asked["image"] + 77}, tuned)
    assert found[[1, 3]].equal(other[[1, 3]])
    assert not torch.allclose(found[[0, 2, 4]], other[[0, 2, 4]], atol=1e-3)
    seen = features(spec, {**asked, "pictured": torch.ones(5, dtype=torch.bool)}, tuned)
    assert not torch.allclose(found[1], seen[1], atol=1e-3), "zeros would be a black image"


def test_without_an_image_vilt_is_its_layers_on_the_words(specs: Specs) -> None:
    spec, asked = specs["vilt"], batch(specs["vilt"], lacks=dict.fromkeys(range(5), "image"))
    model = library(spec)
    with torch.no_grad():
        for i, row in enumerate(asked["x"]):
            x = row[row != 0][None]
            words = model.embeddings.text_embeddings(input_ids=x) + model.embeddings.token_type_embeddings.weight[0]
            expected = model.pooler(model.layernorm(model.encoder(words).last_hidden_state))
            assert torch.allclose(features(spec, asked)[i], expected[0], atol=1e-5)


def test_without_a_question_vilt_has_the_token_that_questions_begin_with(specs: Specs) -> None:
    spec, asked = specs["vilt"], batch(specs["vilt"], lacks={2: "text"})
    assert (asked["x"][2] == 0).all()
    begun = torch.tensor([[2]])
    row = {"input_ids": begun, "attention_mask": torch.ones_like(begun)}
    with torch.no_grad():
        expected = library(spec)(**row, pixel_values=(asked["image"][2:3] / 255 - 0.5) / 0.5).pooler_output
    assert torch.allclose(features(spec, asked)[2], expected[0], atol=1e-5)


def test_of_clip_the_tower_that_has_nothing_says_nothing(specs: Specs) -> None:
    spec, asked = specs["clip"], batch(specs["clip"], lacks={0: "text", 1: "image"})
    text, image = features(spec, asked).chunk(2, 1)
    assert [(part == 0).all(1).tolist() for part in (text, image)] == [
        [True, False, False, False, False],
        [False, True, False, False, False],
    ]


def test_clips_end_is_a_token_though_it_fills_rows_up_as_well() -> None:
    ids = torch.tensor([[7, 4, 9, 9, 9], [7, 4, 5, 6, 9], [9, 9, 9, 9, 9]])
    read: Any = object.__new__(reader.__wrapped__.__globals__["Reader"])
    read.pad, read._ends_with_pad = 9, True
    assert read.mask(ids).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0]]


# Adapters by hand -----------------------------------------------------------------------------------------------------


def normed(x: Any, weights: Any, name: str, eps: float) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    spread = np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
    return centred / spread * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def dense(x: Any, weights: Any, name: str) -> Any:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def gelu(x: Any) -> Any:
    return x * 0.5 * (1 + erf(x / np.sqrt(2)))


def raised(h: Any, adapter: Any, name: str) -> Any:
    """A(h) = h + Up(ReLU(Down(h)))."""
    return h + dense(np.maximum(dense(h, adapter, f"{name}.down"), 0), adapter, f"{name}.up")


def attention(x: Any, weights: Any, at: str, heads: int = 4) -> Any:
    q, k, v = (
        dense(x, weights, f"{at}.attention.{part}").reshape(len(x), heads, -1).transpose(1, 0, 2)
        for part in ("query", "key", "value")
    )
    mixed = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]), -1) @ v
    return dense(mixed.transpose(1, 0, 2).reshape(len(x), -1), weights, f"{at}.output.dense")


def vilt_by_hand(weights: Any, ids: list[int], image: Any, adapters: list[Any], eps: float = 1e-12) -> Any:
    """Features (d,) of one question and one image (3, 32, 32) in 0..255, the adapters averaged in each layer."""
    at = "embeddings.text_embeddings"
    words = weights[f"{at}.word_embeddings.weight"][ids] + weights[f"{at}.token_type_embeddings.weight"][0]
    words = normed(words + weights[f"{at}.position_embeddings.weight"][: len(ids)], weights, f"{at}.LayerNorm", eps)
    kernel = weights["embeddings.patch_embeddings.projection.weight"]
    scaled = (image / 255 - 0.5) / 0.5
    cut = scaled.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(16, -1)
    patches = cut @ kernel.reshape(len(kernel), -1).T + weights["embeddings.patch_embeddings.projection.bias"]
    seen = np.concatenate([weights["embeddings.cls_token"][0], patches]) + weights["embeddings.position_embeddings"][0]
    kinds = weights["embeddings.token_type_embeddings.weight"]
    x = np.concatenate([words + kinds[0], seen + kinds[1]])
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        x = x + attention(normed(x, weights, f"{layer}.layernorm_before", eps), weights, f"{layer}.attention")
        inner = gelu(dense(normed(x, weights, f"{layer}.layernorm_after", eps), weights, f"{layer}.intermediate.dense"))
        h = dense(inner, weights, f"{layer}.output.dense") + x
        x = sum(raised(h, adapter, layer) for adapter in adapters) / len(adapters)
    return np.tanh(dense(normed(x, weights, "layernorm", eps)[0], weights, "pooler.dense"))


def as_numpy(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    return {name: leaf.double().numpy() for name, leaf in weights.items()}


def test_the_dual_adapter_teacher_by_hand(specs: Specs) -> None:
    """½ A_c(h) + ½ A_s(h) in every layer, in numpy; neither outputs nor parameters are averaged."""
    spec, asked = specs["vilt"], batch(specs["vilt"])
    weights = as_numpy(library(spec).state_dict())
    both = [noisy(spec, "adapter", seed) for seed in (1, 2)]
    found, one_by_one = (
        features(spec, asked, {"adapter": both}),
        [features(spec, asked, {"adapter": [a]}) for a in both],
    )
    for i in range(5):
        ids, image = asked["x"][i][asked["x"][i] != 0].tolist(), asked["image"][i].double().numpy()
        adapters = [as_numpy(a) for a in both]
        assert np.allclose(found[i], vilt_by_hand(weights, ids, image, adapters), atol=1e-4)
        assert np.allclose(one_by_one[0][i], vilt_by_hand(weights, ids, image, adapters[:1]), atol=1e-4)
    mixed = {"adapter": [{name: (both[0][name] + both[1][name]) / 2 for name in both[0]}]}
    assert not torch.allclose(found, sum(one_by_one) / 2, atol=1e-2)
    assert not torch.allclose(found, features(spec, asked, mixed), atol=1e-2)


def test_berts_layer_ends_with_its_normalisation(specs: Specs) -> None:
    """y = r + Up(ReLU(Down(LN(r + u)))), and the layer's output is LN(y + u)."""
    spec = specs["bert"]
    base, adapter = multimodal.base(spec), noisy(spec, "adapter", 1)
    output: Any = base.model.encoder.layer[1].output
    hidden, u = (torch.randn(4, d, generator=Key.root(d).torch()) for d in (64, 32))
    with torch.no_grad(), base.places.bound({"adapter": [adapter]}):
        found = output(hidden, u)
    weights = as_numpy(base.model.state_dict())
    r = dense(hidden.double().numpy(), weights, "encoder.layer.1.output.dense")
    after = "encoder.layer.1.output.LayerNorm"
    inner, named = normed(r + u.double().numpy(), weights, after, 1e-12), as_numpy(adapter)
    y = r + raised(inner, named, "encoder.layer.1") - inner
    assert np.allclose(found, normed(y + u.double().numpy(), weights, after, 1e-12), atol=1e-5)


def test_an_adapter_has_as_many_weights_as_the_page_says() -> None:
    """74,544 a layer of 768, 894,528 in ViLT's twelve; no weight is made."""
    with torch.device("meta"):
        places = Places(transformers.ViltModel(transformers.ViltConfig()))
    shapes = places.shapes("adapter", reduction=16)
    counts = [sum(np.prod(s) for n, s in shapes.items() if n.startswith(f"encoder.layer.{i}.")) for i in range(12)]
    assert counts == [74_544] * 12
    assert sum(counts) == 894_528


@pytest.mark.parametrize("kind", KINDS)
def test_every_layer_of_every_kind_has_its_adapter(kind: str, specs: Specs) -> None:
    spec, asked = specs[kind], batch(specs[kind])
    layers = multimodal.base(spec).places.adapters
    assert len(layers) == (4 if kind == "clip" else 2)
    whole = noisy(spec, "adapter", 1)
    one = {"adapter": [{name: leaf.clone().requires_grad_() for name, leaf in whole.items()}]}
    multimodal.features(spec, one, asked).square().sum().backward()  # type: ignore[no-untyped-call]
    for layer in layers:
        assert one["adapter"][0][f"{layer}.up.bias"].grad.abs().max() > 0, layer


# Other ways of tuning -------------------------------------------------------------------------------------------------


def test_lora_is_its_product_added_to_queries_and_values(specs: Specs) -> None:
    for kind in KINDS:
        spec, asked = specs[kind], batch(specs[kind])
        tuned, base = noisy(spec, "lora", 1, r=3), multimodal.base(spec)
        found = features(spec, asked, {"lora": [tuned]}, scale=2.0)
        changed = base.frozen
        for name in base.places.lora:
            product = 2.0 * tuned[f"{name}.lora_B.weight"] @ tuned[f"{name}.lora_A.weight"]
            changed[f"~{name}.weight"] = changed[f"~{name}.weight"] + product
        with base.holding(changed):
            expected = features(spec, asked)
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, features(spec, asked), atol=1e-3)
        assert len(base.places.lora) == 2 * len(base.places.adapters)


@pytest.mark.parametrize("what", ["bias", "norm"])
def test_biases_and_norms_take_the_place_of_the_frozen_ones(what: str, specs: Specs) -> None:
    for kind in KINDS:
        spec, asked = specs[kind], batch(specs[kind])
        tuned, base = noisy(spec, what, 1), multimodal.base(spec)
        with base.holding(base.frozen | {f"~{name}": leaf for name, leaf in tuned.items()}):
            expected = features(spec, asked)
        assert features(spec, asked, {what: [tuned]}).equal(expected)
        assert not torch.allclose(expected, features(spec, asked), atol=1e-3)
    norms = {name.rpartition(".")[0] for name in multimodal.shapes(specs["vilt"], "norm")}
    assert {type(multimodal.base(specs["vilt"]).model.get_submodule(name)) for name in norms} == {nn.LayerNorm}
    assert all(name.endswith(".bias") for name in multimodal.shapes(specs["vilt"], "bias"))


def test_a_soft_prompt_stands_after_the_first_token(specs: Specs) -> None:
    spec, asked = specs["vit"], batch(specs["vit"])
    prompt, model = noisy(spec, "prompt", 1, tokens=3), library(spec)
    assert prompt["image"].shape == (3, 32)
    with torch.no_grad():
        hidden = model.embeddings((asked["image"] / 255 - 0.5) / 0.5)
        hidden = torch.cat([hidden[:, :1], prompt["image"].expand(5, 3, 32), hidden[:, 1:]], 1)
        for layer in model.layers:
            hidden = layer(hidden)
        expected = model.pooler(model.layernorm(hidden))
    assert torch.allclose(features(spec, asked, {"prompt": [prompt]}), expected, atol=1e-5)
    for kind in KINDS:
        fresh = multimodal.initial(specs[kind], "prompt", Key.root(1), tokens=4)
        assert {leaf.shape for leaf in fresh.values()} == {(4, 32)}
        found = features(specs[kind], batch(specs[kind]), {"prompt": [noisy(specs[kind], "prompt", 1)]})
        assert not torch.allclose(found, features(specs[kind], batch(specs[kind])), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_tuned_begins_where_the_frozen_model_is(kind: str, specs: Specs) -> None:
    """LoRA, biases and norms change nothing yet; an adapter changes little."""
    spec, asked = specs[kind], batch(specs[kind])
    plain = features(spec, asked)
    for what in ("lora", "bias", "norm"):
        assert features(spec, asked, {what: [multimodal.initial(spec, what, Key.root(1))]}).equal(plain)  # type: ignore[arg-type]
    fresh = multimodal.initial(spec, "adapter", Key.root(1))
    assert torch.allclose(features(spec, asked, {"adapter": [fresh]}), plain, atol=0.05)
    drawn = torch.cat([leaf.flatten() for name, leaf in fresh.items() if name.endswith("weight")])
    assert drawn.std() == pytest.approx(0.02, rel=0.1)
    assert all((leaf == 0).all() for name, leaf in fresh.items() if name.endswith("bias"))
    assert tree.equal(fresh, multimodal.initial(spec, "adapter", Key.root(1)))
    assert not tree.equal(fresh, multimodal.initial(spec, "adapter", Key.root(2)))


def test_a_head_is_drawn_as_a_linear_layer_and_is_all_that_follows(specs: Specs) -> None:
    spec, asked = specs["clip"], batch(specs["clip"])
    head = multimodal.initial_head(spec, Key.root(1))
    assert {name: tuple(leaf.shape) for name, leaf in head.items()} == {"weight": (5, 64), "bias": (5,)}
    assert 0.9 / 8 < head["weight"].abs().max() <= 1 / 8
    with torch.no_grad():
        found = multimodal.logits(spec, {}, head, asked)
    assert torch.allclose(found, features(spec, asked) @ head["weight"].T + head["bias"], atol=1e-6)


# Left alone -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["adapter", "lora", "prompt", "bias", "norm"])
def test_only_what_is_tuned_gets_gradients_and_nothing_is_left_behind(what: str, specs: Specs) -> None:
    for kind in KINDS:
        spec, asked = specs[kind], batch(specs[kind], lacks={1: "text" if kind == "bert" else "image"})
        base = multimodal.base(spec)
        before, tuned = tree.sha256(dict(base.model.state_dict())), noisy(spec, what, 1)
        trained = {name: leaf.requires_grad_() for name, leaf in tuned.items()}
        multimodal.features(spec, {what: [trained]}, asked, train=True).square().sum().backward()  # type: ignore[no-untyped-call]
        assert all(leaf.grad is not None for leaf in trained.values())
        assert all(p.grad is None and not p.requires_grad for p in base.model.parameters())
        assert tree.sha256(dict(base.model.state_dict())) == before
    plain = features(spec, asked)
    with pytest.raises(RuntimeError, match="stop"), base.places.bound({what: [tuned]}):
        raise RuntimeError("stop")
    assert features(spec, asked).equal(plain)


def test_dropout_is_on_in_training_only(tmp_path: Path) -> None:
    spec = Spec(f"vl:{write_model(tmp_path / 'dropping', 'vilt', dropout=0.2)}", (3, 32, 32), 5)
    asked = batch(spec)
    with Key.root(1).scope():
        first = features(spec, asked, train=True)
    with Key.root(2).scope():
        second = features(spec, asked, train=True)
    assert not first.equal(second)
    assert features(spec, asked).equal(features(spec, asked))


def test_half_precision_is_for_the_frozen_weights(foundations: dict[str, Path]) -> None:
    for kind, folder in foundations.items():
        spec = Spec(f"vl:{folder}(dtype='bfloat16')", (3, 32, 32), 5)
        tuned: Any = {what: [noisy(spec, what, 1, 0.05)] for what in ("adapter", "lora", "prompt", "bias")}
        assert {leaf.dtype for trees in tuned.values() for t in trees for leaf in t.values()} == {torch.float32}
        assert next(multimodal.base(spec).model.parameters()).dtype == torch.bfloat16
        found = features(spec, batch(spec), tuned)
        assert found.dtype == torch.float32
        assert torch.isfinite(found).all(), kind


def test_one_backbone_serves_specs_that_differ_in_answers(specs: Specs) -> None:
    few, many = (Spec(specs["vilt"].name, (3, 32, 32), answers) for answers in (2, 9))
    assert multimodal.base(few) is multimodal.base(many)
    assert models.parameters(few) == models.parameters(many) == 2 * (32 * 2 + 2 + 2 * 32 + 32)


def test_the_reduction_is_the_adapters(specs: Specs) -> None:
    spec = Spec(f"{specs['vilt'].name}(reduction=4)", (3, 32, 32), 5)
    assert multimodal.shapes(spec, "adapter")["encoder.layer.0.down.weight"] == (8, 32)


def test_a_folder_without_all_weights_is_refused(specs: Specs, tmp_path: Path) -> None:
    shutil.copytree(Foundation.read(specs["vilt"].name).model, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    with pytest.raises(InputError, match=r"has no weights for encoder\.layer\.2\..* and 15 more"):
        models.check(Spec(f"vl:{tmp_path}", (3, 32, 32), 5))
