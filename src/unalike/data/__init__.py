"""Data: what a `Source` is (here), where sources come from (`sources`) and which client has which rows (`partition`).

Nothing is filled in or scaled here. A missing value stays NaN until a client fills it from its own training rows, and
pixels keep their range (`pixel_max`), so no statistic of a test row or of another client can leak.
"""

from __future__ import annotations

import hashlib
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError

Array = NDArray[Any]
Kind = Literal["image", "table", "window", "text", "vqa"]
Impute = Literal["mean", "median", "zero"]

X_NAMES, Y_NAMES, SITE_NAMES = ("x", "X", "images", "data"), ("y", "Y", "labels", "target"), ("site", "sites", "slide")
GROUP_NAMES = ("group", "groups", "slide")
UNGROUPED = "none"
"""The group column of who wants none."""
PLAIN = (
    """python -c "import numpy as np, pathlib as p; [(p.Path('plain', d).mkdir(parents=True, exist_ok=True), """
    """np.savez_compressed(p.Path('plain', f), **np.load(f, allow_pickle=True)['data'].item())) """
    """for d in ('train', 'test') for f in p.Path(d).glob('*.npz')]\""""
)  # turns PFLlib's pickled files into plain ones, in the environment that wrote them


@dataclass(frozen=True, eq=False)
class Source:
    """Labelled rows, sound by construction: an `InputError` says what is wrong with those that are not.

    Whether they are enough to learn from is asked of all rows together (`require_classes`), not of one site's share.

    x: image uint8 or float32 (n, channels, height, width), table float32 (n, features), window float32 (n, channels,
    time), text and vqa uint8 (n, bytes), see `data.text` and `data.vqa`; y: int64 (n,) in 0..K-1; test: bool (n,), the
    rows of the official test set; sites: str (n,), each row's natural client; groups: str (n,), what each row was cut
    from or measured on, which is never to lie in two of training, validation and test; pixel_max: the
    value of an image that is white; impute: how a client is to fill NaN, which only tables and windows may have, and
    only if this is given.
    """

    name: str
    kind: Kind
    x: Array
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    test: NDArray[np.bool_] | None = None
    sites: NDArray[np.str_] | None = None
    groups: NDArray[np.str_] | None = None
    features: tuple[str, ...] = ()
    pixel_max: float = 1.0
    impute: Impute | None = None
    simulated_shift: str = ""
    """What the images were put through, each client's in its own way, see `data.shift`."""
    images: NDArray[np.uint8] | None = None
    """Of kind "vqa" only, (m, 3, height, width): what the rows' questions are about, by number."""
    places: NDArray[np.str_] | None = None
    """(n,) file and row that each row comes from, for messages, where there are such."""

    def __post_init__(self) -> None:
        same_length(self.name, x=self.x, y=self.y, test=self.test, sites=self.sites, groups=self.groups)
        same_length(self.name, x=self.x, places=self.places)
        if self.test is not None and self.test.all() | ~self.test.any():
            raise InputError(f"{self.name}: `test` must mark some rows and not all; it marks {self.test.sum()}")
        if self.impute not in (None, *get_args(Impute)):
            raise InputError(f"--impute {self.impute} is unknown: mean, median or zero")
        if self.x.dtype.kind == "f":
            self._check_finite()

    def _check_finite(self) -> None:
        bad = np.isinf(self.x) if self.impute and self.kind != "image" else ~np.isfinite(self.x)
        if not bad.any():
            return
        row, *rest = (int(i) for i in np.argwhere(bad)[0])
        place = f"column {rest[0] + 1}" if self.kind == "table" else f"position {tuple(i + 1 for i in rest)}"
        if self.features:
            place = f"column {self.features[rest[0]]!r}"
        if np.isnan(self.x[(row, *rest)]):
            hint = "images cannot miss pixels" if self.kind == "image" else "give --impute mean, median or zero"
            raise InputError(f"{self.name}: row {row + 1}, {place} is NaN; {hint}")
        raise InputError(f"{self.name}: row {row + 1}, {place} is infinite as float32; correct or drop it")

    def require_classes(self) -> None:
        """Raise `InputError` unless the labels are at least 2 classes, of 2 rows each on average; of texts all are."""
        if self.kind == "text":
            return
        present = np.unique(self.y)
        if len(present) < 2:
            only = f"one class ({self.classes[present[0]]!r})" if len(present) else "no rows"
            raise InputError(f"{self.name} has {only}: at least 2 classes are needed")
        if 2 * len(present) > len(self.y):
            raise InputError(
                f"{self.name} has {len(present)} different labels in {len(self.y)} rows: labels must be classes with "
                "rows to learn from, not measurements or identifiers"
            )

    @cached_property
    def strata(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """What rows are divided by, (n,), and its names: the classes, of texts the tasks."""
        if self.kind != "text":
            return self.y, self.classes
        if self.sites is None:
            return np.zeros(len(self.y), np.int64), ("",)
        names, task = np.unique(self.sites, return_inverse=True)
        return task.astype(np.int64), tuple(map(str, names))

    def sample(self, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """The row numbers, ascending, of so many rows drawn at random; an official test set stays whole beside them."""
        free = np.arange(len(self.y)) if self.test is None else np.flatnonzero(~self.test)
        if not 2 <= rows <= len(free):
            beside = "" if self.test is None else " beside its official test set"
            raise InputError(f"--rows {rows} cannot be drawn: {self.name} has {len(free)} rows{beside}; give 2 to that")
        kept = np.zeros(len(self.y), bool) if self.test is None else self.test.copy()
        kept[rng.choice(free, rows, replace=False)] = True
        return np.flatnonzero(kept)

    def take(self, rows: NDArray[np.int64]) -> Source:
        """A source of these rows only."""
        per_row = {name: getattr(self, name) for name in ("x", "y", "test", "sites", "groups", "places")}
        return replace(self, **{name: array[rows] for name, array in per_row.items() if array is not None})

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of x, y, test, images and the names of the classes."""
        more = [array for array in (self.test, self.images) if array is not None]
        return digest([self.x, self.y, *more, np.array(self.classes)])


def digest(arrays: Iterable[Array]) -> str:
    """SHA-256 (hex) over dtype, shape and little-endian bytes of each array, in order."""
    sha = hashlib.sha256()
    for array in arrays:
        plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        sha.update(f"{plain.dtype.str}{plain.shape}".encode() + plain.tobytes())
    return sha.hexdigest()


def same_length(where: str, **arrays: Array | None) -> None:
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise InputError(f"{where}: all arrays must have one entry per row, but {listed}")


def _labels(raw: Array, names: Sequence[str] | None, where: str) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    """Classes of labels: numbers in their order, texts in alphabetical order, or `names` of the numbers 0..K-1."""
    raw = raw[:, 0] if raw.ndim == 2 and raw.shape[1] == 1 else raw
    if raw.ndim != 1 or raw.dtype.kind not in "biufUS":
        raise InputError(f"{where}: labels must be (n,) integers or texts, not {raw.dtype} of shape {raw.shape}")
    if raw.dtype.kind == "f":
        for row in np.flatnonzero(~np.isfinite(raw) | (raw != np.floor(raw)))[:1]:
            raise InputError(f"{where}: the label of row {row + 1} is {raw[row]}; labels must be integers or texts")
        raw = raw.astype(np.int64)
    if raw.dtype.kind == "S":
        raw = np.char.decode(raw, "utf-8", "replace")
    if raw.dtype.kind == "U" and all(re.fullmatch(r"0|-?[1-9]\d{0,17}", text) for text in np.unique(raw)):
        raw = raw.astype(np.int64)
    if names is None:
        values, y = np.unique(raw, return_inverse=True)
        return y.astype(np.int64), tuple(str(v) for v in (values.astype(int) if raw.dtype.kind == "b" else values))
    if raw.dtype.kind not in "biu" or (len(raw) and not 0 <= raw.min() <= raw.max() < len(names)):
        raise InputError(f"{where}: with {len(names)} names in `classes`, labels must be integers 0..{len(names) - 1}")
    return raw.astype(np.int64), tuple(str(n) for n in names)


def _layout(x: Array, where: str) -> tuple[Kind, Array]:
    """What `x` is, told by its shape, in this package's layout and precision."""
    kinds: dict[int, Kind] = {2: "table", 3: "window", 4: "image"}
    if x.dtype.kind not in "biuf" or x.ndim not in kinds or 0 in x.shape:
        raise InputError(
            f"{where}: x is {x.dtype} of shape {x.shape}; it must be numbers: (n, features), (n, channels, time), "
            "uint8 (n, height, width) or (n, channels, height, width)"
        )
    if x.ndim == 3 and x.dtype == np.uint8:
        x = x[:, None]
    elif x.ndim == 4 and x.shape[1] not in (1, 3):
        if x.shape[3] in (1, 3):
            x = np.ascontiguousarray(x.transpose(0, 3, 1, 2))
        elif x.shape[1] > x.shape[3]:
            raise InputError(f"{where}: images of shape {x.shape[1:]} must be (channels, height, width)")
    kind = kinds[x.ndim]
    if kind == "image" and x.dtype.kind in "iu" and x.min() >= 0 and x.max() <= 255:
        return kind, x.astype(np.uint8)
    with np.errstate(over="ignore"):
        return kind, x.astype(np.float32)


def source_of(
    name: str, x: Array, labels: Array, classes: Sequence[str] | None = None, *, white: float | None = None, **more: Any
) -> Source:
    """The source of arrays as they come from a file; `white` is `pixel_max`, `classes` name the numbers 0..K-1."""
    kind, x = _layout(x, name)
    y, classes = _labels(labels, classes, name)
    return Source(name, kind, x, y, classes, pixel_max=white or (255.0 if x.dtype == np.uint8 else 1.0), **more)


def read_npz(file: Path) -> dict[str, Array]:
    """All arrays of an .npz file. Python objects in it are refused, never unpickled."""
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file} is no whole .npz file: write one with np.savez(file, x=..., y=...)")
    with np.load(file, allow_pickle=False) as npz:
        try:
            return {key: npz[key] for key in npz.files}
        except ValueError as error:
            remedy = "save plain arrays of numbers or texts"
            if npz.files == ["data"]:
                remedy = f"for a PFLlib folder, run there once, then give --data plain: {PLAIN}"
            raise InputError(f"{file} holds Python objects, which are never unpickled; {remedy}") from error
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise InputError(f"{file} is damaged ({error}): write or copy it again") from error


class Piece(NamedTuple):
    """An .npz file, all of whose rows are official test rows (or not) and of one site, where that is known."""

    file: Path
    test: bool | None = None
    site: str | None = None


def _rows(piece: Piece, site_column: str | None, group_column: str | None) -> dict[str, Array | None]:
    arrays = read_npz(piece.file)

    def pick(names: Sequence[str], needed: bool = True) -> Array | None:
        found = next((arrays[n] for n in names if n in arrays and arrays[n].ndim), None)
        if found is None and needed:
            raise InputError(f"{piece.file} has no array {names[0]}; it has {', '.join(arrays) or 'nothing'}")
        return found

    x, y = pick(X_NAMES), pick(Y_NAMES)
    same_length(str(piece.file), x=x, y=y)
    size = 0 if y is None else len(y)
    test = pick(["test"], needed=False) if piece.test is None else np.full(size, piece.test)
    if test is not None and (test.dtype.kind not in "biu" or not np.isin(test, (0, 1)).all()):
        raise InputError(f"{piece.file}: `test` must be true or false for each row, not {test.dtype}")
    site_names = [site_column] if site_column else SITE_NAMES
    site = np.full(size, piece.site) if piece.site else pick(site_names, needed=bool(site_column))
    group_names = [group_column] if group_column else GROUP_NAMES
    group = None if group_column == UNGROUPED else pick(group_names, needed=bool(group_column))
    optional = {"classes": pick(["classes"], needed=False), "white": arrays.get("pixel_max")}
    return {"x": x, "y": y, "test": test, "site": site, "group": group, **optional}


def npz_source(
    name: str,
    pieces: Sequence[Piece],
    impute: Impute | None = None,
    site_column: str | None = None,
    group_column: str | None = None,
) -> Source:
    """One source of several files: x and y under `X_NAMES` and `Y_NAMES`, and the optional arrays of docs/data.md."""
    rows = [_rows(piece, site_column, group_column) for piece in pieces]
    joined: dict[str, Array | None] = {}
    for key in ("x", "y", "test", "site", "group"):
        parts = [array for r in rows if (array := r[key]) is not None]
        try:
            joined[key] = np.concatenate(parts) if len(parts) == len(rows) else None
        except ValueError as error:
            shapes = sorted({str(part.shape[1:]) for part in parts})
            raise InputError(f"{name}: the files' {key} differ in shape: {' and '.join(shapes)}") from error
    x, y, test, site, group = joined.values()
    assert x is not None
    assert y is not None
    classes, white = rows[0]["classes"], rows[0]["white"]
    return source_of(
        name,
        x,
        y,
        None if classes is None else [str(c) for c in classes],
        white=None if white is None else float(white),
        test=None if test is None else test.astype(bool),
        sites=None if site is None else site.astype(str),
        groups=None if group is None else group.astype(str),
        impute=impute,
    )
