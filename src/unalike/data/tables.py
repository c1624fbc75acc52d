"""Columns of a .csv file, and what texts and gaps in them mean."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import Array

MISSING = {"", "na", "n/a", "nan", "null"}
MOST_TEXTS = 20  # a text column with more different values is not one-hot encoded


def columns(file: Path) -> dict[str, list[str]]:
    """The columns of a .csv with a header line; the separator is a comma, semicolon or tab."""
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
        head = next(iter(lines), "")
        rows = [row for row in csv.reader(lines, delimiter=max(",;\t", key=head.count), strict=True) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file} cannot be read as a .csv in UTF-8: {error}") from error
    if len(rows) < 2:
        raise InputError(f"{file} is empty: a line of column names and rows of data are needed")
    header, *rows = [[value.strip() for value in row] for row in rows]
    for name in header:
        if header.count(name) > 1:
            raise InputError(f"{file} has two columns named {name!r}: rename one")
    for number, row in enumerate(rows, 1):
        if len(row) != len(header):
            raise InputError(f"{file}: row {number} has {len(row)} values; the header names {len(header)} columns")
    return dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))


def number(value: str) -> float | None:
    try:
        return float("nan" if value.lower() in MISSING else value)
    except ValueError:
        return None


def encode(name: str, values: list[str], file: Path) -> dict[str, Array]:
    """Numbers as they are; a column of few different texts as an indicator of each, all NaN where it is missing."""
    missing = np.array([value.lower() in MISSING for value in values])
    if missing.all():
        raise InputError(f"{file}: column {name!r} has no value at all: drop it")
    numbers = [number(value) for value in values]
    if None not in numbers:
        return {name: np.array(numbers, dtype=float)}
    texts = sorted({value for value, gone in zip(values, missing, strict=True) if not gone})
    mixed = any(number(text) is not None for text in texts)
    if mixed or len(texts) > MOST_TEXTS:
        row = numbers.index(None)
        why = (
            "the column also holds numbers" if mixed else f"it has {len(texts)} different texts (at most {MOST_TEXTS})"
        )
        raise InputError(
            f"{file}: row {row + 1}, column {name!r}: {values[row]!r} is no number; {why}: drop or encode the column"
        )
    return {f"{name}={text}": np.where(missing, np.nan, np.array(values) == text) for text in texts}
