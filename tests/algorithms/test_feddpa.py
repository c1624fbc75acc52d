"""FedDPA, step by step: what trains beside what, a(x) by hand, both readings of each ambiguity, what travels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from speaking import INIT, KEY, arrivals, close, job, noisy, prepared, stepped

from unalike import api, tree
from unalike.adapters import Explains
from unalike.algorithms import feddpa
from unalike.check import check_algorithm
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.models import language
from unalike.pretrained import neutral


@pytest.fixture(scope="module")
def asked(asked: Federation, tiny_lm: Path) -> Federation:  # type: ignore[misc]
    """The same clients without dropout."""
    return federation(asked.source, partition=asked.partition, models=[f"lm:{tiny_lm}(r=2, dropout=0)"])


def trained(method: Any, asked: Federation, client: int = 0) -> Any:
    """A visit whose client has a local adapter, and whose server has trained."""
    return job(method, asked, client, down={"adapter": noisy(method, 1)}, adapter=noisy(method, 2))


def ready(method: Any, it: Any) -> Any:
    return method.prepare(it.info, it.down, it.state, it.data, KEY)


# Training ------------------------------------------------------------------------------------------------------------


def test_t_trains_the_global_adapter_alone_and_then_the_local_one_beside_it(asked: Federation) -> None:
    """A_g,k: a step at a = 0 from what came; A_l,k: a step at a = ½ beside A_g,k, not beside what came."""
    method = prepared("feddpa", asked)
    it = trained(method, asked)
    update = method.client_update(it)
    common = stepped(method, it.data, {"global": it.down["adapter"]})
    assert close(update.up["adapter"], common)
    beside = {"global": update.up["adapter"]}
    assert close(update.state["adapter"], stepped(method, it.data, {"local": it.state["adapter"]}, beside, 0.5))
    received = {"global": it.down["adapter"]}
    assert not close(update.state["adapter"], stepped(method, it.data, {"local": it.state["adapter"]}, received, 0.5))
    assert update.weight == 12


def test_the_authors_order_trains_the_local_adapter_beside_what_came(asked: Federation) -> None:
    method = prepared("feddpa", asked, order="local_first")
    it = trained(method, asked)
    first = method.client_update(it)
    assert tree.equal(first.state, it.state), "untrained in round 1"
    it = job(method, asked, round=2, **it.state, down=it.down)
    update = method.client_update(it)
    beside = {"global": it.down["adapter"]}
    assert close(update.state["adapter"], stepped(method, it.data, {"local": it.state["adapter"]}, beside, 0.5))
    assert tree.equal(update.up, first.up)


def test_the_local_adapter_starts_fresh_and_each_clients_own(asked: Federation) -> None:
    method = prepared("feddpa", asked, lr=1e-12)
    states = [method.client_update(job(method, asked, k)).state["adapter"] for k in (0, 1)]
    for state in states:
        assert all(w.abs().max() < 1e-9 for name, w in state.items() if "lora_B" in name)
    assert not tree.equal(*states)
    assert method.init_client(asked.clients[0], INIT) == {}


def test_f_trains_the_global_adapter_only_and_tunes_a_copy_of_it_in_the_end(asked: Federation) -> None:
    method = prepared("feddpa", asked, variant="F", rounds=3, fraction=0.25)
    it = job(method, asked, round=3, down={"adapter": noisy(method, 1)})
    update = method.client_update(it)
    assert update.state == {}
    assert close(update.up["adapter"], stepped(method, it.data, {"global": it.down["adapter"]}))
    last = method.client_update(job(method, asked, round=4, down=it.down))
    assert last.up == {}
    assert close(last.state["adapter"], stepped(method, it.data, {"local": it.down["adapter"]}))


def test_fs_last_round_is_for_all_and_changes_nothing_at_the_server(asked: Federation) -> None:
    method = prepared("feddpa", asked, variant="F", rounds=3, fraction=0.25)
    server = method.init_server(INIT)
    chosen = [len(method.select(server, asked.clients, round, KEY)) for round in (1, 3, 4)]
    assert chosen == [2, 2, 8]
    assert [method.done(server, round) for round in (3, 4)] == [False, True]
    assert method.aggregate(server, arrivals(asked, ({}, 3.0)), 4, KEY) is server
    assert prepared("feddpa", asked, rounds=3).done(server, 3)


def test_aggregation_is_the_mean_weighted_by_samples(asked: Federation) -> None:
    """(3 · 1 + 1 · 5) / 4 = 2, of A and of B by themselves."""
    method = prepared("feddpa", asked)
    of = {v: {"adapter": {n: torch.full_like(w, v) for n, w in noisy(method, 1).items()}} for v in (1.0, 5.0)}
    found = method.aggregate({}, arrivals(asked, (of[1.0], 3.0), (of[5.0], 1.0)), 2, KEY)
    assert all((w == 2).all() for w in found["adapter"].values())


# Inference -----------------------------------------------------------------------------------------------------------


def test_similarities_by_hand() -> None:
    """(3, 4, 0) against (4, 3, 0) and (−3, −4, 0). Cosine 24/25 and −1; L2 1 / (1 + √2 / √3) and 1 / (1 + 10 / √3);
    Pearson of deviations (2, 5, −7) / 3 and (5, 2, −7) / 3: 69/78, and −1."""
    e, others = torch.tensor([[3.0, 4.0, 0.0]]), torch.tensor([[[4.0, 3.0, 0.0], [-3.0, -4.0, 0.0]]])
    assert feddpa.similarity("cosine", e, others)[0].tolist() == pytest.approx([0.96, -1.0])
    root = 3**0.5
    expected = [1 / (1 + 2**0.5 / root), 1 / (1 + 10 / root)]
    assert feddpa.similarity("l2", e, others)[0].tolist() == pytest.approx(expected)
    assert feddpa.similarity("pearson", e, others)[0].tolist() == pytest.approx([69 / 78, -1.0])


@pytest.mark.parametrize("kind", ["cosine", "l2", "pearson"])
def test_a_is_lambda_times_the_mean_similarity_to_s_training_rows(kind: str, asked: Federation) -> None:
    method = prepared("feddpa", asked, lam=0.8, anchors=3, similarity=kind)
    it = trained(method, asked)
    made, x = ready(method, it), asked.data(1, "test")["x"]
    a, rows, alike = method.weights(made, x)
    assert rows.shape == alike.shape == (4, 3)
    assert len({*rows[0].tolist()}) == 3
    one = {"global": it.down["adapter"]}
    e, anchors = (language.embed(method.shared, one, tokens) for tokens in (x, it.data["x"][rows[0]]))
    expected = feddpa.similarity(kind, e, anchors.expand(4, 3, 64))
    assert torch.allclose(alike, expected, atol=1e-5)
    assert torch.allclose(a, (0.8 * expected.mean(1)).clamp(0, 0.8), atol=1e-5)


def test_a_is_within_0_and_lambda(asked: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    method = prepared("feddpa", asked, lam=0.5)
    made, x = ready(method, trained(method, asked)), asked.data(1, "test")["x"]
    for alike, a in ((-1.0, 0.0), (1.5, 0.5)):
        monkeypatch.setattr(feddpa, "similarity", lambda kind, e, others, s=alike: torch.full((len(e), 5), s))
        assert method.weights(made, x)[0].tolist() == [a] * 4


def test_switch_1_a_weighs_the_local_adapter_or_the_global_one(asked: Federation) -> None:
    x = asked.data(0, "test")["x"]
    found = {}
    for weighs in ("local", "global"):
        method = prepared("feddpa", asked, weighs=weighs)
        it = trained(method, asked)
        made = ready(method, it)
        found[weighs] = method.weights(made, x)[0]
        both = {"global": it.down["adapter"], "local": it.state["adapter"]}
        answers = language.generate(method.shared, both, x, found[weighs], tokens=2)
        assert method.predict(made, {"x": x}).equal(answers)
    assert torch.allclose(found["local"], 1 - found["global"])


def test_switch_2_embeddings_are_by_the_global_adapter_or_by_the_local_one(asked: Federation) -> None:
    x = asked.data(0, "test")["x"]
    for embedding, name in (("global", "down"), ("local", "state")):
        method = prepared("feddpa", asked, embedding=embedding)
        it = trained(method, asked)
        made = ready(method, it)
        rows, one = method.weights(made, x)[1][0], {"global": getattr(it, name)["adapter"]}
        embedded = language.embed(method.shared, one, it.data["x"][rows])
        assert torch.allclose(made["down"]["anchors"], embedded, atol=1e-5)


def test_centred_subtracts_the_mean_embedding_of_neutral_instructions(asked: Federation, tiny_lm: Path) -> None:
    plain, centred = (prepared("feddpa", asked, contrast=contrast) for contrast in ("none", "centred"))
    it, x = trained(plain, asked), asked.data(1, "test")["x"]
    one = {"global": it.down["adapter"]}
    texts = language.tokens_of(plain.shared).prompts(neutral(str(tiny_lm)), 512)
    centre = language.embed(plain.shared, one, texts).mean(0)
    rows = centred.weights(ready(centred, it), x)[1][0]
    e, anchors = (language.embed(plain.shared, one, tokens) - centre for tokens in (x, it.data["x"][rows]))
    expected = feddpa.similarity("cosine", e, anchors.expand(4, 5, 64))
    found = centred.weights(ready(centred, it), x)[2]
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(found, plain.weights(ready(plain, it), x)[2], atol=1e-2)


def test_an_encoder_may_embed_in_the_place_of_the_language_model(asked: Federation, tiny_lm: Path) -> None:
    """Of the instructions as they are, whatever the adapters."""
    encoder = f"lm:{tiny_lm}(length=64, targets='none_of_its_layers')"
    method = prepared("feddpa", asked, encoder=encoder)
    it, x = trained(method, asked), asked.data(1, "test")["x"]
    rows, alike = method.weights(ready(method, it), x)[1:]
    texts = [language.tokens_of(method.shared).instructions(part) for part in (x, it.data["x"][rows[0]])]
    e, anchors = (language.embed_texts(encoder, each, x.device) for each in texts)
    assert torch.allclose(alike, feddpa.similarity("cosine", e, anchors.expand(4, 5, 64)), atol=1e-5)
    other = job(method, asked, down={"adapter": noisy(method, 5)}, adapter=noisy(method, 6))
    assert torch.allclose(method.weights(ready(method, other), x)[2], alike, atol=1e-5)


def test_an_encoder_is_found_from_anywhere(asked: Federation, tiny_lm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_lm.parent)
    made = api.prepare("feddpa", asked, encoder=f"lm:{tiny_lm.name}")
    assert made.experiment.parameters["encoder"] == f"lm:{tiny_lm}"
    with pytest.raises(InputError, match="no language model"):
        api.prepare("feddpa", asked, encoder="minilm")


def test_fresh_anchors_are_an_instances_own_whatever_stands_beside_it(asked: Federation) -> None:
    method = prepared("feddpa", asked, anchors_drawn="fresh", anchors=4)
    made, x = ready(method, trained(method, asked)), asked.data(1, "test")["x"]
    rows = method.weights(made, x)[1]
    assert len({tuple(row) for row in rows.tolist()}) > 1
    padded = torch.nn.functional.pad(x[1:2], (3, 0))
    assert method.weights(made, padded)[1].equal(rows[1:2])
    assert len(made["down"]["anchors"]) == 12


@pytest.mark.parametrize(("weighting", "a"), [("global", 0.0), ("local", 1.0), ("fixed", 0.3)])
def test_weights_may_be_fixed(weighting: str, a: float, asked: Federation) -> None:
    method = prepared("feddpa", asked, weighting=weighting, fixed_weight=0.3)
    it = trained(method, asked)
    made, x = ready(method, it), asked.data(0, "test")["x"]
    assert method.weights(made, x)[0].tolist() == pytest.approx([a] * 4)
    assert "anchors" not in made["down"]
    both = {"global": it.down["adapter"], "local": it.state["adapter"]}
    expected = language.generate(method.shared, both, x, torch.full((4,), a), tokens=2)
    assert method.predict(made, {"x": x}).equal(expected)


def test_a_client_without_a_local_adapter_answers_with_the_global_one(asked: Federation) -> None:
    for keys in ({}, {"weighs": "global"}, {"weighting": "local"}):
        method = prepared("feddpa", asked, **keys)
        it = job(method, asked, down={"adapter": noisy(method, 1)})
        x = asked.data(0, "test")["x"]
        expected = language.generate(method.shared, {"global": it.down["adapter"]}, x, tokens=2)
        assert method.predict(ready(method, it), {"x": x}).equal(expected)


def test_what_is_exported_needs_no_training_rows(asked: Federation) -> None:
    """`prepare` with what it has put into "down", and no rows, predicts the same."""
    for keys in ({"contrast": "centred"}, {"anchors_drawn": "fresh"}):
        method = prepared("feddpa", asked, **keys)
        it, x = trained(method, asked), asked.data(1, "test")["x"]
        made = ready(method, it)
        none = {"x": it.data["x"][:0], "y": it.data["y"][:0]}
        again = method.prepare(it.info, made["down"], it.state, none, INIT)
        assert method.weights(again, x)[0].equal(method.weights(made, x)[0])


def test_it_says_why(asked: Federation) -> None:
    method = prepared("feddpa", asked)
    it, batch = trained(method, asked), asked.data(1, "test")
    made = ready(method, it)
    assert isinstance(method, Explains)
    told: Mapping[str, Any] = method.explain(made, batch)
    assert told["weight"].equal(method.weights(made, batch["x"])[0])
    assert told["answers"].keys() == {"global", "local", "blend"}
    assert told["answers"]["blend"].equal(method.predict(made, batch))
    alone = language.generate(method.shared, {"global": it.state["adapter"]}, batch["x"], tokens=2)
    assert told["answers"]["local"].equal(alone)


# What travels, and the contract --------------------------------------------------------------------------------------


def test_one_adapter_travels_each_way_and_nothing_of_the_base_is_kept(asked: Federation) -> None:
    method = prepared("feddpa", asked)
    it = job(method, asked)
    update = method.client_update(it)
    one = 4 * language.parameters(method.shared)
    assert tree.nbytes(it.down) == tree.nbytes(update.up) == tree.nbytes(update.state) == one
    assert all(".lora_" in name for name in tree.flatten({"up": update.up, "state": update.state}))


def test_f_keeps_the_contract(asked: Federation) -> None:
    check_algorithm(feddpa.FedDPA(variant="F", max_new_tokens=2, contrast="centred", anchors_drawn="fresh"), asked)


def test_fs_last_round_resumes(asked: Federation, tmp_path: Path) -> None:
    """Stopped after the last federated round, it ends in the bits of a run that nobody stopped."""
    keys: dict[str, Any] = {"variant": "F", "rounds": 2, "local_epochs": 1, "max_new_tokens": 2, "engine": "serial"}
    whole = api.run("feddpa", asked, out=tmp_path / "whole", report=False, **keys).summary

    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run("feddpa", asked, out=tmp_path / "part", report=False, listeners=[stop], **keys)
    found = api.resume(tmp_path / "part", asked, report=False).summary
    assert found["state_sha256"] == whole["state_sha256"]
    assert found["rounds"] == 3
    assert found["bytes"]["up"] == 2 * 8 * 4 * language.parameters(next(iter(asked.models.values())))
