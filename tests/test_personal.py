"""A client's personal model: complete in one file, and the same predictions wherever it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from unalike import api, models, personal, runs, tree
from unalike.data import vqa
from unalike.data.federation import Federation, federation
from unalike.data.inputs import read_rows
from unalike.errors import InputError
from unalike.personal import PersonalModel, extract, load

BOTH = "cnn-5(norm=True, dropout=0.2)"
METHODS = ("pfedafm", "fedavg", "standalone")


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pFedAFM on the digits with three architectures."""
    keys = {"clients": 3, "models": f"cnn-5,cnn-4,{BOTH}", "min_per_client": 60, "rounds": 2, "local_epochs": 1}
    folder = tmp_path_factory.mktemp("digits") / "run"
    return api.run("pfedafm", out=folder, engine="serial", report=False, **keys).folder


@pytest.fixture(scope="module")
def gaps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a table with a missing value in every tenth row, a column of texts, and two classes."""
    path, random = tmp_path_factory.mktemp("table") / "gaps.csv", np.random.default_rng(0)
    lines = ["age,weight,colour,label"]
    for row in range(120):
        sick = row % 2
        age = "" if row % 10 == 0 else f"{40 + 20 * sick + random.normal():.2f}"
        lines.append(f"{age},{random.normal(70, 5):.2f},{('red', 'blue')[row % 3 == 0]},{('no', 'yes')[sick]}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def tables(gaps: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of every method on that table."""
    folder = tmp_path_factory.mktemp("tables")
    keys = {"data": str(gaps), "impute": "mean", "clients": 2, "partition": "iid", "models": "mlp-5(dropout=0.2),mlp-4"}
    for name in METHODS:
        api.run(name, out=folder / name, engine="serial", report=False, rounds=2, local_epochs=1, **keys)
    return folder


def accuracy(model: PersonalModel, given: Federation, client: int, part: str = "test") -> float:
    """Of the model on raw rows, as a user would have them."""
    rows = given.rows(client, part)
    guesses = model.predict(given.source.x[rows]).argmax(1)
    return float((guesses == given.source.y[rows]).sum()) / len(rows)


@pytest.mark.parametrize("method", METHODS)
def test_an_exported_table_model_scores_what_the_run_reported(method: str, tables: Path, tmp_path: Path) -> None:
    """On every client, at the selected round and at the last one."""
    summary, given = api.Result(tables / method).summary, runs.reopen(tables / method).federation
    for client in (0, 1):
        for last, block in ((False, summary), (True, summary["last"])):
            model = load(extract(tables / method, client, last).save(tmp_path / f"{client}{last}.safetensors"))
            assert accuracy(model, given, client) == block["accuracy"]["per_client"][str(client)]
            assert model.classes == ("no", "yes")


def test_an_exported_image_model_scores_what_the_run_reported(digits: Path, tmp_path: Path) -> None:
    summary, given = api.Result(digits).summary, runs.reopen(digits).federation
    for client in range(3):
        model = load(extract(digits, client).save(tmp_path / f"{client}.safetensors"))
        assert accuracy(model, given, client) == summary["accuracy"]["per_client"][str(client)]
        validation = summary["validation"]["accuracy"]["per_client"][str(client)]
        assert accuracy(model, given, client, "validation") == validation
        direct = load(digits, client)
        x = given.source.x[given.rows(client, "test")[:5]]
        assert np.array_equal(direct.predict(x), model.predict(x))
        assert direct.round == model.round == summary["selected_round"]


def test_the_selected_round_is_exported_unless_the_last_is_asked_for(tables: Path, tmp_path: Path) -> None:
    """Where they differ: the run is made to have chosen its first round."""
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(tables / "pfedafm", folder)
    for path in folder.glob("checkpoint/round-*.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "best_round": 1}))
    chosen, last = extract(folder, 0), extract(folder, 0, last=True)
    assert (chosen.round, last.round) == (1, 2)
    assert not tree.equal(chosen.state, last.state)
    assert tree.equal(last.state, extract(tables / "pfedafm", 0, last=True).state)


def test_the_file_of_pfedafm_is_complete(digits: Path, tmp_path: Path) -> None:
    """Both extractors, α and the header, and as JSON how to rebuild them; nothing of it is a pickle."""
    path = extract(digits, 1).save(tmp_path / "one.safetensors")
    prepared = runs.reopen(digits)
    own, shared = prepared.algorithm.models["cnn-4"], prepared.algorithm.shared
    with safe_open(path, framework="pt") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        about = json.loads(file.metadata()["unalike"])

    def below(prefix: str) -> set[str]:
        return {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}

    key = api.loop.Key.root(0)
    assert below("state/model/extractor/") == set(models.initial(own, key)["extractor"])
    assert below("state/model/header/") == set(models.initial(own, key)["header"])
    assert below("state/theta/") == below("down/theta/") == set(models.initial(shared, key)["extractor"])
    assert shapes["state/alpha"] == (500,)
    assert about["format"] == "unalike-personal-1"
    assert set(about["models"]) == {"cnn-4", "cnn-5"}
    assert about["parameters"]["shared_model"] == prepared.algorithm.shared_model
    assert about["preprocess"]["classes"] == [str(d) for d in range(10)]


@pytest.mark.parametrize("method", METHODS)
def test_onnx_gives_the_same_outputs_for_tables_with_gaps(method: str, tables: Path, tmp_path: Path) -> None:
    model = extract(tables / method, 0)
    x = np.array([[60.0, 70.0, 1.0, 0.0], [np.nan, 80.0, 0.0, 1.0], [40.0, np.nan, 1.0, 0.0]], dtype=np.float32)
    compare_onnx(model, np.concatenate([x, x[:2]]), tmp_path / "model.onnx")


@pytest.mark.parametrize("client", [1, 2])
def test_onnx_gives_the_same_outputs_for_images(client: int, digits: Path, tmp_path: Path) -> None:
    """With two extractors of different architectures; client 2's has BatchNorm and dropout."""
    given = runs.reopen(digits).federation
    x = given.source.x[given.rows(client, "test")[:5]].astype(np.float32)
    compare_onnx(extract(digits, client), x, tmp_path / "model.onnx")


def compare_onnx(model: PersonalModel, x: np.ndarray, path: Path) -> None:
    """Batches of one and of five rows; warnings are errors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(model.save_onnx(path)), providers=["CPUExecutionProvider"])
    assert len(x) == 5
    for rows in (x[:1], x):
        (found,) = session.run(["logits"], {"x": rows})
        assert found.shape == (len(rows), len(model.classes))
        assert np.allclose(found, model.logits(rows).numpy(), atol=1e-4)


def test_predictions_do_not_depend_on_the_batch(digits: Path) -> None:
    given = runs.reopen(digits).federation
    x, model = given.source.x[:64], load(digits, 2)
    whole = model.logits(x)
    assert torch.allclose(whole, model.logits(x, size=7), atol=1e-4)
    assert torch.equal(whole, model.logits(x))
    assert np.allclose(model.predict(x).sum(1), 1, atol=1e-5)


# What can be predicted


def test_rows_of_a_csv_are_found_by_the_names_of_their_columns(tables: Path, tmp_path: Path) -> None:
    """In any order, with columns too many, and with gaps where the model fills them."""
    model = load(tables / "pfedafm", 0)
    path = tmp_path / "new.csv"
    path.write_text("colour,name,weight,age\nred,x,70,60\nblue,y,80,\nNA,z,,40\n")
    rows = read_rows(path, model.preprocess)
    assert model.preprocess.features == ("age", "weight", "colour=blue", "colour=red")
    expected = [[60, 70, 0, 1], [np.nan, 80, 1, 0], [40, np.nan, np.nan, np.nan]]
    assert np.array_equal(rows, np.array(expected, dtype=np.float32), equal_nan=True)
    found = model.predict(rows)
    assert np.isfinite(found).all()
    filled = np.where(np.isnan(rows), np.float32(model.preprocess.fill), rows)
    assert np.allclose(model.predict(filled), found, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("age,weight\n1,2\n", "has no column 'colour=blue', which the model was trained on"),
        ("age,weight,colour\nold,2,red\n", "row 1, column 'age': 'old' is no number"),
        ("age,weight,colour\n1,2,red\n3,inf,red\n", r"row 2, position \(2,\) is no finite number"),
        ("age,weight,colour\n", "is empty"),
    ],
)
def test_rows_of_a_csv_that_do_not_fit_are_refused(content: str, words: str, tables: Path, tmp_path: Path) -> None:
    path = tmp_path / "new.csv"
    path.write_text(content)
    with pytest.raises(InputError, match=words):
        read_rows(path, load(tables / "standalone", 0).preprocess)


def test_rows_of_an_npz_come_in_any_layout_of_images(digits: Path, tmp_path: Path) -> None:
    model, given = load(digits, 0), runs.reopen(digits).federation
    x = given.source.x[:4]
    for layout in (x, x[:, 0], x.transpose(0, 2, 3, 1), x.astype(np.float64)):
        np.savez(tmp_path / "x.npz", x=layout)
        assert np.array_equal(read_rows(tmp_path / "x.npz", model.preprocess), x.astype(np.float32))
    for wrong in (x[:, :, :7], x.astype(str), x[0, 0]):
        np.savez(tmp_path / "x.npz", x=wrong)
        with pytest.raises(InputError, match=r"x\.npz: x is .* the model takes numbers \(n, 1, 8, 8\)"):
            read_rows(tmp_path / "x.npz", model.preprocess)
    with pytest.raises(InputError, match=r"rows of shape \(1, 8, 8\); these have \(8, 8\)"):
        model.predict(x[:, 0])
    with pytest.raises(InputError, match="no row to predict"):
        model.predict(x[:0])


def test_images_are_brought_to_the_size_and_white_of_the_model(digits: Path, tmp_path: Path) -> None:
    """White is 16 for the digits; a folder is read by name; colours become grey."""
    model = load(digits, 0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    Image.new("L", (8, 8), 255).save(folder / "b.png")
    Image.new("RGB", (20, 30), (0, 0, 0)).save(folder / "a.png")
    rows = read_rows(folder, model.preprocess)
    assert rows.shape == (2, 1, 8, 8)
    assert (rows[0] == 0).all()
    assert np.allclose(rows[1], 16)
    assert np.array_equal(read_rows(folder / "b.png", model.preprocess), rows[1:])
    assert model.predict(rows).shape == (2, 10)


# What is no personal model


@pytest.mark.parametrize("what", ["absent", "text", "other", "format", "cut"])
def test_a_file_that_is_no_personal_model_is_refused(what: str, tables: Path, tmp_path: Path) -> None:
    path = extract(tables / "fedavg", 0).save(tmp_path / "a.safetensors")
    if what == "absent":
        path.unlink()
    elif what == "text":
        path.write_text("no")
    elif what == "other":
        save_file({"w": torch.zeros(2)}, path)
    elif what == "format":
        save_file({"w": torch.zeros(2)}, path, metadata={"unalike": json.dumps({"format": "unalike-personal-0"})})
    else:
        path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"a\.safetensors is no personal model written by `unalike export`"):
        load(path)


def test_a_run_on_a_federation_made_by_hand_is_opened_with_its_own_models(tmp_path: Path) -> None:
    """Models in no regular turn, pooled to another width, and a partition that no key of the experiment asked for."""
    unlike = {"models": ["mlp-4"], "model_map": {1: "mlp-3", 2: "mlp-5"}, "feature_width": 32}
    made = federation("wine", clients=3, partition="iid", seed=9, **unlike)
    keys = {"engine": "serial", "rounds": 1, "local_epochs": 1, "report": False}
    folder = api.run("pfedafm", made, out=tmp_path / "run", **keys).folder
    reopened = runs.reopen(folder)
    assert reopened.federation.models == made.models
    assert reopened.federation.clients == made.clients
    for client in range(3):
        expected = api.Result(folder).summary["accuracy"]["per_client"][str(client)]
        assert accuracy(load(folder, client), made, client) == expected


def test_a_client_that_was_never_trained_has_the_model_it_started_with(tmp_path: Path) -> None:
    few = federation("wine", clients=3, models=["mlp-5"], min_per_client=20)
    prepared = api.prepare("standalone", few, rounds=1, fraction=0.1, local_epochs=1, engine="serial")
    folder = api.run(prepared, out=tmp_path / "run", report=False).folder
    (trained,) = next(e["clients"] for e in api.Result(folder).events() if e["event"] == "round")
    start: Any = prepared.algorithm.init_client(few.clients[0], api.loop.Key.root(0) / "init")
    for client in range(3):
        kept = personal.Checkpoints(folder / "checkpoint").read().state(client)[0]
        assert kept == (1 if client == trained else 0)
        same = tree.equal(extract(folder, client).state, start)
        assert same == (client != trained)


# Models of images and questions --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answering(pictured: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FedDAT on questions about coloured squares; client 2 sees no image."""
    folder = tmp_path_factory.mktemp("answering") / "run"
    return api.run("feddat", pictured, out=folder, engine="serial", report=False, rounds=2, lr=0.01).folder


@pytest.mark.parametrize("client", [0, 1])
def test_a_model_that_answers_is_complete_in_its_file(
    client: int, answering: Path, pictured: Federation, tmp_path: Path
) -> None:
    """Asked by question and image it says what it was scored on; the frozen model is not in the file."""
    file = extract(answering, client, given=pictured).save(tmp_path / "model.safetensors")
    model, rows = load(file), pictured.rows(client, "test")
    number, asked = vqa.numbers(pictured.source.x[rows]), vqa.questions(pictured.source.x[rows])
    assert pictured.source.images is not None
    found = model.ask(asked, pictured.source.images[number])
    with torch.no_grad():
        expected = model.algorithm.predict(model.ready_on("cpu"), pictured.data(client, "test")).softmax(1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)
    assert model.classes == pictured.answers(client)
    assert found.shape == (4, len(model.classes))
    with safe_open(file, framework="pt") as opened:
        assert {name.split("/")[1] for name in opened.keys()} == {"adapter", "head"}  # noqa: SIM118
    assert file.stat().st_size < 50_000


def test_what_a_model_that_answers_refuses(answering: Path, pictured: Federation, tables: Path, tmp_path: Path) -> None:
    model = extract(answering, 0, given=pictured)
    with pytest.raises(InputError, match="question 2 is longer than the 16 tokens"):
        model.ask(["red ?", "red " * 20])
    with pytest.raises(InputError, match="it takes no rows of numbers"):
        model.predict(np.zeros((1, 4)))
    with pytest.raises(InputError, match="ONNX has no place for"):
        model.save_onnx(tmp_path / "model.onnx")
    with pytest.raises(InputError, match="takes rows of kind table, no questions"):
        load(tables / "fedavg", 0).ask(["red ?"])


def test_without_an_image_or_a_question_it_answers_by_the_other(answering: Path, pictured: Federation) -> None:
    model = extract(answering, 0, given=pictured)
    image = np.full((1, 3, 50, 40), 200, np.uint8)
    both, blind, mute = model.ask(["red ?"], image), model.ask(["red ?"]), model.ask([""], image)
    assert blind.sum() == pytest.approx(1.0)
    assert len({both.tobytes(), blind.tobytes(), mute.tobytes()}) == 3
    assert blind.tobytes() == model.ask(["red ?"], image, np.array([False])).tobytes()
