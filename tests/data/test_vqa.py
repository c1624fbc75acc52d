"""Questions about images: the folder they come from, wrong rows with the words that name them, what models get."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from refusals import refused

from unalike import config, runs
from unalike.data import Source, digest, sources, vqa
from unalike.data.federation import Federation, federation
from unalike.multimodal import Foundation, Reader, reader

ROWS = [
    {"image": "a.png", "question": "what colour is the square ?", "answer": "red"},
    {"image": "b.png", "question": "is there a square ?", "answer": "yes", "site": "north"},
    {"image": "a.png", "question": "wie heißt das ?", "answer": "blue"},
    {"question": "is blue a colour ?", "answer": "yes"},
    {"image": "b.png", "answer": "gold"},
]
GROUPS: dict[str, Any] = {"group_column": "none"}


def write(folder: Path, name: str, rows: list[Any]) -> Path:
    for i, image in enumerate(("a.png", "b.png")):
        Image.new("RGB", (20, 10 + 10 * i), (40 * i, 0, 250)).save(folder / image)
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder


def load(name: str, **more: Any) -> Source:
    return sources.load(name, whole=False, **more)


def questioned(folder: Path, model: Path, **more: Any) -> Federation:
    rows = [{**row, "site": f"s{i % 2}"} for i in range(8) for row in ROWS[:3]]
    return federation(str(write(folder, "x.jsonl", rows)), models=[f"vl:{model}"], partition="site", **GROUPS, **more)


def test_a_folder_comes_back_row_by_row(tmp_path: Path) -> None:
    write(tmp_path, "south.train.jsonl", ROWS[:3])
    write(tmp_path, "east.test.jsonl", ROWS[3:])
    source = load(str(tmp_path))
    assert source.kind == "vqa"
    assert source.sites is not None
    assert source.test is not None
    assert source.images is not None
    assert source.sites.tolist() == ["east", "east", "south", "north", "south"]
    assert source.test.tolist() == [True, True, False, False, False]
    assert [source.classes[i] for i in source.y] == ["yes", "gold", "red", "yes", "blue"]
    assert vqa.questions(source.x) == ["is blue a colour ?", "", *(row["question"] for row in ROWS[:3])]
    assert source.images.shape == (2, 3, 20, 20)
    shown = [None if i < 0 else int(source.images[i, 0, 0, 0]) for i in vqa.numbers(source.x)]
    assert shown == [None, 40, 0, 40, 0]


def test_a_list_a_file_and_train_and_test_alone_are_read_too(tmp_path: Path) -> None:
    write(tmp_path, "x.jsonl", ROWS)
    (tmp_path / "train.json").write_text(json.dumps(ROWS))
    assert load(str(tmp_path / "x.jsonl")).fingerprint == replace(load(str(tmp_path / "train.json"))).fingerprint
    (tmp_path / "x.jsonl").rename(tmp_path / "test.jsonl")
    source = load(str(tmp_path))
    assert source.test is not None
    assert source.test.sum() == len(ROWS)


def test_another_image_is_another_fingerprint(tmp_path: Path) -> None:
    before = load(str(write(tmp_path, "x.jsonl", ROWS))).fingerprint
    Image.new("RGB", (20, 10), (1, 0, 250)).save(tmp_path / "a.png")
    assert load(str(tmp_path)).fingerprint != before


def test_rows_of_one_image_stay_in_one_part(tmp_path: Path, foundations: dict[str, Path]) -> None:
    rows = [{"image": f"{i // 2}.png", "question": "a square ?", "answer": ["yes", "no"][i % 2]} for i in range(40)]
    for i in range(20):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "x.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for group_column, apart in ((None, True), ("none", False)):
        found = federation(
            str(tmp_path), models=[f"vl:{foundations['vilt']}"], clients=2, partition="iid", group_column=group_column
        )
        number = vqa.numbers(found.source.x)
        parts = [{*number[found.rows(k, part)]} for part in ("train", "validation", "test") for k in (0, 1)]
        train, validation, test = (parts[2 * i] | parts[2 * i + 1] for i in range(3))
        assert (not (train & validation or train & test or validation & test)) == apart


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([ROWS[0], {"image": "a.png", "question": "x"}], "x.jsonl: line 2 has no text in the field 'answer'"),
        ([ROWS[0], {"answer": "x"}], "x.jsonl: line 2 has neither an image nor a question"),
        ([ROWS[0], {**ROWS[0], "answer": 3}], "x.jsonl: line 2: the field 'answer' is 3: it must be a text, in quotes"),
        ([ROWS[0], {**ROWS[0], "image": "c.png"}], "x.jsonl: line 2: "),
        ([ROWS[0], {**ROWS[0], "image": "c.png"}], "c.png is no readable image"),
        ([ROWS[0], {**ROWS[0], "image": "broken.png"}], "broken.png is no readable image"),
        ([ROWS[0], {**ROWS[0], "image": "../a.png"}], "line 2: the image ../a.png lies outside of"),
        ([ROWS[0], [3]], "x.jsonl: line 2 is no object"),
        ([ROWS[0], {**ROWS[0], "answer": "mauve"}], "line 2: the answer 'mauve' is not in"),
    ],
)
def test_what_is_wrong_with_a_row_is_said_with_its_place(rows: list[Any], said: str, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    (tmp_path / "x.answers.txt").write_text("red\nblue\nyes\n")
    refused(lambda: load(str(write(tmp_path, "x.jsonl", rows))), said)


def test_the_list_of_a_file_goes_before_the_list_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "answers.txt").write_text("nothing\n")
    refused(lambda: load(str(write(tmp_path, "x.jsonl", ROWS))), "'red' is not in", "answers.txt, which lists nothing")
    (tmp_path / "x.answers.txt").write_text("red\nblue\nyes\ngold\n")
    assert len(load(str(tmp_path)).y) == 5
    (tmp_path / "x.answers.txt").write_text("\n")
    refused(lambda: load(str(tmp_path)), "x.answers.txt lists no answer")


def test_options_of_other_data_are_refused(tmp_path: Path) -> None:
    name = str(write(tmp_path, "x.jsonl", ROWS))
    refused(lambda: load(name, impute="mean"), "--impute does not apply to a folder of questions")
    refused(lambda: load(name, group_column="patient"), "--group-column patient", "give none")
    refused(lambda: load(f"{name}+digits"), "texts are joined by putting their files into one folder, and so are")
    assert load(name, image_size=12).x.shape == load(name).x.shape


def test_models_and_data_go_together(tmp_path: Path, foundations: dict[str, Path], pictured: Federation) -> None:
    name, vilt = str(write(tmp_path, "x.jsonl", ROWS[:3] * 4)), f"vl:{foundations['vilt']}"
    refused(lambda: federation(name), "asks about images: say which model is to answer", "vl:tiny")
    refused(lambda: federation(name, models=["cnn-5"]), "model cnn-5 takes none; one named vl:... does")
    refused(lambda: federation("digits", models=[vilt]), "digits is of kind image", "takes questions about images only")
    refused(lambda: federation("digits", modalities="0:text"), "--modalities 0:text: digits is of kind image")
    refused(lambda: runs.prepare(config.resolve({"method": "fedavg"}), pictured), "holds questions about images: take")
    other = config.resolve({"method": "feddat", "data": "digits"})
    refused(lambda: runs.prepare(other), "feddat answers questions about images; digits holds images")


def test_a_batch_has_tokens_images_and_marks(tmp_path: Path, foundations: dict[str, Path]) -> None:
    source = vqa.sized(load(str(write(tmp_path, "x.jsonl", ROWS))), 32)
    read, answers = reader(str(foundations["vilt"])), np.array([0, 2, 3])  # blue, red, yes; not gold
    found = vqa.batch(read, source, np.arange(5), answers)
    assert read.texts(found["x"])[:2] == ["what colour is the square ?", "is there a square ?"]
    assert found["x"][4].unique().tolist() == [read.pad]
    assert found["y"].tolist() == [1, 2, 0, 2, -1]
    assert found["pictured"].tolist() == [True, True, True, False, True]
    assert found["image"].shape == (5, 3, 32, 32)
    assert found["image"].dtype == torch.uint8
    assert found["image"][3].sum() == 0
    assert found["image"][0, :, 5, 5].tolist() == [0, 0, 250]


@pytest.mark.parametrize(("kind", "has"), [("vilt", "text"), ("vilt", "image"), ("bert", "text"), ("vit", "image")])
def test_what_is_not_there_is_masked_and_never_fed(
    kind: str, has: str, tmp_path: Path, foundations: dict[str, Path]
) -> None:
    found = questioned(tmp_path, foundations[kind], modalities=f"0:{has}", min_per_client=1)
    read = reader(str(foundations[kind]))
    for part in ("train", "validation", "test"):
        batch = found.data(0, part)
        if has == "image":
            assert batch["x"].unique().tolist() == [read.pad]
        else:
            assert bool((batch["x"] != read.pad).any(1).all())
        assert ("image" in batch) == ("image" in read.modalities)
        if "image" in batch:
            assert batch["pictured"].unique().tolist() == [has == "image"]
            assert bool(batch["image"].any()) == (has == "image")


def test_each_client_has_its_own_answers_and_a_tier_for_them(pictured: Federation) -> None:
    counts = [len(pictured.answers(k)) for k in range(3)]
    assert [pictured.models[info.tier].classes for info in pictured.clients] == counts
    assert [info.tier for info in pictured.clients] == [f"vl:vilt, {n} answers" for n in counts]
    assert pictured.clients[2].modalities == ("text",)
    for k in range(3):
        named = [pictured.answers(k)[i] for i in pictured.data(k, "test")["y"]]
        assert named == [pictured.source.classes[i] for i in pictured.source.y[pictured.rows(k, "test")]]
    assert (pictured.data(1, "test", by=0)["y"] == -1).all()
    assert pictured.preprocess(1).classes == pictured.answers(1) == ("no", "yes")
    about = pictured.describe()["clients"]
    assert [client.get("modalities") for client in about] == [None, None, ["text"]]


def same(a: Federation, b: Federation, client: int) -> bool:
    parts = ("train", "validation", "test")
    pairs = [(a.data(client, part), b.data(client, part)) for part in parts]
    return all(one.keys() == two.keys() and all(one[n].equal(two[n]) for n in one) for one, two in pairs)


def test_a_share_and_a_saved_federation_have_the_same_bits(pictured: Federation, tmp_path: Path) -> None:
    pictured.save(tmp_path)
    loaded = Federation.load(tmp_path)
    for client in range(3):
        assert same(loaded, pictured, client)
        share = pictured.only([client])
        assert same(share, pictured, client)
        assert share.source.images is not None
        mine = pictured.source.x[pictured.partition.of(client)]
        assert len(share.source.images) == len({*vqa.numbers(mine)} - {-1})
        assert {*share.source.classes} == {*pictured.answers(client)}
    assert digest([loaded.source.images]) == digest([pictured.source.images])


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("7:text", "names client 7; the clients are 0 to 1"),
        ("0:sound", "'0:sound' is wrong: write CLIENT:WHAT"),
        ("text", "'text' is wrong: write CLIENT:WHAT"),
    ],
)
def test_wrong_modalities_are_refused(said: str, words: str, tmp_path: Path, foundations: dict[str, Path]) -> None:
    refused(lambda: questioned(tmp_path, foundations["vilt"], modalities=said), f"--modalities {said}", words)


def test_a_client_whose_modalities_its_model_does_not_take_is_refused(
    tmp_path: Path, foundations: dict[str, Path]
) -> None:
    call = lambda: questioned(tmp_path, foundations["bert"], modalities="1:image")  # noqa: E731
    refused(call, "client 1 has image only, its model vl:", "takes text only: change its modalities or its model")


def test_a_row_that_leaves_a_model_nothing_is_refused(tmp_path: Path, foundations: dict[str, Path]) -> None:
    write(tmp_path, "x.jsonl", [*ROWS[:3] * 5, ROWS[3]])
    call = lambda: federation(  # noqa: E731
        str(tmp_path), models=[f"vl:{foundations['vilt']}"], clients=1, partition="iid", **GROUPS, modalities="0:image"
    )
    refused(call, "x.jsonl: line 16 has no image, and client 0 with the model vl:", "leave the row out, or give it one")


def test_a_question_that_is_too_long_is_named(tmp_path: Path, foundations: dict[str, Path]) -> None:
    write(tmp_path, "x.jsonl", [*ROWS[:3] * 5, {**ROWS[0], "question": "square " * 15}])
    call = lambda: federation(str(tmp_path), models=[f"vl:{foundations['vilt']}"], clients=1, partition="iid", **GROUPS)  # noqa: E731
    refused(call, "x.jsonl: line 16: the question has 17 tokens, and vl:", "takes 16: shorten it")


def test_models_that_see_unlike_sizes_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, foundations: dict[str, Path]
) -> None:
    def other(model: str) -> Reader:
        found = reader(model)
        return found if model.endswith("vilt") else type("Larger", (), {**vars(found), "side": 64})()

    monkeypatch.setattr(vqa, "reader", other)
    names = [f"vl:{foundations[kind]}" for kind in ("vilt", "clip")]
    refused(lambda: vqa.side_of(names), "32x32 pixels", "64x64 pixels", "take models of one size")
    assert Foundation.read(names[0]).model == str(foundations["vilt"])


def test_modalities_stand_in_the_experiment(pictured: Federation) -> None:
    prepared = runs.prepare(config.resolve({"method": "feddat"}), pictured)
    assert prepared.experiment.modalities == "2:text"
