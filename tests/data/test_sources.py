"""Each way in, and each wrong input with the words that name it."""

from __future__ import annotations

import ast
import gzip
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from refusals import refused

from unalike import data
from unalike.data import PLAIN, partition, sources
from unalike.data.federation import PARTS, federation
from unalike.data.partition import draw
from unalike.data.sources import SOURCES, Source, load, load_federated
from unalike.rng import Key

FASHION = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"]


def save(path: Path, **arrays: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays)
    return str(path)


def write(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def idx(array: np.ndarray) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def picture(path: Path, value: Any, size: tuple[int, int] = (6, 4), mode: str = "L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


X, Y = np.arange(24, dtype=np.float32).reshape(8, 3), np.array([0, 1] * 4)


def test_built_in_sets() -> None:
    digits, cancer, wine = load("digits"), load("breast-cancer"), load("wine")
    assert digits.x.shape == (1797, 1, 8, 8)
    assert (digits.x.dtype, digits.x.max(), digits.pixel_max) == (np.float32, 16, 16)
    assert digits.classes == tuple("0123456789")
    assert (cancer.kind, cancer.x.shape, cancer.classes) == ("table", (569, 30), ("malignant", "benign"))
    assert cancer.features[0] == "mean radius"
    assert (wine.x.shape, wine.y.dtype, len(wine.classes)) == ((178, 13), np.int64, 3)
    assert all(len(entry) == 3 for entry in SOURCES.values())


def test_fingerprint_tells_data_apart_whatever_the_memory_layout() -> None:
    def source(x: np.ndarray = X, y: np.ndarray = Y, **more: Any) -> Source:
        return Source("s", "table", x, y, ("a", "b"), **more)

    swapped = Source("s", "table", X, Y, ("b", "a"))
    prints = {s.fingerprint for s in (source(), source(x=X + 1), source(y=1 - Y), source(test=Y == 1), swapped)}
    assert len(prints) == 5
    assert source().fingerprint == source(x=np.asfortranarray(X)).fingerprint == source(x=X.astype(">f4")).fingerprint


@pytest.mark.parametrize("module", [data, sources, partition])
def test_data_layer_imports_neither_torch_nor_pickle(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text())
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert "numpy" in names
    assert not {name.split(".")[0] for name in names} & {"torch", "pickle"}


@pytest.mark.parametrize("name", ["digit", "fashion-mnst", "cifar10"])
def test_unknown_name_lists_and_suggests(name: str) -> None:
    refused(
        lambda: load(name), "digits, breast-cancer, wine, mnist, fashion-mnist, cifar-10, cifar-100", "did you mean"
    )


def test_an_option_that_would_be_ignored_is_refused(tmp_path: Path) -> None:
    refused(lambda: load("digits", label="y"), "--label does not apply to digits")
    refused(lambda: load("fashion-mnist", impute="mean"), "--impute does not apply", "which takes --data-path")
    name = save(tmp_path / "a.npz", x=X, y=Y)
    refused(lambda: load(name, image_size=8), "--image-size does not apply to an .npz file")
    refused(lambda: load(name, image_size=0), "--image-size 0 is out of range")
    refused(lambda: load(write(tmp_path / "a.txt", "x")), "files of kind .txt are not read")


# .npz


@pytest.mark.parametrize(
    ("x", "kind", "shape", "dtype"),
    [
        (np.zeros((8, 3), int), "table", (8, 3), np.float32),
        (np.zeros((8, 3, 50)), "window", (8, 3, 50), np.float32),
        (np.zeros((8, 5, 6), np.uint8), "image", (8, 1, 5, 6), np.uint8),
        (np.zeros((8, 5, 6, 3), np.uint8), "image", (8, 3, 5, 6), np.uint8),
        (np.zeros((8, 3, 5, 6)), "image", (8, 3, 5, 6), np.float32),
        (np.full((8, 5, 6, 1), 255), "image", (8, 1, 5, 6), np.uint8),
        (np.zeros((8, 4, 5, 6)), "image", (8, 4, 5, 6), np.float32),
    ],
)
def test_npz_shape_tells_the_kind(tmp_path: Path, x: np.ndarray, kind: str, shape: Any, dtype: Any) -> None:
    source = load(save(tmp_path / "my.npz", X=x, target=Y))
    assert (source.name, source.kind, source.x.shape, source.x.dtype) == ("my", kind, shape, dtype)
    assert source.pixel_max == (255 if dtype == np.uint8 else 1)


def test_npz_channels_last_keeps_each_pixel(tmp_path: Path) -> None:
    x = np.arange(8 * 4 * 5 * 3, dtype=np.uint8).reshape(8, 4, 5, 3)
    assert (load(save(tmp_path / "a.npz", images=x, labels=Y)).x[:, 2] == x[..., 2]).all()


def test_npz_optional_arrays(tmp_path: Path) -> None:
    test, slide = Y == 1, np.array(list("bbaabbaa"))
    source = load(save(tmp_path / "a.npz", x=X, y=Y, classes=["no", "yes"], test=test, slide=slide))
    assert source.classes == ("no", "yes")
    assert source.test is not None
    assert source.sites is not None
    assert (source.test == test).all()
    assert (source.sites == slide).all()
    by_name = load(save(tmp_path / "a.npz", x=X, y=Y, ward=slide, pixel_max=9.0), site_column="ward")
    assert by_name.sites is not None
    assert by_name.pixel_max == 9


@pytest.mark.parametrize(
    ("labels", "classes", "y"),
    [
        (["b", "a"] * 4, ("a", "b"), [1, 0] * 4),
        ([10, 9] * 4, ("9", "10"), [1, 0] * 4),
        (["10", "9"] * 4, ("9", "10"), [1, 0] * 4),
        ([[1.0], [-1.0]] * 4, ("-1", "1"), [1, 0] * 4),
        ([True, False] * 4, ("0", "1"), [1, 0] * 4),
        ([b"z", b"y"] * 4, ("y", "z"), [1, 0] * 4),
    ],
)
def test_labels_of_any_type(tmp_path: Path, labels: Any, classes: Any, y: Any) -> None:
    source = load(save(tmp_path / "a.npz", x=X, y=labels))
    assert (source.classes, source.y.tolist(), source.y.dtype) == (classes, y, np.int64)


WRONG_NPZ: list[tuple[dict[str, Any], str]] = [
    ({"x": X, "y": Y[:-1]}, "x has 8, y has 7"),
    ({"x": X, "y": Y + 0.5}, "the label of row 1 is 0.5; labels must be integers or texts"),
    ({"x": X, "y": np.where(Y, np.inf, 0)}, "the label of row 2 is inf"),
    ({"x": X, "y": np.zeros(8, int)}, "has one class ('0'): at least 2 classes are needed"),
    ({"x": X, "y": np.arange(8)}, "has 8 different labels in 8 rows"),
    ({"x": X, "y": Y, "classes": ["a"]}, "labels must be integers 0..0"),
    ({"x": X, "y": X}, "labels must be (n,) integers or texts"),
    ({"x": X[:0], "y": Y[:0]}, "x is float32 of shape (0, 3)"),
    ({"x": X[:, 0], "y": Y}, "shape (8,); it must be numbers"),
    ({"x": X.astype(str), "y": Y}, "it must be numbers"),
    ({"x": np.zeros((8, 32, 32, 4)), "y": Y}, "must be (channels, height, width)"),
    ({"x": X, "y": np.array([{}] * 8)}, "never unpickled; save plain arrays"),
    ({"x": X}, "has no array y; it has x"),
    ({"x": X, "y": Y, "test": Y > 5}, "`test` must mark some rows and not all; it marks 0"),
    ({"x": X, "y": Y, "test": Y + 1}, "`test` must be true or false"),
    ({"x": X, "y": Y, "test": Y[:5] == 0}, "test has 5"),
    ({"x": np.where(X == 5, np.nan, X), "y": Y}, "row 2, column 3 is NaN; give --impute mean, median or zero"),
    ({"x": np.where(X == 5, 1e300, X.astype(float)), "y": Y}, "row 2, column 3 is infinite as float32"),
    ({"x": np.where(X == 5, np.nan, X)[:, None], "y": Y}, "row 2, position (1, 3) is NaN"),
    ({"x": np.where(X == 5, np.nan, X)[:, None, None], "y": Y}, "position (1, 1, 3) is NaN; images cannot miss pixels"),
]


@pytest.mark.parametrize(("arrays", "words"), WRONG_NPZ, ids=[words for _, words in WRONG_NPZ])
def test_wrong_npz(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    refused(lambda: load(save(tmp_path / "a.npz", **arrays)), words)


def test_impute_allows_nan_and_leaves_it_but_never_inf(tmp_path: Path) -> None:
    x = np.where(X == 5, np.nan, X)
    source = load(save(tmp_path / "a.npz", x=x, y=Y), impute="median")
    assert (source.impute, int(np.isnan(source.x).sum())) == ("median", 1)
    refused(lambda: load(save(tmp_path / "a.npz", x=np.where(X == 5, -np.inf, x), y=Y), impute="mean"), "infinite")
    refused(lambda: load(str(tmp_path / "a.npz"), impute="mode"), "--impute mode is unknown")  # type: ignore[arg-type]


def test_damaged_npz(tmp_path: Path) -> None:
    whole = Path(save(tmp_path / "a.npz", x=X, y=Y)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:100])
    refused(lambda: load(str(tmp_path / "cut.npz")), "is no whole .npz file")
    at = whole.index(X.tobytes())
    (tmp_path / "flipped.npz").write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    refused(lambda: load(str(tmp_path / "flipped.npz")), "is damaged")


# .csv


def test_csv_columns_labels_sites_and_texts(tmp_path: Path) -> None:
    text = "age,colour,hospital,outcome\n30,red,B,ill\n40.5,,A,well\n\n,blue,B,ill\n-1e3,red,A,well\n"
    name = write(tmp_path / "ward.csv", text)
    source = load(name, label="outcome", site_column="hospital", impute="median")
    assert (source.name, source.kind, source.classes) == ("ward", "table", ("ill", "well"))
    assert source.features == ("age", "colour=blue", "colour=red")
    nan = np.nan
    expected = [[30, 0, 1], [40.5, nan, nan], [nan, 1, 0], [-1000, 0, 1]]
    np.testing.assert_array_equal(source.x, np.array(expected, np.float32))
    assert source.sites is not None
    assert source.sites.tolist() == ["B", "A", "B", "A"]
    refused(lambda: load(name, label="outcome"), "row 2, column 'colour=blue' is NaN; give --impute")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_csv_of_other_separators_and_a_byte_order_mark(tmp_path: Path, separator: str) -> None:
    text = "\ufeffa,label\n1,x\n2,y\n3,x\n4,y\n".replace(",", separator)
    assert load(write(tmp_path / "a.csv", text)).x[:, 0].tolist() == [1, 2, 3, 4]


@given(
    st.lists(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2, max_size=2), min_size=4)
)
def test_csv_numbers_survive(tmp_path_factory: pytest.TempPathFactory, rows: list[list[float]]) -> None:
    lines = [f"{a!r},{i % 2},{b!r}" for i, (a, b) in enumerate(rows)]
    source = load(write(tmp_path_factory.getbasetemp() / "h.csv", "\n".join(["a,label,b", *lines])))
    assert source.x.tolist() == rows


MANY = "c,label\n" + "\n".join(f"t{i},{i % 2}" for i in range(21))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "has no column 'label' (--label); its columns are a, b"),
        ("", "is empty"),
        ("a,label\n", "is empty"),
        ("a,label\n1,x\n2\n", "row 2 has 1 values; the header names 2 columns"),
        ("a,a,label\n1,1,x\n", "two columns named 'a'"),
        ("a,label\n1,x\n2,NA\n", "row 2 has no value in column 'label'"),
        ("a,label\n1,x\n,y\n3,x\n4,y\n", "row 2, column 'a' is NaN; give --impute mean, median or zero"),
        ("a,label\n1,x\n12;5,y\n", "row 2, column 'a': '12;5' is no number; the column also holds numbers"),
        (MANY, "row 1, column 'c': 't0' is no number; it has 21 different texts (at most 20): drop or encode"),
        ("a,b,label\n,1,x\nNA,2,y\n", "column 'a' has no value at all: drop it"),
        ("label\nx\ny\n", "no column left for features"),
        ("a,label\n1,x\ninf,y\n3,x\n4,y\n", "row 2, column 'a' is infinite"),
        ('a,label\n"1,x\n', "cannot be read as a .csv"),
    ],
)
def test_wrong_csv(tmp_path: Path, text: str, words: str) -> None:
    refused(lambda: load(write(tmp_path / "a.csv", text)), words)


def test_csv_without_the_named_site_column_or_not_utf8(tmp_path: Path) -> None:
    name = write(tmp_path / "a.csv", "a,label\n1,x\n2,y\n")
    refused(lambda: load(name, site_column="ward"), "has no column 'ward' (--site-column); its columns are a, label")
    Path(name).write_bytes(b"a,label\n\xff,x\n")
    refused(lambda: load(name), "in UTF-8")


# folders


def test_image_folder_is_sized_by_its_first_image_and_sorted(tmp_path: Path) -> None:
    for i in range(2):
        picture(tmp_path / "b" / f"{i}.png", 200, (128, 96))
        picture(tmp_path / "a" / f"{i}.BMP", 100 + i, (128, 96))
    (tmp_path / "a" / "notes.txt").write_text("no image")
    source = load(str(tmp_path))
    assert (source.name, source.kind, source.x.shape) == (tmp_path.name, "image", (4, 1, 48, 64))
    assert source.x[:, 0, 0, 0].tolist() == [100, 101, 200, 200]
    assert (source.classes, source.y.tolist(), source.test) == (("a", "b"), [0, 0, 1, 1], None)
    assert load(str(tmp_path), image_size=8).x.shape == (4, 1, 8, 8)


def test_image_folder_with_official_test_in_colour(tmp_path: Path) -> None:
    for part in ("train", "test"):
        picture(tmp_path / part / "cat" / "1.png", (255, 0, 7), mode="RGB")
        picture(tmp_path / part / "dog" / "1.png", 9)
    source = load(str(tmp_path))
    assert source.x[:, :, 0, 0].tolist() == [[255, 0, 7], [9, 9, 9]] * 2
    assert source.test is not None
    assert source.test.tolist() == [False, False, True, True]


def test_images_of_16_bits_keep_their_high_byte(tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(2):
            Image.fromarray(np.full((4, 4), 51200, np.uint16)).save(tmp_path / label / f"{i}.png")
    assert (load(str(tmp_path)).x == 200).all()


def test_wrong_image_folders(tmp_path: Path) -> None:
    refused(lambda: load(str(tmp_path)), "holds neither .npz files nor folders, named for classes")
    for i in range(2):
        picture(tmp_path / "a" / f"{i}.png", 1)
    refused(lambda: load(str(tmp_path)), "has one class ('a')")
    whole = (tmp_path / "a" / "0.png").read_bytes()
    (tmp_path / "a" / "1.png").write_bytes(whole[:-30])
    refused(lambda: load(str(tmp_path)), "1.png is no readable image")
    (tmp_path / "a" / "1.png").write_bytes(b"junk")
    refused(lambda: load(str(tmp_path)), "1.png is no readable image")


def test_train_and_test_npz(tmp_path: Path) -> None:
    save(tmp_path / "train.npz", x=X, y=Y)
    save(tmp_path / "test.npz", x=X[:4], y=Y[:4])
    source = load(str(tmp_path))
    assert source.test is not None
    assert source.test.sum() == 4
    save(tmp_path / "test.npz", x=X[:4, :2], y=Y[:4])
    refused(lambda: load(str(tmp_path)), "the files' x differ in shape: (2,) and (3,)")


def divided(folder: Path, clients: int, write_one: Callable[..., Any]) -> None:
    for k in range(clients):
        write_one(folder / "train" / f"{k}.npz", x=X + 100 * k, y=Y)
        write_one(folder / "test" / f"{k}.npz", x=X[:2] + 100 * k, y=Y[:2])


def test_divided_clients_come_back_as_they_were(tmp_path: Path) -> None:
    divided(tmp_path, 11, save)
    source = load(str(tmp_path))
    assert source.fingerprint == load_federated(tmp_path).fingerprint
    drawn = draw(source, "site", key=Key.root(0), min_per_client=1)
    assert drawn.names == tuple(str(k) for k in range(11))
    for k in range(11):
        assert (source.x[drawn.test[k]] == X[:2] + 100 * k).all()
        assert len(drawn.train[k]) + len(drawn.validation[k]) == 8
    (tmp_path / "test" / "10.npz").unlink()
    refused(lambda: load(str(tmp_path)), "client 10 needs both train/10.npz and test/10.npz")
    refused(lambda: load_federated(tmp_path / "none"), "has no train/0.npz and test/0.npz")


def test_pickled_clients_are_refused_and_the_advised_line_converts_them(tmp_path: Path) -> None:
    divided(tmp_path, 2, lambda path, **d: (path.parent.mkdir(exist_ok=True), np.savez_compressed(path, data=d)))
    refused(lambda: load(str(tmp_path)), "never unpickled; for a PFLlib folder, run there once", "--data plain", PLAIN)
    assert PLAIN in (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    code = PLAIN.removeprefix('python -c "').removesuffix('"')
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert len(load(str(tmp_path / "plain")).y) == 20


# sets with a name that are not inside a package


def fashion_folder(folder: Path) -> dict[str, bytes]:
    images, labels = np.arange(20 * 4, dtype=np.uint8).reshape(20, 2, 2), np.arange(20, dtype=np.uint8) % 10
    raw = dict(zip(FASHION, map(idx, (images, labels, images[:10], labels[:10])), strict=True))
    for name, content in raw.items():
        (folder / f"{name}-ubyte.gz").write_bytes(gzip.compress(content))
    return raw


def test_fashion_from_a_folder(tmp_path: Path) -> None:
    fashion_folder(tmp_path)
    source = load("fashion-mnist", path=tmp_path)
    assert (source.x.shape, source.x.dtype, source.pixel_max) == ((30, 1, 2, 2), np.uint8, 255)
    assert source.test is not None
    assert source.test.tolist() == [False] * 20 + [True] * 10
    (tmp_path / f"{FASHION[3]}-ubyte.gz").unlink()
    refused(lambda: load("fashion-mnist", path=tmp_path), "has no t10k-labels-idx1-ubyte.gz", "all four")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda raw: gzip.compress(raw[:-1]), "does not fit its"),
        (lambda raw: gzip.compress(raw + b"1"), "does not fit its"),
        (lambda raw: gzip.compress(b"\0\0\x0d\3" + raw[4:]), "is no idx file of bytes: it starts with 00000d03"),
        (lambda raw: gzip.compress(raw[:6]), "is no idx file of bytes"),
        (lambda raw: gzip.compress(b""), "it starts with nothing"),
        (lambda raw: gzip.compress(raw)[:-9], "is damaged"),
        (lambda raw: raw, "is damaged"),
    ],
)
def test_damaged_idx(tmp_path: Path, spoil: Callable[[bytes], bytes], words: str) -> None:
    raw = fashion_folder(tmp_path)[FASHION[0]]
    (tmp_path / f"{FASHION[0]}-ubyte.gz").write_bytes(spoil(raw))
    refused(lambda: load("fashion-mnist", path=tmp_path), f"{FASHION[0]}-ubyte.gz", words)


def test_fashion_from_debian() -> None:
    if sources._debian_folder("dataset-fashion-mnist") is None:
        pytest.skip("needs Debian's dataset-fashion-mnist")
    source = load("fashion-mnist")
    assert (source.x.shape, source.x.dtype) == ((70000, 1, 28, 28), np.uint8)
    assert source.test is not None
    assert (source.test.sum(), source.test[60000:].all()) == (10000, True)
    assert (np.bincount(source.y) == 7000).all()
    assert source.classes[source.y[0]] == "Ankle boot"


def test_without_dpkg_and_hub_all_ways_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "datasets", None)
    ways = ("apt install dataset-fashion-mnist", "--data-path FOLDER", "unalike[hub]")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    refused(lambda: load("fashion-mnist"), "was not found here", *ways)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    refused(lambda: load("fashion-mnist"), "HF_HUB_OFFLINE is set", *ways)
    refused(lambda: load("cifar-10"), "binary version of cifar-10", "unalike[hub]")


@pytest.mark.parametrize(("name", "label"), [("cifar-10", "label"), ("cifar-100", "fine_label")])
def test_hub(monkeypatch: pytest.MonkeyPatch, name: str, label: str) -> None:
    class Part(dict[str, Any]):
        features = {label: SimpleNamespace(names=["cat", "dog"])}  # noqa: RUF012

    part = Part({"img": [Image.new("RGB", (32, 32), (i, 0, 0)) for i in range(4)], label: [0, 1, 0, 1]})
    hub: Any = ModuleType("datasets")
    asked = []
    hub.load_dataset = lambda repository: asked.append(repository) or {"train": part, "test": part}
    monkeypatch.setitem(sys.modules, "datasets", hub)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    source = load(name)
    assert asked == [f"uoft-cs/{name.replace('-', '')}"]
    assert (source.x.shape, source.x[3, 0, 0, 0], source.classes) == ((8, 3, 32, 32), 3, ("cat", "dog"))

    def offline(repository: str) -> None:
        raise ConnectionError("no route")

    hub.load_dataset = offline
    refused(lambda: load(name), "could not be had from the hub (ConnectionError)")


@pytest.mark.parametrize(("name", "labels"), [("cifar-10", 1), ("cifar-100", 2)])
def test_cifar_binary_version(tmp_path: Path, name: str, labels: int) -> None:
    stems = ["train", "test"] if labels == 2 else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    rows = np.zeros((4, labels + 3072), np.uint8)
    rows[:, labels - 1], rows[:, labels] = [0, 1, 0, 1], [5, 6, 7, 8]
    for stem in stems:
        (tmp_path / stem).touch()
    refused(lambda: load(name, path=tmp_path), "pickled files, which are never unpickled; get the binary version")
    for stem in stems:
        (tmp_path / f"{stem}.bin").write_bytes(rows.tobytes())
    source = load(name, path=tmp_path)
    assert (source.x.shape, source.name) == ((4 * len(stems), 3, 32, 32), name)
    assert source.x[:4, 0, 0, 0].tolist() == [5, 6, 7, 8]
    assert source.y[:4].tolist() == [0, 1, 0, 1]
    assert source.test is not None
    assert source.test.sum() == 4
    (tmp_path / f"{stems[0]}.bin").write_bytes(rows.tobytes()[:-1])
    refused(lambda: load(name, path=tmp_path), "are no whole images of")
    refused(lambda: load(name, path=tmp_path / "none"), "is no folder")


def test_cifar_from_image_folders(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            picture(tmp_path / part / label / "1.png", (1, 2, 3), (32, 32), "RGB")
    assert load("cifar-10", path=tmp_path).x.shape == (4, 3, 32, 32)


# Fewer rows


def test_rows_are_drawn_without_replacement_and_keep_their_order() -> None:
    wine = load("wine")
    drawn = [wine.sample(50, (Key.root(seed) / "rows").numpy()) for seed in (0, 0, 1)]
    assert [len(rows) for rows in drawn] == [50, 50, 50]
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] != drawn[2]).any()
    assert drawn[0].tolist() == sorted(set(drawn[0].tolist()))
    assert wine.sample(178, Key.root(0).numpy()).tolist() == list(range(178))


def test_every_row_is_drawn_as_often() -> None:
    """5 of 8 rows in 2000 draws: each 1250 times (σ = 21.7)."""
    source, seen, rng = Source("s", "table", X, Y, ("a", "b")), np.zeros(8), Key.root(3).numpy()
    for _ in range(2000):
        seen[source.sample(5, rng)] += 1
    assert (abs(seen - 1250) < 4.5 * 21.7).all(), seen


def test_an_official_test_set_and_sites_stay_with_their_rows() -> None:
    test, sites = np.array([False] * 4 + [True] * 4), np.array(list("abcdefgh"))
    source = Source("s", "table", X, Y, ("a", "b"), test=test, sites=sites)
    found = source.take(source.sample(3, Key.root(0).numpy()))
    assert found.test is not None
    assert found.sites is not None
    assert (len(found.y), found.test.sum(), list(found.sites[-4:])) == (7, 4, list("efgh"))
    assert [X["abcdefgh".index(site)].tolist() for site in found.sites] == found.x.tolist()


@pytest.mark.parametrize("rows", [1, 179, 0, -3])
def test_rows_that_cannot_be_drawn(rows: int) -> None:
    refused(lambda: load("wine").sample(rows, Key.root(0).numpy()), f"--rows {rows} cannot be drawn: wine has 178 rows")


def test_rows_beside_an_official_test_set_are_told() -> None:
    source = Source("s", "table", X, Y, ("a", "b"), test=Y == 1)
    refused(lambda: source.sample(5, Key.root(0).numpy()), "--rows 5 cannot be drawn: s has 4 rows beside its official")


def test_a_federation_divides_the_rows_that_were_drawn() -> None:
    """Others for another seed, and none of those that were left out."""
    keys: dict[str, Any] = {"rows": 90, "clients": 2, "partition": "iid", "models": ["mlp-5"]}
    one, again, other = (federation("wine", seed=seed, **keys) for seed in (0, 0, 1))
    used = [sorted(np.concatenate([f.rows(c, p) for c in (0, 1) for p in PARTS])) for f in (one, again, other)]
    assert [len(set(rows)) for rows in used] == [90, 90, 90]
    assert used[0] == used[1] != used[2]
    assert one.source.fingerprint == other.source.fingerprint == load("wine").fingerprint
    assert one.keys.get("rows") is None  # the partition says it


def test_rows_of_a_partition_in_a_file_are_the_files(tmp_path: Path) -> None:
    federation("wine", rows=90, clients=2, partition="iid", models=["mlp-5"]).partition.save(tmp_path / "p.npz")
    given = f"file:{tmp_path / 'p.npz'}"
    assert sum(len(f.train[0]) for f in [federation("wine", partition=given, models=["mlp-5"]).partition]) < 50
    refused(lambda: federation("wine", partition=given, rows=90, models=["mlp-5"]), "leave --rows out")


def test_a_run_on_few_rows_is_reopened_with_them(tmp_path: Path) -> None:
    """Also where the federation was made by hand with another seed than the run's."""
    import unalike

    few = federation("wine", rows=90, clients=2, partition="iid", models=["mlp-5"], seed=7)
    unalike.run("standalone", few, out=tmp_path / "r", rounds=1, engine="serial", report=False)
    assert unalike.load(tmp_path / "r", client=1).predict(few.source.x[:2]).shape == (2, 3)
