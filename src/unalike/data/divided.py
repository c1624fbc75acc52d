"""Rows divided among clients, and the file they are saved in."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..files import write_atomically
from . import digest, read_npz
from .shift import Shift

Ints = NDArray[np.int64]

PARTS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Partition:
    """For each client, the sorted row numbers (int64) of a source that it trains, validates and tests on."""

    train: tuple[Ints, ...]
    validation: tuple[Ints, ...]
    test: tuple[Ints, ...]
    scheme: str
    names: tuple[str, ...] = ()
    shift: Shift | None = None
    """The simulated shift of the clients' images: whoever has the partition has it."""

    def __len__(self) -> int:
        return len(self.train)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of row numbers and shift: partitions of equal hash give each client the same rows alike."""
        shift = [] if self.shift is None else [np.array(self.shift.to_json())]
        return digest([*(rows for part in PARTS for rows in getattr(self, part)), *shift])

    def label_counts(self, y: Ints, classes: int) -> Ints:
        """Training rows of each of the K = `classes` classes: (clients, K)."""
        return np.stack([np.bincount(y[rows], minlength=classes) for rows in self.train])

    def of(self, client: int) -> Ints:
        """All rows of a client, ascending."""
        return np.sort(np.concatenate([getattr(self, part)[client] for part in PARTS]))

    def within(self, rows: Ints) -> Partition:
        """The same partition, of which row i is row `rows[i]` of a larger source."""
        train, validation, test = (tuple(rows[mine] for mine in getattr(self, part)) for part in PARTS)
        return replace(self, train=train, validation=validation, test=test)

    def save(self, path: Path) -> None:
        """Write an .npz that `load` and "file:PATH" read; an older file stays whole until the new one is."""
        arrays: dict[str, Any] = {"scheme": np.array(self.scheme), "names": np.array(self.names, dtype=np.str_)}
        if self.shift is not None:
            arrays["shift"] = np.array(self.shift.to_json())
        for part in PARTS:
            rows = getattr(self, part)
            arrays[part] = np.concatenate([np.zeros(0, np.int64), *rows])
            arrays[f"{part}_sizes"] = np.array([len(r) for r in rows], np.int64)
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(path, content.getvalue())

    @classmethod
    def load(cls, path: Path) -> Partition:
        """What `save` wrote."""
        arrays = read_npz(path)
        absent = {"scheme", "names", *PARTS, *(f"{part}_sizes" for part in PARTS)} - set(arrays)
        if absent:
            raise InputError(f"{path} is no saved partition: it has no array {min(absent)}")
        cuts = {part: arrays[f"{part}_sizes"].cumsum() for part in PARTS}
        if len({len(c) for c in cuts.values()}) > 1 or any(c[-1:].sum() != len(arrays[p]) for p, c in cuts.items()):
            raise InputError(f"{path} is damaged: its sizes do not fit its rows")
        train, validation, test = (tuple(np.split(arrays[part], cuts[part][:-1])) for part in PARTS)
        shift = Shift.from_json(str(arrays["shift"])) if "shift" in arrays else None
        return cls(train, validation, test, str(arrays["scheme"]), tuple(str(n) for n in arrays["names"]), shift)
