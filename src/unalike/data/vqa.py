"""Questions about images with their answers: read from folders, kept as bytes, handed to a model as its tokens.

A row has the fields `answer` and one or both of `image`, a path from the folder, and `question`; where several sites
are in one place `site`, and where rows must stay in one part `group`. Others are passed over. In a `Source` of kind
"vqa" x is uint8 (n, 4 + L): the number of the row's image among `images` as a little-endian int32, -1 where it has
none, and its question in UTF-8 filled up with zeros; y is the number of the answer among all different ones.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import InputError
from ..multimodal import MODALITIES, Foundation, Reader, reader
from ..tree import Batch
from . import UNGROUPED, Array, Source, text
from .images import decode, longer_side
from .resize import resized

Ints = NDArray[np.int64]

FIELDS = "answer and one or both of image and question"
PARTS = ("train", "test")
DECLARED = "answers.txt"
"""File of the answers that there may be, one a line; NAME.answers.txt goes before it for the rows of NAME."""
LARGEST = 384
"""Pixels a side of images that are larger, where nobody says a size: what ViLT sees."""
NUMBER = 4
"""Bytes of an image's number."""


class Row(NamedTuple):
    """A question about an image, and where it stands."""

    image: Path | None
    question: str
    answer: str
    site: str
    group: str
    test: bool
    place: str
    """File and row, for messages."""


def files(folder: Path) -> list[Path]:
    """The .json and .jsonl files of a folder, where the first of them holds such rows; else none."""
    found = [f for f in sorted(folder.iterdir()) if f.suffix in text.SUFFIXES and not f.name.startswith(".")]
    return found if found and asks(found[0]) else []


def asks(file: Path) -> bool:
    """Whether the first row of a file is a question about an image."""
    first = next((fields for _, fields in text.objects(file)), None)
    return isinstance(first, Mapping) and "answer" in first and bool({"image", "question"} & first.keys())


def read(
    found: Sequence[Path], folder: Path, name: str, side: int | None = None, group_column: str | None = None
) -> Source:
    """The rows of some files; NAME.train.jsonl and NAME.test.jsonl say the part, and NAME is the site of rows that name
    none. Test rows are the official test set.

    Rows of one image, or of one `group`, are a group: it trains, validates or tests as a whole.

    Args:
        folder: what paths of images count from.
        side: pixels a side to which all images are brought; None: the longest side of any, at most `LARGEST`.
        group_column: "none" for rows that are split whatever their image; no other is known.

    Raises:
        InputError: naming file and row, what is wrong with it.
    """
    if group_column not in (None, UNGROUPED):
        raise InputError(
            f"--group-column {group_column}: questions have their groups in the field group: give {UNGROUPED}, or none"
        )
    rows = [row for file in found for row in _rows(file, folder)]
    if not rows:
        raise InputError(f"{name} holds no row: each has the fields {FIELDS}")
    pictures: dict[Path, str] = {}
    for row in rows:
        if row.image:
            pictures.setdefault(row.image, row.place)
    images = _pixels(pictures, side)
    place = {image: i for i, image in enumerate(pictures)}
    classes, y = np.unique(np.array([row.answer for row in rows], dtype=np.str_), return_inverse=True)
    test, sites = np.array([row.test for row in rows]), [row.site for row in rows]
    return Source(
        name,
        "vqa",
        packed([-1 if row.image is None else place[row.image] for row in rows], [row.question for row in rows]),
        y.astype(np.int64),
        tuple(map(str, classes)),
        test=test if test.any() else None,
        sites=np.array(sites, dtype=np.str_) if any(sites) else None,
        groups=None if group_column == UNGROUPED else _groups(rows),
        pixel_max=255.0,
        images=images,
        places=np.array([row.place for row in rows], dtype=np.str_),
    )


def unanswered(file: Path, sees: bool) -> tuple[list[str], Array, NDArray[np.bool_]]:
    """Rows of a .json or .jsonl file that need no answer: questions, images uint8 (n, 3, side, side), whether there is
    one (n,). Paths of images count from the file's folder.

    Args:
        sees: whether images are read at all.
    """
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    if file.suffix.lower() not in text.SUFFIXES:
        raise InputError(f"{file}: give a .jsonl or .json file whose rows have the fields image and question")
    found = [(f"{file}: {place}", fields) for place, fields in text.objects(file, FIELDS)]
    asked = [{"answer": "?", **fields} if isinstance(fields, Mapping) else fields for _, fields in found]
    rows = [_row(it, place, file.parent, "", "") for it, (place, _) in zip(asked, found, strict=True)]
    if not rows:
        raise InputError(f"{file} holds no row: each has one or both of image and question")
    pictures = {row.image: row.place for row in rows if row.image and sees}
    number, small = {image: i for i, image in enumerate(pictures)}, _pixels(pictures, None)
    pixels = np.zeros((len(rows), *small.shape[1:]), np.uint8)
    for i, row in enumerate(rows):
        if row.image in number:
            pixels[i] = small[number[row.image]]
    return [row.question for row in rows], pixels, np.array([row.image in number for row in rows])


def _groups(rows: Sequence[Row]) -> NDArray[np.str_] | None:
    """The group of each row, or its image, or the row itself; None where no two rows have anything in common."""
    named = [f"group {row.group}" if row.group else str(row.image or f"row {i}") for i, row in enumerate(rows)]
    return np.array(named, dtype=np.str_) if len({*named}) < len(named) else None


def _rows(file: Path, folder: Path) -> list[Row]:
    head, _, part = file.stem.rpartition(".")
    site, part = (head, part) if part in PARTS else (file.stem, "train")
    declared, listed = _declared(folder, site)
    found = [_row(fields, f"{file}: {place}", folder, site, part) for place, fields in text.objects(file, FIELDS)]
    for row in found:
        if declared and row.answer not in declared:
            some = ", ".join(list(declared)[:8])
            raise InputError(f"{row.place}: the answer {row.answer!r} is not in {listed}, which lists {some}")
    return found


def _declared(folder: Path, name: str) -> tuple[dict[str, None], Path]:
    """The answers that rows of `name` may have, none where no file says, and the file."""
    for file in (folder / f"{name}.{DECLARED}", folder / DECLARED):
        if file.is_file():
            listed = dict.fromkeys(line.strip() for line in file.read_text("utf-8-sig").splitlines() if line.strip())
            if not listed:
                raise InputError(f"{file} lists no answer: write one a line, or remove the file")
            return listed, file
    return {}, folder


def _row(fields: Any, place: str, folder: Path, site: str, part: str) -> Row:
    if not isinstance(fields, Mapping):
        raise InputError(f"{place} is no object with the fields {FIELDS}")
    said = {name: fields.get(name) for name in ("image", "question", "answer", "site", "group")}
    for name, value in said.items():
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise InputError(f"{place}: the field {name!r} is {value!r}: it must be a text, in quotes")
    stripped = {name: (value or "").strip() for name, value in said.items()}
    if not stripped["answer"]:
        raise InputError(
            f"{place} has no text in the field 'answer'; it has {', '.join(map(str, fields)) or 'nothing'}"
        )
    if not stripped["image"] and not stripped["question"]:
        raise InputError(f"{place} has neither an image nor a question: a row has the fields {FIELDS}")
    image = (folder / stripped["image"]).resolve() if stripped["image"] else None
    if image and not image.is_relative_to(folder.resolve()):
        raise InputError(f"{place}: the image {stripped['image']} lies outside of {folder}: give a path from there")
    own_site, group = stripped["site"] or site, stripped["group"]
    return Row(image, stripped["question"], stripped["answer"], own_site, group, part == "test", place)


def _pixels(pictures: Mapping[Path, str], side: int | None) -> Array:
    """Images as uint8 (m, 3, side, side), each with the place of a row that shows it."""

    def read_at(place: str, call: Any) -> Any:
        try:
            return call()
        except InputError as error:
            raise InputError(f"{place}: {error}") from error

    sides = [read_at(place, lambda f=file: longer_side(f)) for file, place in pictures.items()] if side is None else []
    side = side or min(LARGEST, max(sides, default=1))
    found = np.zeros((len(pictures), 3, side, side), np.uint8)
    for row, (file, place) in zip(found, pictures.items(), strict=True):
        row[:] = read_at(place, lambda f=file: decode(f, (side, side)))[0].transpose(2, 0, 1)
    return found


def packed(numbers: Sequence[int] | Ints, asked: Sequence[str]) -> Array:
    """Numbers of images, -1 for none, and questions as uint8 (n, 4 + L)."""
    heads = np.asarray(numbers, dtype="<i4").reshape(-1, 1).view(np.uint8)
    return np.concatenate([heads, text.packed(asked)], 1)


def numbers(x: Array) -> Ints:
    """(n,) the numbers of images that `packed` packed."""
    return np.ascontiguousarray(x[:, :NUMBER]).view("<i4")[:, 0].astype(np.int64)


def questions(x: Array) -> list[str]:
    """The questions that `packed` packed."""
    return text.unpacked(x[:, NUMBER:])


def only_used(source: Source) -> Source:
    """The same rows without the images and answers that no row has."""
    assert source.images is not None
    own = numbers(source.x)
    kept = np.unique(own[own >= 0])
    renumbered = np.where(own < 0, -1, np.searchsorted(kept, own))
    x = np.concatenate([packed(renumbered, [""] * len(own)), source.x[:, NUMBER:]], 1)
    return text.only_own_answers(replace(source, x=x, images=source.images[kept]))


def side_of(models: Iterable[str]) -> int:
    """The side of the images that some models take, 0 where none takes any; `InputError` where they differ."""
    sides = {reader(Foundation.read(name).model).side: name for name in models}
    seeing = {side: name for side, name in sides.items() if side}
    if len(seeing) > 1:
        told = " and ".join(f"{name} {side}x{side} pixels" for side, name in seeing.items())
        raise InputError(f"models see images of one size in a federation, but {told}: take models of one size")
    return next(iter(seeing), 0)


def sized(source: Source, side: int) -> Source:
    """The same rows with images of `side` pixels a side; with 0 there are no pixels."""
    images = source.images
    assert images is not None
    if images.shape[2:] == (side, side):
        return source
    small = np.zeros((*images.shape[:2], side, side), np.uint8)
    for start in range(0, len(images) if side else 0, 256):
        some = slice(start, start + 256)
        small[some] = np.rint(resized(images[some], side, side))
    return replace(source, images=small)


def require_readable(source: Source, rows: Ints, name: str, has: Collection[str], client: int) -> None:
    """Raise `InputError` that names a row which the model `name` cannot take, or of which nothing is left.

    Args:
        has: the modalities that the client has.
    """
    found = reader(Foundation.read(name).model)
    taken = {*has} & {*found.modalities}
    if not taken:
        raise InputError(
            f"client {client} has {' and '.join(has)} only, its model {name} takes {' and '.join(found.modalities)} "
            "only: change its modalities or its model"
        )
    shown, asked = numbers(source.x[rows]) >= 0, questions(source.x[rows])
    for row, is_shown, question in zip(rows, shown, asked, strict=True):
        if not ("image" in taken and is_shown) and not ("text" in taken and question):
            raise InputError(
                f"{_place(source, row)} has no {' and no '.join(sorted(taken))}, and client {client} with the model "
                f"{name} takes nothing else: leave the row out, or give it one"
            )
        length = len(found.ids(question)) if "text" in taken else 0
        if length > found.longest:
            raise InputError(
                f"{_place(source, row)}: the question has {length} tokens, and {name} takes {found.longest}: shorten it"
            )


def _place(source: Source, row: int) -> str:
    return f"{source.name}: row {row + 1}" if source.places is None else str(source.places[row])


def batch(read_by: Reader, source: Source, rows: Ints, answers: Ints, has: Collection[str] = MODALITIES) -> Batch:
    """Rows of a source as a model of images and questions takes them.

    Args:
        read_by: how the model reads.
        answers: ascending numbers of the classes that the model can answer.
        has: what of the rows is shown: "image", "text" or both.

    Returns:
        "x" int64 (n, T): tokens of the questions, filled up on the right, nothing else where there is none;
        "y" int64 (n,): the right answer's place among `answers`, -1 where it is none of them; and for a model that sees
        "image" uint8 (n, 3, side, side), zeros where there is none, with "pictured" bool (n,), whether there is one.
    """
    x, taken = source.x[rows], {*has} & {*read_by.modalities}
    asked = questions(x) if "text" in taken else [""] * len(rows)
    place = np.searchsorted(answers, source.y[rows]).clip(max=max(0, len(answers) - 1))
    known = answers[place] == source.y[rows] if len(answers) else np.zeros(len(rows), bool)
    found = {"x": read_by.questions(asked), "y": torch.from_numpy(np.where(known, place, -1))}
    if "image" not in read_by.modalities:
        return found
    assert source.images is not None
    number = numbers(x)
    shown = (number >= 0) & ("image" in taken)
    pixels = np.zeros((len(rows), *source.images.shape[1:]), np.uint8)
    pixels[shown] = source.images[number[shown]]
    return {**found, "image": torch.from_numpy(pixels), "pictured": torch.from_numpy(shown)}


def modalities(said: str, clients: int) -> dict[int, tuple[str, ...]]:
    """Client to what it has, of "3:text,4:image"; `InputError` for a client or a modality that there is not."""
    found: dict[int, tuple[str, ...]] = {}
    for part in filter(None, map(str.strip, said.split(","))):
        client, colon, listed = part.partition(":")
        has = tuple(dict.fromkeys(name.strip() for name in listed.split("+")))
        if not colon or not client.strip().isdecimal() or not {*has} <= {*MODALITIES}:
            raise InputError(
                f"--modalities {said}: {part!r} is wrong: write CLIENT:WHAT, WHAT one of {', '.join(MODALITIES)}, as "
                "in 3:text,4:image"
            )
        if int(client) >= clients:
            raise InputError(f"--modalities {said} names client {int(client)}; the clients are 0 to {clients - 1}")
        found[int(client)] = tuple(name for name in MODALITIES if name in has)
    return found
