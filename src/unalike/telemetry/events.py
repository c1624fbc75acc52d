"""events.jsonl: one JSON object a line, appended as rounds commit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from ..errors import InputError

Event: TypeAlias = Mapping[str, Any]
Listener: TypeAlias = Callable[[Event], None]
"""Called with every event of a run, in order, in the process that runs the loop."""


class EventLog:
    """The file of a run's events. What lies beyond the last commit is cut off when a run resumes."""

    def __init__(self, path: Path, length: int | None = None) -> None:
        """Open for appending, first cutting the file to `length` bytes."""
        self.path = path
        self._file = path.open("ab")
        if length is not None:
            self._file.truncate(length)
            self._file.seek(0, os.SEEK_END)

    def append(self, event: Event) -> int:
        """Write and fsync one event; the length of the file after it."""
        self._file.write(json.dumps(event, allow_nan=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        self._file.close()


def total(figures: Iterable[float | None]) -> float | None:
    """The sum of figures, None when one of them is not known."""
    found = list(figures)
    known = [figure for figure in found if figure is not None]
    return sum(known) if len(known) == len(found) else None


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a file, in order; `InputError` names the line that is no JSON.

    A round that was scored after its commit, as remote sites are, is one event here: what the line "evaluation" that
    follows it says belongs to it, also when the run was resumed between the two.
    """
    held: list[dict[str, Any]] = []  # a round, and what was said after it
    for event in _lines(path):
        if event.get("event") == "evaluation" and held and held[0]["round"] == event["round"]:
            held[0] |= {**event, "event": "round", "metrics": held[0]["metrics"] | event["metrics"]}
        elif event.get("event") == "round":
            yield from held
            held = [event]
        elif held:
            held.append(event)
        else:
            yield event
    yield from held


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as file:
        for number, line in enumerate(file, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path} line {number} is not JSON: {error.msg}") from None
