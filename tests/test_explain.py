"""A run on texts from the command line to its end: run, explain, export, predict."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from unalike import cli, personal, runs, tree
from unalike.data.text import packed, unpacked
from unalike.errors import InputError

ASKED = "the metro office wants to know how a fox is ."


@pytest.fixture(scope="module")
def finished(eight: Path, tiny_lm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds of FedDPA, started as a user does."""
    folder = tmp_path_factory.mktemp("runs") / "feddpa"
    options = {
        "--data": eight,
        "--partition": "site",
        "--models": f"lm:{tiny_lm}(r=2)",
        "--rounds": 2,
        "--local-epochs": 1,
        "--max-new-tokens": 2,
        "--lr": 0.01,
        "--contrast": "centred",
        "--engine": "serial",
        "--out": folder,
    }
    words = ["run", "feddpa", "--quiet", *(str(word) for pair in options.items() for word in pair)]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 0
    return folder


def test_a_run_leaves_accuracy_and_rouge_and_a_page(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["accuracy"]["per_client"].keys() == summary["rouge1"]["per_client"].keys() == set("01234567")
    assert summary["pooled"]["rouge1"] == pytest.approx(summary["rouge1"]["weighted_mean"])
    assert "balanced_accuracy" not in summary
    assert (finished / "report.html").is_file()


def test_a_run_is_not_reopened_with_another_model(finished: Path, tiny_lm: Path) -> None:
    about = json.loads((finished / "manifest.json").read_text())
    assert {"transformers", "peft", "tokenizers", "rouge-score"} <= about["versions"].keys()
    assert about["code_sha256"].keys() == {"lm:tiny(r=2)"}
    config = tiny_lm / "config.json"
    before = config.read_bytes()
    config.write_bytes(before + b" ")
    try:
        with pytest.raises(InputError, match=r"lm:tiny\(r=2\) has changed since"):
            runs.reopen(finished)
    finally:
        config.write_bytes(before)


def test_explain_says_weight_anchors_and_answers(finished: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("explain", finished, "--client", 6, "--input", ASKED, "--json", "--last")
    assert code == 0
    told = json.loads(out)
    prepared = runs.reopen(finished)
    own = unpacked(prepared.federation.source.x[prepared.federation.rows(6, "train")])
    assert (told["client"], told["name"], told["round"], told["instruction"]) == (6, "urban", 2, ASKED)
    assert len(told["anchors"]) == 5
    assert all(anchor["instruction"] in own for anchor in told["anchors"])
    mean = sum(anchor["similarity"] for anchor in told["anchors"]) / 5
    assert told["weight"] == pytest.approx(min(max(0.5 * mean, 0.0), 0.5), abs=1e-5)
    assert told["answers"].keys() == {"global", "local", "blend"}
    model = personal.extract(finished, 6, last=True)
    assert model.answers([ASKED]) == [told["answers"]["blend"]]


def test_explain_in_words(finished: Path, call: Callable[..., Any]) -> None:
    code, out, _ = call("explain", finished, "--client", 6, "--input", ASKED, "--last")
    first, second, *rest = out.splitlines()
    assert code == 0
    assert first.startswith("client 6 (urban), round 2: its own adapter counts 0.")
    assert second.startswith("held against 5 of its training rows, in the mean ")
    assert [line.split()[0] for line in rest[5:]] == ["global", "local", "blend"]


def test_what_explain_refuses(finished: Path, asked: Any, tmp_path: Path, call: Callable[..., Any]) -> None:
    from unalike import api

    code, _, said = call("explain", finished, "--client", 8, "--input", "x")
    assert (code, "has no client 8" in said) == (2, True)
    keys: dict[str, Any] = {"rounds": 1, "local_epochs": 1, "max_new_tokens": 1, "engine": "serial", "report": False}
    api.run("fedit", asked, out=tmp_path / "fedit", **keys)
    code, _, said = call("explain", tmp_path / "fedit", "--client", 0, "--input", "x")
    assert code == 2
    assert "was run with fedit, which blends nothing: feddpa does" in said


def test_an_exported_model_answers_without_the_run_and_holds_no_answer_of_others(
    finished: Path, tmp_path: Path, call: Callable[..., Any]
) -> None:
    path = tmp_path / "six.safetensors"
    assert call("export", finished, "--client", 6, "--out", path, "--last")[0] == 0
    model, before = personal.load(path), personal.extract(finished, 6, last=True)
    asked = [ASKED, "metro desk : how is the lamp ?"]
    assert model.answers(asked) == before.answers(asked)
    x = torch.from_numpy(model.preprocess(packed(asked)))
    ready = [each.algorithm.weights(each.ready_on("cpu"), x) for each in (model, before)]
    assert all(a.equal(b) for a, b in zip(*ready, strict=True))
    with safe_open(path, framework="pt") as file:
        about, names = file.metadata()["unalike"], set(file.keys())
    assert json.loads(about)["preprocess"]["classes"] == []
    told = {"anchors", "rows", "draw", "centre"}
    assert names == {f"{part}/adapter/{n}" for part in ("down", "state") for n in model.state["adapter"]} | {
        f"down/{name}" for name in told
    }
    assert tree.nbytes({"state": model.state}) < path.stat().st_size < 100_000, "the frozen model is no part of it"


def test_predict_answers_the_lines_of_a_file(finished: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    (tmp_path / "asked.txt").write_text(f"{ASKED}\n\nsay fox .\n")
    (tmp_path / "asked.jsonl").write_text(f'{{"instruction": "{ASKED}"}}\n{{"instruction": "say fox ."}}\n')
    found = []
    for name in ("asked.txt", "asked.jsonl"):
        code, out, _ = call("predict", finished, "--client", 6, "--input", tmp_path / name)
        assert code == 0
        found.append([json.loads(line) for line in out.splitlines()])
    assert found[0] == found[1]
    assert [row["instruction"] for row in found[0]] == [ASKED, "say fox ."]
    assert found[0][0]["answer"] == personal.extract(finished, 6).answers([ASKED])[0]
    (tmp_path / "bad.jsonl").write_text('{"instruction": "x"}\n{"question": "y"}\n')
    code, _, said = call("predict", finished, "--client", 6, "--input", tmp_path / "bad.jsonl")
    assert (code, "bad.jsonl: line 2 has no text in the field 'instruction'" in said) == (2, True)


def test_a_model_of_texts_has_no_logits_and_no_onnx(finished: Path, tmp_path: Path) -> None:
    model = personal.extract(finished, 0)
    with pytest.raises(InputError, match="it has `answers`"):
        model.predict(packed([ASKED]))
    with pytest.raises(InputError, match="ONNX has no place for it"):
        model.save_onnx(tmp_path / "x.onnx")
    with pytest.raises(InputError, match="there is no instruction"):
        model.answers([])


def test_a_site_is_handed_its_own_answers_only(asked: Any) -> None:
    mine = asked.only([3]).source
    own = {asked.source.classes[i] for i in asked.source.y[asked.partition.of(3)]}
    assert set(mine.classes) == own < set(asked.source.classes)
