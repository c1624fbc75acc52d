"""Runs the cells of one setting. What is finished is not run again; a method that fails lets the others go on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from .. import api, runs
from ..engines.loop import Engine
from ..errors import NobodyFitsError, UnalikeError
from ..files import write_json
from ..runs import Prepared
from ..telemetry.events import Listener
from . import figures
from .cells import Cell, Cells
from .setting import Setting

LINES = "compare.json"
ListenersOf: TypeAlias = Callable[[str, Prepared], Sequence[Listener]]
"""What listens to a run, by its title and what is run."""


def lines_of(folder: Path) -> list[dict[str, Any]]:
    """The lines of compare.json; none before the first run is over, or where it is damaged: it can be made again."""
    try:
        found = json.loads((folder / LINES).read_text())
    except (OSError, ValueError):
        return []
    whole = isinstance(found, list) and all(isinstance(line, dict) and "status" in line for line in found)
    return found if whole else []


def write_pages(folder: Path, wanted: bool) -> None:
    """Page and tables of a run, a comparison or a grid, if they are wanted."""
    if wanted:
        from ..report import write

        write(folder)


@dataclass
class Drive:
    """One setting at work, in its folder."""

    setting: Setting
    folder: Path
    listeners_of: ListenersOf
    report: bool
    cells: Cells = field(init=False)
    engine: Engine = field(init=False)
    title: str = ""
    """Goes before the title of each run."""
    begun: int = 0

    def run(self) -> list[dict[str, Any]]:
        """All cells, trials first, then seed by seed, so that a stop leaves whole rows; the lines of compare.json."""
        asked = self.setting.asked
        with runs.locked(self.folder), contextlib.ExitStack() as stack:
            self.cells = Cells(self.folder)
            stack.callback(self.cells.close)
            self.engine = stack.enter_context(api.make_engine(self.setting.experiment()))
            for label in asked.methods:
                self._tune(label)
            for seed in asked.seeds:
                for label in asked.methods:
                    self._report_on(self._cell(label, seed))
                    lines = self._write_lines()
        self._write_pages(lines)
        return lines

    def _tune(self, label: str) -> None:
        """Try all settings of a method on the first seed; only the best one so far keeps its models."""
        if any(self.cells.begun(self._cell(label, seed)) for seed in self.setting.asked.seeds):
            return  # the choice has been made, and trials that failed are not tried again
        for cell in self._trials(label):
            self._run(cell)
            for other in self._trials(label):
                if self.cells.done(other) and other != self._winner(label):
                    self.cells.drop_models(other)

    def _trials(self, label: str) -> list[Cell]:
        seed = self.setting.asked.seeds[0]
        return [Cell(label, seed, point, number) for number, point in enumerate(self.setting.points[label])]

    def _winner(self, label: str) -> Cell | None:
        """The trial with the highest mean accuracy on validation, the earlier one on a tie."""
        scores = [
            (line["summary"]["validation"]["accuracy"]["mean"], cell)
            for cell in self._trials(label)
            if (line := self.cells.done(cell))
        ]
        return max(scores, key=lambda scored: scored[0])[1] if scores else None

    def _cell(self, label: str, seed: int) -> Cell:
        """The cell that is reported, with what tuning has chosen."""
        winner = self._winner(label)
        return Cell(label, seed, winner.chosen if winner else {})

    def _report_on(self, cell: Cell) -> None:
        """Run a cell, or take over the trial that was the same run."""
        trials = self._trials(cell.label)
        winner = self._winner(cell.label)
        if trials and not winner:
            return self.cells.fail(cell, f"every trial failed: {self.cells.failed(trials[0])}")
        if winner and winner.seed == cell.seed:
            self.cells.adopt(winner, cell)
        self._run(cell)
        if self.setting.asked.light and self.cells.done(cell):
            self.cells.drop_models(cell)
        return None

    def _run(self, cell: Cell) -> None:
        self.begun += 1
        if self.cells.done(cell):
            return None
        try:
            prepared = self.setting.prepare(cell)
        except NobodyFitsError as error:
            return self.cells.fail(cell, str(error))
        trying = "" if cell.trial is None else " " + " ".join(f"{k}={v}" for k, v in cell.chosen.items())
        title = f"{self.title}[{self.begun}/{self._total()}] {cell.label} seed {cell.seed}{trying}"
        try:
            api.start_or_resume(
                self.folder / cell.run, prepared, self.engine, self.listeners_of(title, prepared), self.setting.given
            )
            self.cells.finish(cell)
        except UnalikeError as error:
            self.cells.fail(cell, str(error))
        except Exception as error:  # a method of the user's own may raise anything, and the others go on
            self.cells.fail(cell, f"{type(error).__name__}: {error}")
        return None

    def _total(self) -> int:
        asked = self.setting.asked
        return sum(map(len, self.setting.points.values())) + len(asked.seeds) * len(asked.methods)

    def _write_lines(self) -> list[dict[str, Any]]:
        asked = self.setting.asked
        reported = {label: [self._cell(label, seed) for seed in asked.seeds] for label in asked.methods}
        lines = figures.lines(asked, self.cells, reported, self.setting.trials)
        write_json(self.folder / LINES, lines)
        return lines

    def _write_pages(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.report and not self.setting.asked.light:
            for line in lines:
                for run in line["runs"]:
                    write_pages(self.folder / run, True)
        write_pages(self.folder, self.report)
