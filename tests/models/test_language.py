"""Adapters on a frozen language model: the blend against a layer of our own, what trains, what is restored."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from unalike import api, models, tree
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.models import language
from unalike.pretrained import Adapted
from unalike.protocol import Spec
from unalike.rng import Key

Weights = dict[str, Tensor]


class DualLoRA(nn.Module):
    """h = W x + (1 − a) s B_g A_g x + a s B_l A_l x, with a (rows,): the formula, and nothing of PEFT."""

    def __init__(self, frozen: nn.Module, pairs: Mapping[str, tuple[Tensor, Tensor]], s: float, a: Tensor) -> None:
        super().__init__()
        self.frozen, self.pairs, self.s, self.a = frozen, pairs, s, a

    def forward(self, x: Tensor) -> Tensor:
        g, l = ((x @ A.T) @ B.T for A, B in (self.pairs["global"], self.pairs["local"]))  # noqa: E741
        a = self.a.reshape(-1, 1, 1)
        found: Tensor = self.frozen(x) + (1 - a) * self.s * g + a * self.s * l
        return found


@pytest.fixture(scope="module")
def spec(asked: Federation) -> Spec:
    return next(iter(asked.models.values()))


@pytest.fixture(scope="module")
def both(spec: Spec) -> dict[str, Weights]:
    """Two adapters that have been trained, as it were: neither B is 0."""
    return {name: noisy(spec, i) for i, name in enumerate(language.NAMES)}


@pytest.fixture(scope="module")
def batch(asked: Federation) -> Mapping[str, Tensor]:
    """Six rows of three tasks, whose prompts differ in length."""
    rows = [asked.data(client, "train") for client in range(3)]
    width = max(part["x"].shape[1] for part in rows)
    x = [nn.functional.pad(part["x"][:2], (width - part["x"].shape[1], 0)) for part in rows]
    found = {"x": torch.cat(x), "y": torch.cat([part["y"][:2] for part in rows])}
    assert len(set((found["x"] != 0).sum(1).tolist())) > 1
    return found


A = torch.tensor([0.0, 0.2, 0.4, 0.5, 0.9, 1.0])


def noisy(spec: Spec, seed: int) -> Weights:
    generator = Key.root(seed).torch()
    fresh = language.initial(spec, Key.root(seed))
    return {name: leaf + 0.3 * torch.randn(leaf.shape, generator=generator) for name, leaf in fresh.items()}


def row(batch: Mapping[str, Tensor], i: int) -> dict[str, Tensor]:
    return {name: rows[i : i + 1] for name, rows in batch.items()}


def test_the_blend_is_that_of_a_layer_of_our_own(
    spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]
) -> None:
    adapted = Adapted.read(spec.name)
    with language.quiet():
        model: Any = transformers.AutoModelForCausalLM.from_pretrained(adapted.model).eval()
    for i, layer in enumerate(model.model.layers):
        for target in ("q_proj", "v_proj"):
            at = f"base_model.model.model.layers.{i}.self_attn.{target}"
            pairs = {n: (w[f"{at}.lora_A.weight"], w[f"{at}.lora_B.weight"]) for n, w in both.items()}
            whole = DualLoRA(getattr(layer.self_attn, target), pairs, adapted.alpha / adapted.r, A)
            setattr(layer.self_attn, target, whole)
    tokens = language.tokens_of(spec)
    ids = torch.cat([batch["x"], batch["y"]], 1)
    mask = torch.cat([tokens.prompt_mask(batch["x"]), tokens.answer_mask(batch["y"])], 1)
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
    expected = logits[:, batch["x"].shape[1] - 1 : -1]
    found = language.answer_logits(spec, both, batch, A)
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(language.answer_logits(spec, both, batch, 1 - A), expected, atol=1e-2)


def test_batched_is_one_by_one(spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]) -> None:
    together = language.answer_logits(spec, both, batch, A)
    alone = [language.answer_logits(spec, both, row(batch, i), A[i : i + 1]) for i in range(6)]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


def test_at_0_and_1_it_is_one_adapter_exactly(
    spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]
) -> None:
    zero = torch.zeros(6)
    for name, a in (("global", zero), ("local", zero + 1)):
        alone = language.answer_logits(spec, {name: both[name]}, batch)
        assert language.answer_logits(spec, both, batch, a).equal(alone)
    assert not language.answer_logits(spec, both, batch, zero).equal(
        language.answer_logits(spec, both, batch, zero + 1)
    )


@pytest.mark.parametrize("beams", [1, 4])
def test_beams_repeat_their_rows_weight(
    beams: int, spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]
) -> None:
    together = language.generate(spec, both, batch["x"], A, tokens=4, beams=beams)
    alone = [
        language.generate(spec, both, batch["x"][i : i + 1], A[i : i + 1], tokens=4, beams=beams) for i in range(6)
    ]
    assert together.equal(torch.cat(alone))
    assert together.shape == (6, 4)
    assert not together.equal(language.generate(spec, both, batch["x"], 1 - A, tokens=4, beams=beams))


def test_nothing_is_written_after_the_end(spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]) -> None:
    """Of a row that has ended while others go on only `pad` is left."""
    tokens = language.tokens_of(spec)
    for beams in (1, 4):
        written = language.generate(spec, both, batch["x"], A, tokens=6, beams=beams)
        ended = (written == tokens.eos).cumsum(1) - (written == tokens.eos).long() > 0
        assert (written[ended] == tokens.pad).all()


@pytest.mark.parametrize("name", language.NAMES)
def test_only_the_adapter_that_trains_gets_gradients(
    name: str, spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor], asked: Federation
) -> None:
    (other,) = {*language.NAMES} - {name}
    params = {name: {leaf: w.clone().requires_grad_() for leaf, w in both[name].items()}}
    given = {other: {leaf: w.clone() for leaf, w in both[other].items()}}
    loss = language.blended_loss(spec, asked.task, 0.5, params, given, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(w.grad is not None and w.grad.abs().max() > 0 for w in params[name].values())
    assert all(w.grad is None for w in given[other].values())
    assert all(p.grad is None and not p.requires_grad for p in language.base(spec).model.parameters())


def test_a_call_leaves_nothing_behind(spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]) -> None:
    """Neither tensors nor weights nor the mode, not even when it fails in the middle."""
    base = language.base(spec)
    mine = {w.data_ptr() for weights in both.values() for w in weights.values()}
    before = tree.sha256(dict(base.model.state_dict()))
    with pytest.raises(RuntimeError, match="stop"), base.bound(both, A, train=True):
        raise RuntimeError("stop")
    language.generate(spec, both, batch["x"], A, tokens=2)
    assert all(layer.scaling == {"global": 8.0, "local": 8.0} for layer in base.layers)
    assert mine.isdisjoint(p.data_ptr() for p in base.model.parameters())
    assert tree.sha256(dict(base.model.state_dict())) == before


def test_two_adapters_need_a_weight(spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]) -> None:
    with pytest.raises(ValueError, match="need the weight"):
        language.answer_logits(spec, both, batch)


def test_an_adapter_is_what_peft_saves_and_changes_nothing_at_first(spec: Spec, batch: Mapping[str, Tensor]) -> None:
    import peft

    base, fresh = language.base(spec), language.initial(spec, Key.root(7))
    saved = peft.get_peft_model_state_dict(base._peft, adapter_name="local")
    assert {n: w.shape for n, w in fresh.items()} == {n: w.shape for n, w in saved.items()}
    bounds = {name: 1 / leaf.shape[1] ** 0.5 for name, leaf in fresh.items() if "lora_A" in name}
    assert all(0.8 * bound < fresh[name].abs().max() <= bound for name, bound in bounds.items())
    plain = language.answer_logits(spec, {}, batch)
    assert language.answer_logits(spec, {"global": fresh}, batch).equal(plain)
    assert tree.equal(fresh, language.initial(spec, Key.root(7)))
    assert not tree.equal(fresh, language.initial(spec, Key.root(8)))


def test_dropout_is_on_in_training_only(spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]) -> None:
    one = {"global": both["global"]}
    with Key.root(1).scope():
        first = language.answer_logits(spec, one, batch, train=True)
    with Key.root(2).scope():
        second = language.answer_logits(spec, one, batch, train=True)
    assert not first.equal(second)
    assert language.answer_logits(spec, one, batch).equal(language.answer_logits(spec, one, batch))


def test_an_embedding_is_of_the_last_token_whatever_the_padding(
    spec: Spec, both: dict[str, Weights], batch: Mapping[str, Tensor]
) -> None:
    one, d = {"global": both["global"]}, 64
    together = language.embed(spec, one, batch["x"])
    alone = torch.cat([language.embed(spec, one, batch["x"][i : i + 1]) for i in range(6)])
    assert together.shape == (6, d)
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(together, language.embed(spec, {"local": both["local"]}, batch["x"]), atol=1e-2)
    base, x = language.base(spec), batch["x"][:1]
    with torch.no_grad(), base.bound(one) as model:
        hidden = model(input_ids=x[:, (x[0] == 0).sum() :], output_hidden_states=True).hidden_states[-1]
    assert torch.allclose(together[:1], hidden[:, -1], atol=1e-5)


def test_smollm2_has_460_800_trainable_weights() -> None:
    """r = 8 on q (576 to 576) and v (576 to 192) in 30 layers: 30 · 8 · (576 + 576 + 576 + 192); no weight is made."""
    config = transformers.LlamaConfig(
        hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, vocab_size=8
    )
    with torch.device("meta"):
        base = language.Base(transformers.LlamaForCausalLM(config), Adapted("smollm2"))
    assert sum(shape.numel() for shape in base.shapes.values()) == 460_800


def test_a_model_without_the_layers_says_which_it_has(tiny_lm: Path) -> None:
    with pytest.raises(InputError, match=r"no linear layer called 'query' \(targets\); it has q_proj, k_proj, v_proj,"):
        models.check(Spec(f"lm:{tiny_lm}(targets='q_proj,query')", (8,), 2))


@pytest.mark.parametrize("content", ['{"model_type": "nonsense"}', '{"model_type":'])
def test_a_configuration_that_says_nothing_is_refused(content: str, tmp_path: Path, tiny_lm: Path) -> None:
    folder = shutil.copytree(tiny_lm, tmp_path / "wrong")
    (folder / "config.json").write_text(content)
    with pytest.raises(InputError, match=rf"lm:{folder} cannot be loaded: "):
        language.writes(Adapted(str(folder)))


def written(folder: Path, model: Any, tiny_lm: Path) -> Path:
    """`folder` with a model, and the tokeniser of another."""
    model.save_pretrained(folder)
    transformers.AutoTokenizer.from_pretrained(tiny_lm).save_pretrained(folder)
    return folder


@pytest.fixture
def encoder(tmp_path: Path, tiny_lm: Path) -> Spec:
    config = transformers.BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with Key.root(0).scope():
        folder = written(tmp_path, transformers.BertModel(config), tiny_lm)
    return Spec(f"lm:{folder}(targets='query,value')", (8,), 2)


def test_layers_of_gpt2_carry_adapters_too(tmp_path: Path, tiny_lm: Path, batch: Mapping[str, Tensor]) -> None:
    """Its layers keep their weights transposed, and queries, keys and values in one."""
    with Key.root(0).scope():
        small = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=200, n_embd=16, n_layer=1, n_head=2))
    spec = Spec(f"lm:{written(tmp_path, small, tiny_lm)}(r=2, targets='c_attn')", (8,), 2)
    assert language.parameters(spec) == 2 * (16 + 48)
    both = {name: noisy(spec, i) for i, name in enumerate(language.NAMES)}
    together = language.answer_logits(spec, both, batch, A)
    alone = [language.answer_logits(spec, {name: both[name]}, batch) for name in language.NAMES]
    assert torch.allclose(together[0], alone[0][0], atol=1e-6)
    assert torch.allclose(together[-1], alone[1][-1], atol=1e-6)
    assert not torch.allclose(together[-1], alone[0][-1], atol=1e-3)


def test_a_method_that_trains_what_writes_refuses_what_only_reads(encoder: Spec, eight: Path) -> None:
    given = federation(str(eight), partition="site", models=[encoder.name])
    with pytest.raises(InputError, match=r"fedit trains a model that writes answers, and lm:\S+ only reads"):
        api.prepare("fedit", given)


def test_an_encoder_embeds_by_the_mean_and_writes_nothing(encoder: Spec) -> None:
    spec = encoder
    adapter = {"global": noisy(spec, 0)}
    x = language.tokens_of(spec).prompts(["how is the fox ?", "say fox ."], 64)
    alone = torch.cat([language.embed(spec, adapter, x[i : i + 1]) for i in range(2)])
    assert torch.allclose(language.embed(spec, adapter, x), alone, atol=1e-5)
    with torch.no_grad(), language.base(spec).bound(adapter) as model:
        hidden = model(input_ids=x[:1]).last_hidden_state  # of the longer row, which has no padding
    assert torch.allclose(alone[0], hidden[0].mean(0), atol=1e-5)
    assert alone.shape == (2, 16)
    with pytest.raises(InputError, match="writes no answers"):
        language.generate(spec, adapter, x, tokens=2)


def test_half_precision_is_for_the_frozen_weights(tiny_lm: Path, batch: Mapping[str, Tensor]) -> None:
    spec = Spec(f"lm:{tiny_lm}(r=2, dtype='bfloat16')", (8,), 2)
    weights = noisy(spec, 0)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert language.base(spec).model.lm_head.weight.dtype == torch.bfloat16
    assert torch.isfinite(language.answer_logits(spec, {"global": weights}, batch)).all()
