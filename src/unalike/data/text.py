"""Instructions with their answers: read from files and the hub, kept as bytes, handed to a model as its tokens.

A row has the fields `instruction`, `output` and, where several tasks are in one place, `task`; `category` and others
are passed over. In a `Source` of kind "text" x is uint8 (n, L), the instruction in UTF-8 filled up with zeros, y the
number of the answer among all different ones, and each row's site is its task.
"""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..errors import InputError
from ..pretrained import Adapted, tokeniser
from ..tree import Batch
from . import Array, Source
from .tables import columns

SUFFIXES = (".json", ".jsonl")
NEEDED = ("instruction", "output")
HUB = "hub:"
"""What the name of a data set of the Hugging Face hub begins with."""


class Row(NamedTuple):
    """An instruction, its answer, the task it belongs to, and whether it is of the official test set."""

    instruction: str
    output: str
    task: str
    test: bool


def source(name: str, rows: Sequence[Row]) -> Source:
    """The source of some rows; `InputError` where they are none."""
    if not rows:
        raise InputError(f"{name} holds no row: each has the fields {' and '.join(NEEDED)}")
    instructions, outputs, tasks, test = zip(*rows, strict=True)
    classes, y = np.unique(np.array(outputs, dtype=np.str_), return_inverse=True)
    return Source(
        name,
        "text",
        packed(instructions),
        y.astype(np.int64),
        tuple(map(str, classes)),
        test=np.array(test) if any(test) else None,
        sites=np.array(tasks, dtype=np.str_) if any(tasks) else None,
    )


def read_file(file: Path) -> Source:
    """The rows of a .json (a list), .jsonl (an object a line) or .csv file."""
    return source(file.stem, list(_rows(file, test=False)))


def is_text(table: Path) -> bool:
    """Whether a .csv file holds instructions, and not measurements."""
    return {*NEEDED} <= columns(table).keys()


def read_folder(folder: Path, name: str) -> Source | None:
    """The rows of all TASK.train.json and TASK.test.json of a folder, or of all its other .json and .jsonl files, each
    named for its task; None where there is no such file.

    Test rows are the official test set. Where a row names its task itself, that counts.
    """
    files = [f for f in sorted(folder.iterdir()) if f.suffix in SUFFIXES and not f.name.startswith(".")]
    if not files:
        return None
    rows: list[Row] = []
    for file in files:
        task, _, part = file.stem.rpartition(".")
        task, part = (task, part) if part in ("train", "test") and task else (file.stem, "train")
        rows += _rows(file, test=part == "test", task=task)
    return source(name, rows)


def read_hub(name: str) -> Source:
    """A data set of the hub, `hub:OWNER/NAME`: its splits train and, where there is one, test."""
    repository = name.removeprefix(HUB)
    if os.environ.get("HF_HUB_OFFLINE", "0") not in {"", "0"}:
        raise InputError(f"{name}: HF_HUB_OFFLINE is set: unset it, or give a .jsonl file")
    try:
        parts = importlib.import_module("datasets").load_dataset(repository)
    except ImportError as error:
        raise InputError("datasets is not installed: pip install 'unalike[hub]'") from error
    except Exception as error:  # the hub's client raises whatever its transport raises
        raise InputError(f"{name} could not be had from the hub ({type(error).__name__})") from error
    rows: list[Row] = []
    for part in parts:
        if part in ("train", "test"):
            found = enumerate(parts[part], 1)
            rows += [_row(row, f"{name}: {part}, row {i}", part == "test", "") for i, row in found]
    return source(repository, rows)


def _rows(file: Path, test: bool, task: str = "") -> Iterator[Row]:
    for place, fields in objects(file):
        yield _row(fields, f"{file}: {place}", test, task)


def objects(file: Path, needed: str = " and ".join(NEEDED)) -> Iterable[tuple[str, Any]]:
    """What a file holds, each with its place in it; `needed` says in messages which fields rows have."""
    if file.suffix.lower() == ".csv":
        found = columns(file)
        names = [name for name in (*NEEDED, "task") if name in found]
        values = zip(*(found[name] for name in names), strict=True)
        return [(f"row {i}", dict(zip(names, row, strict=True))) for i, row in enumerate(values, 1)]
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".jsonl":
            lines = enumerate(text.splitlines(), 1)
            return [(f"line {i}", _parsed(line, f"{file}: line {i}")) for i, line in lines if line.strip()]
        rows = _parsed(text, str(file))
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is no text in UTF-8: {error}") from error
    if not isinstance(rows, list):
        raise InputError(f"{file} must be a list of rows with the fields {needed}")
    return [(f"row {i}", row) for i, row in enumerate(rows, 1)]


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{where} is not JSON: {error}") from None


def _row(fields: Any, where: str, test: bool, task: str) -> Row:
    if not isinstance(fields, Mapping):
        raise InputError(f"{where} is no object with the fields {' and '.join(NEEDED)}")
    for name in NEEDED:
        value = fields.get(name)
        if not isinstance(value, str) or not value.strip():
            has = ", ".join(map(str, fields)) or "nothing"
            what = f"has no field {name!r}" if name not in fields else f"has no text in the field {name!r}"
            raise InputError(f"{where} {what}; it has {has}")
        if "\0" in value:
            raise InputError(f"{where}: the field {name!r} holds a zero byte: remove it")
    return Row(fields["instruction"], fields["output"], str(fields.get("task") or task), test)


def only_own_answers(source: Source) -> Source:
    """The same rows without the answers that only other rows had."""
    used, y = np.unique(source.y, return_inverse=True)
    return replace(source, y=y.astype(np.int64), classes=tuple(source.classes[i] for i in used))


def packed(texts: Sequence[str]) -> Array:
    """Texts as uint8 (n, L): UTF-8, filled up with zeros."""
    encoded = [text.encode() for text in texts]
    rows = np.zeros((len(encoded), max(map(len, encoded), default=0)), np.uint8)
    for row, text in zip(rows, encoded, strict=True):
        row[: len(text)] = np.frombuffer(text, np.uint8)
    return rows


def unpacked(rows: Array) -> list[str]:
    """The inverse of `packed`."""
    return [np.ascontiguousarray(row).tobytes().rstrip(b"\0").decode() for row in rows]


def read_instructions(path: Path) -> list[str]:
    """Instructions without answers: the lines of a .txt file, or the field `instruction` of a .json or .jsonl file."""
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    if path.suffix.lower() in SUFFIXES:
        rows = [
            (place, fields.get("instruction") if isinstance(fields, Mapping) else None)
            for place, fields in objects(path)
        ]
        for place, found in rows:
            if not isinstance(found, str):
                raise InputError(f"{path}: {place} has no text in the field 'instruction'")
        return [str(found) for _, found in rows]
    return [line for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def prompts(model: str, rows: Array) -> Array:
    """Instructions, uint8 (n, L), as the prompt tokens (n, T) of the language model called `model`."""
    adapted = Adapted.read(model)
    return tokeniser(adapted.model).prompts(unpacked(rows), adapted.length).numpy()


def tokens(model: str, source: Source, rows: Array) -> Batch:
    """Rows of a source as a language model takes them: prompts "x" (n, T), answers "y" (n, R)."""
    answers = tokeniser(Adapted.read(model).model).answers([source.classes[i] for i in source.y[rows]])
    return {"x": torch.from_numpy(prompts(model, source.x[rows])), "y": answers}
