"""Instructions: each way in, each wrong input with the words that name it, and how they are divided."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from refusals import refused

from unalike.data import text
from unalike.data.federation import Federation, federation
from unalike.data.preprocess import Preprocess
from unalike.data.sources import load
from unalike.pretrained import tokeniser

ROWS = [
    {"instruction": "Is it so?", "output": "yes", "task": "a", "category": "none"},
    {"instruction": "Wie heißt du?", "output": "Zoë", "task": "b"},
    {"instruction": "And now?\n\nOPTIONS:\n- yes\n- no", "output": "yes", "task": "a"},
]


def lines(*rows: Any) -> str:
    return "\n".join(map(json.dumps, rows))


def write(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def test_json_jsonl_and_csv_give_the_same_rows(tmp_path: Path) -> None:
    one_line = [{**row, "instruction": row["instruction"].replace("\n", " ")} for row in ROWS]
    table = "instruction,output,task\n" + "\n".join(f"{r['instruction']},{r['output']},{r['task']}" for r in one_line)
    names = [
        write(tmp_path / "r.json", json.dumps(one_line)),
        write(tmp_path / "r.jsonl", lines(*one_line) + "\n\n"),
        write(tmp_path / "r.csv", table),
    ]
    for source in map(load, names):
        assert source.kind == "text"
        assert text.unpacked(source.x) == [row["instruction"] for row in one_line]
        assert [source.classes[i] for i in source.y] == ["yes", "Zoë", "yes"]
        assert source.sites is not None
        assert source.sites.tolist() == ["a", "b", "a"]
        assert source.test is None


def test_texts_come_back_from_their_bytes() -> None:
    texts = ["", "a", "ß\n漢字 ", "x" * 300]
    assert text.unpacked(text.packed(texts)) == texts
    assert text.packed(texts).dtype == np.uint8


def test_a_folder_of_tasks_has_an_official_test_set(tmp_path: Path) -> None:
    for task, part, count in (("tense", "train", 3), ("tense", "test", 2), ("navigate", "train", 4)):
        rows = [{"instruction": f"{task} {i}", "output": "x"} for i in range(count)]
        write(tmp_path / f"{task}.{part}.json", json.dumps(rows))
    source = load(str(tmp_path))
    assert source.sites is not None
    assert source.test is not None
    counts = {task: int((source.sites == task).sum()) for task in ("tense", "navigate")}
    assert counts == {"tense": 5, "navigate": 4}
    assert source.test.sum() == 2
    assert source.sites[source.test].tolist() == ["tense"] * 2


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("r.jsonl", lines(ROWS[0], {"instruction": "x"}), "r.jsonl: line 2 has no field 'output'; it has instruction"),
        ("r.jsonl", lines(ROWS[0]) + "\n\n{", "r.jsonl: line 3 is not JSON"),
        ("r.json", json.dumps([ROWS[0], {"instruction": " ", "output": "x"}]), "row 2 has no text in the field"),
        ("r.json", json.dumps([{"instruction": "x", "output": 3}]), "r.json: row 1 has no text in the field 'output'"),
        ("r.json", json.dumps({"no": "list"}), "r.json must be a list of rows with the fields instruction and output"),
        ("r.json", json.dumps([3]), "row 1 is no object"),
        ("r.json", "[]", "holds no row"),
        ("r.jsonl", lines({"instruction": "a\0", "output": "b"}), "line 1: the field 'instruction' holds a zero byte"),
        ("r.csv", "instruction,output\nx,\n", "r.csv: row 1 has no text in the field 'output'"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(file: str, content: str, said: str, tmp_path: Path) -> None:
    refused(lambda: load(write(tmp_path / file, content)), said)


def test_options_of_other_data_are_refused(tmp_path: Path) -> None:
    name = write(tmp_path / "r.jsonl", lines(*ROWS))
    refused(lambda: load(name, impute="mean"), "--impute does not apply to texts")
    refused(lambda: load(f"{name}+digits"), "texts are joined by putting their files into one folder")


def test_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    refused(lambda: load("hub:owner/set"), "HF_HUB_OFFLINE is set")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    parts = {"train": ROWS[:2], "test": ROWS[2:], "other": ROWS}
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: parts))
    source = load("hub:owner/set")
    assert source.name == "owner/set"
    assert source.test is not None
    assert source.test.tolist() == [False, False, True]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda name: {"train": [{"a": "b"}]}))
    refused(lambda: load("hub:owner/set"), "hub:owner/set: train, row 1 has no field 'instruction'; it has a")


def test_texts_need_a_language_model_and_it_needs_texts(tmp_path: Path, tiny_lm: Path) -> None:
    name = write(tmp_path / "r.jsonl", lines(*ROWS))
    refused(lambda: federation(name), "holds texts: say which language model", "--models lm:")
    refused(lambda: federation(name, models=["cnn-5"]), "model cnn-5 takes no texts; a language model lm:... does")
    refused(lambda: federation("digits", models=[f"lm:{tiny_lm}"]), "digits is of kind image", "takes texts only")


def test_a_client_a_task(asked: Federation) -> None:
    assert asked.source.sites is not None
    assert asked.source.test is not None
    for client, name in enumerate(asked.partition.names):
        for part in ("train", "validation", "test"):
            rows = asked.rows(client, part)
            assert {*asked.source.sites[rows].tolist()} == {name}
            assert (asked.source.test[rows] == (part == "test")).all()
    assert [len(asked.rows(0, part)) for part in ("train", "validation", "test")] == [12, 4, 4]


@pytest.fixture(scope="module")
def again(asked: Federation, tiny_lm: Path) -> Any:
    def divided(partition: str, clients: int | None = None) -> Federation:
        return federation(
            asked.source, partition=partition, clients=clients, models=[f"lm:{tiny_lm}"], min_per_client=4
        )

    return divided


def test_rows_of_clients_that_take_no_part_are_tokens_too(asked: Federation, tiny_lm: Path) -> None:
    found = federation(asked.source, partition="site", models=[f"lm:{tiny_lm}"], unseen=2)
    for by in (None, 1):
        assert found.data(7, "test", by=by)["x"].equal(asked.data(7, "test")["x"])


def test_several_clients_a_task_share_its_test_rows_whatever_the_answers(again: Any, asked: Federation) -> None:
    """Many test answers occur in no training row: rows are dealt by task, not by answer."""
    found = again("site:iid", 16)
    assert found.source.sites is not None
    assert sum(len(found.rows(k, "test")) for k in range(16)) == asked.source.test.sum()  # type: ignore[union-attr]
    for k, name in enumerate(found.partition.names):
        assert {*found.source.sites[found.partition.of(k)].tolist()} == {name.partition("-")[0]}


def test_tasks_are_what_random_schemes_divide(again: Any) -> None:
    found = again("pathological:2", 4)
    assert found.source.sites is not None
    assert [len({*found.source.sites[found.rows(k, "train")].tolist()}) for k in range(4)] == [2] * 4
    about = found.describe()
    assert about["classes"] == sorted({*found.source.sites.tolist()})
    assert [sum(count > 0 for count in client["labels"]) for client in about["clients"]] == [2] * 4


def test_a_client_has_tokens_wherever_it_is(asked: Federation, tiny_lm: Path, tmp_path: Path) -> None:
    words = tokeniser(str(tiny_lm))
    data = asked.data(2, "test")
    rows = asked.rows(2, "test")
    assert words.instructions(data["x"]) == text.unpacked(asked.source.x[rows])
    assert words.texts(data["y"]) == [asked.source.classes[i] for i in asked.source.y[rows]]
    asked.save(tmp_path / "saved")
    for other in (Federation.load(tmp_path / "saved"), asked.only([2])):
        same: Mapping[str, Any] = other.data(2, "test")
        assert all(same[name].equal(data[name]) for name in ("x", "y"))
    loaded = Federation.load(tmp_path / "saved")
    assert loaded.task == asked.task
    scale = Preprocess.restore(json.loads(json.dumps(asked.preprocess(2).describe())))
    assert (scale(asked.source.x[rows]) == data["x"].numpy()).all()
