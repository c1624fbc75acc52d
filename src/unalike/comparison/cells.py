"""The cells of a comparison: one method, one seed, one setting of its parameters. A finished one is a line."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from .. import runs
from ..errors import InputError
from ..files import sync_folder
from ..telemetry import events

CELLS = "cells.jsonl"
TOLD = ("event", "round", "bytes_up", "bytes_down", "metrics")
"""What of an event the figures over a run are made of: scores of single clients may be large, and are left out."""


@dataclass(frozen=True)
class Cell:
    """One run of a comparison."""

    label: str
    seed: int
    chosen: Mapping[str, Any] = field(default_factory=dict)
    """What tuning has chosen, or tries."""
    trial: int | None = None
    """The number of the setting tried, from 0; None for a run that is reported."""

    @property
    def run(self) -> str:
        """Its run folder, below the comparison's."""
        name = folder_name(self.label)
        return f"{name}-seed{self.seed}" if self.trial is None else f"trials/{name}-{self.trial}"


def folder_name(label: str) -> str:
    """What a label is called on the disk."""
    return re.sub(r"[^\w.-]+", "-", label)


class Cells:
    """The lines of cells.jsonl: what is finished, with its figures and its commit; nothing in it is run again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        content = (folder / CELLS).read_bytes() if (folder / CELLS).exists() else b""
        whole = content[: content.rfind(b"\n") + 1]  # of a line that a crash cut off nothing is kept
        try:
            lines = [json.loads(line) for line in whole.splitlines()]
            self._lines: dict[str, dict[str, Any]] = {line["run"]: line for line in lines if line["status"]}
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{folder / CELLS} is damaged ({type(error).__name__}: {error})") from None
        self._log = events.EventLog(folder / CELLS, len(whole))
        self._events: dict[str, Sequence[events.Event]] = {}

    def done(self, cell: Cell) -> Mapping[str, Any] | None:
        """The line of a finished cell; a reported one whose folder was deleted is not finished any more."""
        line = self._lines.get(cell.run)
        gone = cell.trial is None and not (self.folder / cell.run / runs.SUMMARY).exists()
        if not line or line["status"] != "done" or gone:
            return None
        if (line["seed"], line["chosen"]) != (cell.seed, cell.chosen):
            was = ", ".join(f"{name} = {value}" for name, value in line["chosen"].items())
            raise InputError(
                f"{self.folder / cell.run} was run with {was}, which is no longer what is asked for: start anew"
            )
        return line

    def failed(self, cell: Cell) -> str | None:
        """Why a cell failed when it was last tried."""
        line = self._lines.get(cell.run)
        return str(line["reason"]) if line and line["status"] == "failed" else None

    def finish(self, cell: Cell) -> None:
        """Write the line of a cell whose run folder is complete."""
        found, origin = (json.loads((self.folder / cell.run / n).read_text()) for n in (runs.SUMMARY, runs.MANIFEST))
        where = {k: origin[k] for k in ("commit", "machine", "versions")}
        self._append(cell, {"status": "done", **where, "summary": found})

    def fail(self, cell: Cell, reason: str) -> None:
        """Write the line of a cell that failed; it is tried again when the comparison is resumed."""
        self._append(cell, {"status": "failed", "reason": " ".join(reason.split()), "commit": runs.commit()})

    def adopt(self, winner: Cell, cell: Cell) -> None:
        """Make the run of the winning trial that of the cell with the same seed: they have the same bits."""
        if not self.begun(cell) and self.begun(winner):
            (self.folder / winner.run).rename(self.folder / cell.run)
            sync_folder(self.folder)

    def begun(self, cell: Cell) -> bool:
        """Whether a run folder is there."""
        return (self.folder / cell.run).exists()

    def drop_models(self, cell: Cell) -> None:
        """Delete the models of a run; its events and figures stay."""
        shutil.rmtree(self.folder / cell.run / "checkpoint", ignore_errors=True)

    def events(self, cell: Cell) -> Sequence[events.Event]:
        """What happened in a finished cell, with traffic and metrics round by round; its file is read once."""
        if cell.run not in self._events:
            told = events.read(self.folder / cell.run / runs.EVENTS)
            self._events[cell.run] = [{key: event[key] for key in TOLD if key in event} for event in told]
        return self._events[cell.run]

    def close(self) -> None:
        self._log.close()

    def _append(self, cell: Cell, said: Mapping[str, Any]) -> None:
        head = {"method": cell.label, "seed": cell.seed, "trial": cell.trial, "chosen": dict(cell.chosen)}
        line = {**head, "run": cell.run, "time": datetime.now(UTC).isoformat(timespec="seconds"), **said}
        self._log.append(line)
        self._lines[cell.run] = line
        self._events.pop(cell.run, None)
