"""What sites agree on: rows brought to the agreement, a share of a federation, a server without rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unalike.data import Source, source_of
from unalike.data.federation import PARTS, Federation, federation
from unalike.data.schema import Schema, empty_federation
from unalike.data.sources import load
from unalike.errors import InputError
from unalike.rng import Key

TABLE = Schema(
    kind="table",
    shape=(4,),
    classes=("sick", "well"),
    features=("age", "colour=blue", "colour=red", "dose"),
    impute="mean",
)
IMAGES = Schema(kind="image", shape=(1, 4, 4), classes=("a", "b"), pixel_max=255.0)


def csv(path: Path, text: str) -> Source:
    path.write_text(text)
    return load(str(path), label="outcome", impute="mean", whole=False)


def windows() -> Source:
    rng = Key.root(5).numpy()
    x = rng.normal(size=(120, 2, 20))
    x[rng.random(x.shape) < 0.1] = np.nan
    return source_of("windows", x, np.arange(120) % 3, impute="median")


def sources() -> dict[str, Any]:
    return {"image": "digits", "table": "breast-cancer", "window": windows()}


# Federation.only


@pytest.mark.parametrize("kind", ["image", "table", "window"])
def test_a_share_has_its_clients_bits_and_nobody_elses_rows(kind: str, tmp_path: Path) -> None:
    whole = federation(sources()[kind], clients=4, partition="iid", seed=2)
    whole.only([2, 0]).save(tmp_path)
    for share in (whole.only([2, 0]), Federation.load(tmp_path)):
        for client in (0, 2):
            assert share.preprocess(client) == whole.preprocess(client)
            for part in PARTS:
                ours, theirs = share.data(client, part), whole.data(client, part)
                assert all(torch.equal(ours[name], theirs[name]) for name in ("x", "y"))
        assert not any(len(share.rows(client, part)) for client in (1, 3) for part in PARTS)
        assert len(share.source.y) == sum(len(whole.rows(client, part)) for client in (0, 2) for part in PARTS)
        assert (share.clients, share.models, share.task) == (whole.clients, whole.models, whole.task)
        assert Schema.of(share.source) == Schema.of(whole.source)


def test_a_share_holds_a_copy_that_no_other_row_hangs_on(unlike: Federation) -> None:
    share = unlike.only([1])
    assert not np.shares_memory(share.source.x, unlike.source.x)
    assert share.source.x.base is None
    assert (unlike.only([]).source.x.shape, share.keys) == ((0, 1, 8, 8), {})


def test_a_client_that_there_is_not_is_refused(unlike: Federation) -> None:
    with pytest.raises(InputError, match="no client 6: the clients are 0 to 5"):
        unlike.only([6])


def test_a_share_may_hold_one_class_but_a_whole_federation_may_not(tmp_path: Path) -> None:
    sites = np.repeat(["a", "b"], 10)
    rows = Source("s", "table", np.ones((20, 2), np.float32), np.repeat([0, 1], 10), ("no", "yes"), sites=sites)
    federation(rows, partition="site").only([1]).save(tmp_path)
    assert set(Federation.load(tmp_path).data(1, "train")["y"].tolist()) == {1}
    for call in (lambda: federation(rows.take(np.arange(10)), clients=1), lambda: federation(rows.take(np.arange(0)))):
        with pytest.raises(InputError, match="at least 2 classes are needed"):
            call()


# Schema


@pytest.mark.parametrize("kind", ["image", "table", "window"])
def test_an_agreement_is_written_read_and_kept_by_its_own_source(kind: str, tmp_path: Path) -> None:
    source = federation(sources()[kind], clients=2, partition="iid").source
    schema = Schema.of(source)
    schema.to_json(tmp_path / "schema.json")
    assert Schema.from_json(tmp_path / "schema.json") == schema
    schema.require(source)
    same = schema.conform(source)
    assert same.x.tobytes() == source.x.tobytes()
    assert (same.y == source.y).all()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "the file: Invalid JSON"),
        (TABLE.model_dump_json().replace('"shape"', '"shapes"'), "shape: Field required"),
        (TABLE.model_dump_json().replace("[4]", '["x"]'), "shape.0"),
        (None, "cannot be read"),
    ],
)
def test_a_damaged_agreement_is_named(text: str | None, words: str, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "schema.json").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        Schema.from_json(tmp_path / "schema.json")
    assert "\n" not in str(caught.value)


def test_columns_and_classes_come_into_the_agreed_order(tmp_path: Path) -> None:
    source = csv(tmp_path / "s.csv", "dose,outcome,colour,age\n1,well,red,50\n2,well,blue,\n3,well,,70\n")
    found = TABLE.conform(source)
    nan = np.nan
    expected = [[50, 0, 1, 1], [nan, 1, 0, 2], [70, nan, nan, 3]]
    assert np.array_equal(found.x, np.array(expected, np.float32), equal_nan=True)
    assert (found.y.tolist(), found.classes, found.features) == ([1, 1, 1], TABLE.classes, TABLE.features)
    assert Schema.of(found) == TABLE


def test_a_text_that_a_site_never_met_is_a_column_of_zeros(tmp_path: Path) -> None:
    source = csv(tmp_path / "s.csv", "age,colour,dose,outcome\n1,blue,1,sick\n2,,1,well\n")
    assert np.array_equal(TABLE.conform(source).x[:, 2], [0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        (
            "age,colour,dose,outcome",
            "1,red,2,dead",
            "row 1 has the class 'dead', which is none of the agreed sick, well",
        ),
        (
            "age,dose,outcome",
            "1,2,sick",
            "no column 'colour=blue'; of the agreed ones it lacks colour=blue, colour=red",
        ),
        ("age,colour,outcome", "1,red,sick", "has no column 'dose'; of the agreed ones it lacks .*dose"),
        (
            "age,colour,dose,ward,outcome",
            "1,red,2,3,sick",
            "column 'ward' that was not agreed on: drop it; agreed are age",
        ),
        (
            "age,colour,dose,outcome",
            "1,pink,2,sick",
            "'colour=pink' that was not agreed on; agreed are colour=blue, colour",
        ),
    ],
)
def test_what_does_not_fit_a_table_is_named(head: str, row: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        TABLE.conform(csv(tmp_path / "s.csv", f"{head}\n{row}\n"))


def test_missing_values_need_an_agreement(tmp_path: Path) -> None:
    source = csv(tmp_path / "s.csv", "age,colour,dose,outcome\n1,red,1,sick\n,blue,1,well\n")
    strict = TABLE.model_copy(update={"impute": None})
    with pytest.raises(InputError, match=r"s: row 2, column 'age' is missing, and to fill gaps was not agreed on"):
        strict.conform(source)
    with pytest.raises(InputError, match="impute is mean, agreed is zero"):
        TABLE.model_copy(update={"impute": "zero"}).conform(source)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((2, 3, 4, 4), np.uint8), r"images have 3 channels, agreed are 1 \(1 is grey, 3 is colour\)"),
        (np.zeros((2, 1, 4, 5), np.uint8), "images are 4x5 pixels, agreed are 4x4 .* give image_size = 4"),
        (np.zeros((2, 4)), "is of kind table; agreed is image"),
        (np.full((2, 1, 4, 4), 3.5), "a pixel is 3.5, but white is 1: give pixel_max in the .npz"),
    ],
)
def test_what_does_not_fit_images_is_named(x: np.ndarray, words: str) -> None:
    with pytest.raises(InputError, match=words):
        IMAGES.conform(source_of("s", x, np.array(["a", "b"])))


def test_images_take_the_agreed_white() -> None:
    x = np.full((2, 1, 4, 4), 0.5)
    found = IMAGES.conform(source_of("s", x, np.array(["b", "b"])))
    assert (found.x.dtype, found.x.max(), found.pixel_max, found.y.tolist()) == (np.float32, 127.5, 255.0, [1, 1])


def test_nameless_columns_cannot_be_put_in_order() -> None:
    with pytest.raises(InputError, match=r"s has no column names; agreed are age, .* give a .csv"):
        TABLE.conform(source_of("s", np.zeros((2, 4)), np.array(["sick", "well"])))


def test_other_data_than_agreed_are_named() -> None:
    with pytest.raises(InputError, match=r"s: classes is \('a', 'c'\), agreed is \('a', 'b'\)"):
        IMAGES.require(source_of("s", np.zeros((2, 4, 4), np.uint8), np.array(["a", "c"])))


# a server without rows


def test_a_server_without_rows_knows_clients_and_models(unlike: Federation, tmp_path: Path) -> None:
    empty = empty_federation(Schema.of(unlike.source), unlike.clients, unlike.models)
    empty.save(tmp_path)
    for found in (empty, Federation.load(tmp_path)):
        assert (found.clients, found.models, found.task) == (unlike.clients, unlike.models, unlike.task)
        assert Schema.of(found.source) == Schema.of(unlike.source)
        assert not any(len(found.rows(client, part)) for client in range(6) for part in PARTS)
        assert found.describe()["clients"][5]["labels"] == [0] * 10


def test_a_server_without_rows_checks_numbers_and_models(unlike: Federation) -> None:
    schema = Schema.of(unlike.source)
    with pytest.raises(InputError, match="client 1 stands at place 0"):
        empty_federation(schema, unlike.clients[1:], unlike.models)
    with pytest.raises(InputError, match="client 0 has the model 'cnn-1'; known are none"):
        empty_federation(schema, unlike.clients, {})
