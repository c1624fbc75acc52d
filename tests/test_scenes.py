"""Scenes, what is asked about them, the folders they are written to, and the models that are trained on them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from unalike.data import vqa
from unalike.data.federation import federation
from unalike.data.sources import load
from unalike.errors import InputError
from unalike.models import multimodal
from unalike.multimodal import reader
from unalike.protocol import Spec
from unalike.rng import Key
from unalike.scenes import __main__ as command
from unalike.scenes import folders, model, questions, real, world

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}


def drawn(found: world.Scene, style: world.Style, seed: int = 0) -> np.ndarray:
    return world.draw(found, style, 32, Key.root(seed).numpy()).astype(float)


def test_questions_have_the_answer_that_the_scene_gives() -> None:
    a, b = world.Thing("circle", "red", "large", 0), world.Thing("square", "blue", "small", 3)
    right = {
        "the circle : colour ?": "red",
        "the square : colour ?": "blue",
        "the red thing : shape ?": "circle",
        "the blue thing : shape ?": "square",
        "things : how many ?": "2",
        "circles : how many ?": "1",
        "red things : how many ?": "1",
        "crosses : how many ?": "0",
        "green things : how many ?": "0",
        "the circle : size ?": "large",
        "the blue thing : size ?": "small",
        "circle : any ?": "yes",
        "green shape : any ?": "no",
    }
    rng, last, said = Key.root(0).numpy(), {kind: forms[-1:] for kind, forms in questions.OURS.items()}, {}
    for kind in questions.KINDS:
        said |= dict(questions.ask((a, b), kind, last, rng) for _ in range(400))
    assert {asked: said[asked] for asked in right} == right
    told = dict(questions.ask((a, b), "place", questions.NEUTRAL, rng) for _ in range(200))
    assert (told["where is the circle ?"], told["where is the blue thing ?"]) == ("top left", "bottom right")


def test_what_two_things_share_is_not_asked_for() -> None:
    alike = (world.Thing("circle", "red", "large", 0), world.Thing("circle", "red", "small", 1))
    for kind in ("colour", "shape", "place", "size"):
        with pytest.raises(LookupError):
            questions.ask(alike, kind, questions.NEUTRAL, Key.root(0).numpy())


def test_every_word_is_in_the_vocabulary_and_none_is_the_clients_alone_by_phrase() -> None:
    known, rng = {*questions.words()}, Key.root(1).numpy()
    assert len(known) == len(questions.words())
    for kind in questions.KINDS:
        assert {*questions.OURS[kind]}.isdisjoint(questions.NEUTRAL[kind])
        for _ in range(100):
            assert {*folders.asked(kind, rng)[1].split()} <= known
    blood = " ".join(real.ABOUT).split()
    assert {*blood} - known == set()


def test_a_third_of_the_pairs_never_occur_in_the_neutral_mixture() -> None:
    clients, neutral = {*world.pairs(False)}, {*world.pairs(True)}
    assert len(clients) == len(world.COLOURS) * len(world.SHAPES) == 24
    assert len(clients - neutral) == 8
    rng = Key.root(0).numpy()
    seen = {(thing.colour, thing.shape) for _ in range(800) for thing in world.scene(rng, neutral=True)}
    assert seen == neutral


def test_a_style_of_no_strength_is_the_neutral_one() -> None:
    for style in world.STYLES.values():
        assert style.at(0) == world.NEUTRAL
        assert style.at(1) == style
        half = zip(astuple(style.at(0.5)), astuple(style), astuple(world.NEUTRAL), strict=True)
        assert all(mid == pytest.approx((own + neutral) / 2) for mid, own, neutral in half)


def test_each_style_does_to_a_picture_what_it_says() -> None:
    found = (world.Thing("square", "red", "large", 0),)
    plain = drawn(found, world.NEUTRAL)
    middle, corner = np.s_[8:10, 8:10], np.s_[26:, 26:]
    assert plain[middle][..., 0].mean() > 180 > 100 > plain[middle][..., 1:].mean()
    styled = {name: drawn(found, style) for name, style in world.STYLES.items()}
    assert abs(styled["sketch"][middle].mean() - styled["sketch"][corner].mean()) < 15
    assert styled["night"][corner].mean() < 40
    assert styled["grain"][corner].std() > 2 * plain[corner].std()
    assert np.ptp(styled["weave"][corner].mean(2)) > 2 * np.ptp(plain[corner].mean(2))
    assert styled["dyed"][middle][..., 1].mean() > styled["dyed"][middle][..., 0].mean()


def test_clients_have_the_same_scenes_and_questions_at_every_strength(tmp_path: Path) -> None:
    for name, strength, seed in (("weak", 0.0, 0), ("strong", 1.0, 0), ("again", 1.0, 0), ("other", 1.0, 1)):
        folders.write_domains(tmp_path / name, seed=seed, strength=strength, train=10, test=5)
    files = {path.relative_to(tmp_path / "strong") for path in (tmp_path / "strong").rglob("*.*")}
    assert len(files) == 1 + 5 * 2 + 5 * 15
    assert "--strength 1.0" in (tmp_path / "strong" / "domains.md").read_text()
    for file in files:
        weak, strong, again = ((tmp_path / name / file).read_bytes() for name in ("weak", "strong", "again"))
        assert strong == again
        assert (weak == strong) == (file.suffix == ".jsonl")
    rows = [(tmp_path / name / "night.train.jsonl").read_text() for name in ("strong", "other")]
    assert rows[0] != rows[1]


def test_domains_are_clients_with_all_kinds_of_questions(tmp_path: Path) -> None:
    source = load(str(folders.write_domains(tmp_path, train=50, test=10)))
    assert source.sites is not None
    assert source.test is not None
    assert source.images is not None
    assert Counter(source.sites) == dict.fromkeys(world.STYLES, 60)
    assert source.test.sum() == 50
    assert {*source.classes} <= {*questions.answers()}
    assert source.images.shape == (300, 3, 32, 32)
    for style in world.STYLES:
        own = {source.classes[y] for y in source.y[source.sites == style]}
        assert own >= {"yes", "no", "1"}
        assert own & {*world.COLOURS}
        assert own >= {*world.SIZES}


def test_functions_are_clients_with_one_kind_of_question_each(tmp_path: Path) -> None:
    source = load(str(folders.write_functions(tmp_path, train=60, test=20)))
    assert source.sites is not None
    own = {kind: {source.classes[y] for y in source.y[source.sites == kind]} for kind in questions.KINDS}
    whole = (world.COLOURS, world.SHAPES, ("0", "1", "2", "3"), world.SIZES, ("no", "yes"))
    assert own == dict(zip(questions.KINDS, map(set, whole), strict=True))


def test_reports_tell_what_is_asked_and_some_rows_lack_a_part(tmp_path: Path) -> None:
    folders.write_reports(tmp_path, train=40, test=20)
    source = load(str(tmp_path))
    assert source.sites is not None
    assert Counter(source.sites) == {"north": 60, "south": 60, "west": 60, "written": 25, "xray": 25}
    north, written, xray = (
        [json.loads(line) for line in (tmp_path / f"{name}.train.jsonl").read_text().splitlines()]
        for name in ("north", "written", "xray")
    )
    assert [row.keys() - {"answer"} for row in north[:5]] == [*[{"image", "question"}] * 3, {"question"}, {"image"}]
    told = [row for row in [*north, *written] if row["answer"] in world.COLOURS]
    assert told
    assert all(f"a {row['answer']} " in row["question"] for row in told)
    assert all(row["image"] and row["question"] for row in written)
    assert all(row.keys() == {"image", "answer"} and row["answer"] in world.SHAPES for row in xray)


def test_the_package_easy_vqa_is_divided_and_balanced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    forms = [
        ("is there a red shape?", "yes"),
        *[("is there a blue shape?", "no")] * 5,
        ("is a circle present?", "yes"),
        ("is there a triangle?", "no"),
        ("is no red shape present?", "no"),
        ("does the image not contain a circle?", "yes"),
        ("what color is the shape?", "teal"),
        ("what is the color of the circle?", "red"),
        ("what shape is in the image?", "circle"),
        ("what is the teal shape?", "rectangle"),
    ]
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    asked = [list(column) for column in zip(*((q, a, 0) for q, a in forms * 3), strict=True)]
    fake = {f"get_{part}_questions": lambda: asked for part in ("train", "test")}
    fake |= {f"get_{part}_image_paths": lambda: {0: tmp_path / "0.png"} for part in ("train", "test")}
    monkeypatch.setitem(sys.modules, "easy_vqa", SimpleNamespace(**fake))
    folder = real.write_easy(tmp_path / "easy", train=6, test=4)
    for name in real.EASY:
        rows = [json.loads(line) for line in (folder / f"{name}.train.jsonl").read_text().splitlines()]
        assert sorted(Counter(row["answer"] for row in rows).values()) == [3, 3]
        assert {real.kind_of(row["question"], row["answer"]) for row in rows} == {name}
    assert load(str(folder), group_column="none").kind == "vqa"
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(InputError, match="pip install easy-vqa"):
        real.write_easy(tmp_path / "none")


def cells(folder: Path, images: int) -> Path:
    """A table of boxes, and images: the i-th has i % 3 platelets, a white cell and 4 * i red ones."""
    folder.mkdir()
    lines = ["filename,cell_type,xmin"]
    for i in range(images):
        Image.new("RGB", (64, 48), (i, 0, 0)).save(folder / f"{i}.png")
        lines += [f"{i}.png,{name},0" for name in ["Platelets"] * (i % 3) + ["WBC"] + ["RBC"] * (4 * i)]
    (folder / "boxes.csv").write_text("\n".join(lines))
    return folder


def test_blood_is_asked_about_by_its_boxes(tmp_path: Path) -> None:
    folder = real.write_blood(tmp_path / "blood", cells(tmp_path / "cells", 20), side=16)
    right = {
        "is there a platelet ?": lambda i: "yes" if i % 3 else "no",
        "how many platelets are there ?": lambda i: str(i % 3),
        "how many white cells are there ?": lambda i: "1",
        "are there more than ten red cells ?": lambda i: "yes" if i > 2 else "no",
        "are there more platelets than white cells ?": lambda i: "yes" if i % 3 == 2 else "no",
    }
    shown: dict[str, set[str]] = {}
    for part, count in (("train", 30), ("test", 10)):
        rows = [json.loads(line) for line in (folder / f"blood.{part}.jsonl").read_text().splitlines()]
        assert len(rows) == count
        for row in rows:
            assert row["answer"] == right[row["question"]](int(Path(row["image"]).stem))
        shown[part] = {row["image"] for row in rows}
    assert not shown["train"] & shown["test"]
    source = load(str(folder))
    assert source.groups is not None
    assert len({*source.groups}) == 20


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "boxes.csv").unlink(), "has no .csv with the columns filename and cell_type"),
        (lambda f: (f / "boxes.csv").write_text("filename,cell_type\n0.png,egg\n"), "row 1: cell_type is 'egg'"),
        (lambda f: (f / "3.png").unlink(), "names the image 3.png, which is not in"),
    ],
)
def test_wrong_boxes_are_named(spoil: object, said: str, tmp_path: Path) -> None:
    source = cells(tmp_path / "cells", 5)
    assert callable(spoil)
    spoil(source)
    with pytest.raises(InputError, match=said):
        real.write_blood(tmp_path / "blood", source)


def test_the_command_writes_folders_and_refuses_what_is_out_of_range(tmp_path: Path) -> None:
    command.main(["functions", str(tmp_path / "f"), "--train", "4", "--test", "2", "--seed", "3"])
    assert "--seed 3 --side 32 --train 4 --test 2" in (tmp_path / "f" / "functions.md").read_text()
    for options, said in ((["--strength", "2"], "--strength 2.0 is out of range"), (["--train", "0"], "--train 0 is")):
        with pytest.raises(InputError, match=said):
            command.main(["domains", str(tmp_path / "d"), *options])
    assert not (tmp_path / "d").exists()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vl"
    return model.write(folder, steps=60, pool=100, size={**model.SIZE, **SMALL})


def test_a_model_is_written_as_others_write_theirs(trained: Path, tmp_path: Path) -> None:
    read = reader(str(trained))
    assert (read.side, read.pad, read.modalities) == (32, 0, ("image", "text"))
    assert read.start == model.SPECIAL.index("<start>")
    assert read.texts(read.questions(["what colour is the circle ?"])) == ["what colour is the circle ?"]
    data = folders.write_domains(tmp_path, train=20, test=5)
    found = federation(str(data), partition="site", models=[f"vl:{trained}"], modalities="0:text")
    batch = found.data(1, "train")
    spec = found.models[found.clients[1].tier]
    features = multimodal.features(spec, {}, batch)
    assert features.shape == (len(batch["x"]), SMALL["hidden_size"])
    assert features.std(0).max() > 1e-5


def test_training_teaches_and_repeats(trained: Path, tmp_path: Path) -> None:
    again = model.write(tmp_path / "vl", steps=60, pool=100, size={**model.SIZE, **SMALL})
    spec = Spec(f"vl:{trained}", (3, 32, 32), 2)
    one, two = multimodal.base(spec).frozen, multimodal.base(Spec(f"vl:{again}", (3, 32, 32), 2)).frozen
    assert all(torch.equal(leaf, two[name]) for name, leaf in one.items())
    mixture = model.Mixture(50, Key.root(9))
    number, asked, y = mixture.rows(200, Key.root(1).numpy(), ["presence"])
    assert {list(mixture.answers)[i] for i in y.tolist()} == {"yes", "no"}
    assert len(number) == len(asked) == 200


def test_what_lies_in_the_corners_and_where_words_are() -> None:
    scene = (world.Thing("square", "green", "large", 2), world.Thing("cross", "green", "small", 1))
    assert model.corners(scene) == [[0, 0, 0], [4, 3, 1], [2, 3, 2], [0, 0, 0]]
    told = model.named("is the cross left of green things or circles ?", scene)
    right = {2: [0, 1, 0, 0], 5: [0, 1, 1, 0], 8: [0, 0, 0, 0]}
    assert told == [right.get(i) for i in range(10)]
    assert [len(names) + 1 for names in model.NAMES] == model.CORNER == [5, 7, 3]


def test_questions_about_scenes_are_packed_and_shown(tmp_path: Path) -> None:
    source = load(str(folders.write_functions(tmp_path, train=5, test=1)), whole=False)
    assert len(vqa.questions(source.x)) == 30
    assert vqa.numbers(source.x).tolist() == list(range(30))
