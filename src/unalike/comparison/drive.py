"""Runs the cells of a comparison. What is finished is never run again; a method that fails lets the others go on."""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from .. import api, config, runs
from ..data.federation import Federation
from ..engines.loop import Engine
from ..errors import InputError, UnalikeError
from ..files import write_json
from ..rng import Key
from ..runs import InUseError, Prepared
from ..telemetry.events import Listener
from . import figures, spec
from .cells import Cell, Cells
from .spec import Comparison, Regime
from .tuning import Point

ASKED, LINES, GRID = "comparison.json", "compare.json", "grid.json"
ListenersOf: TypeAlias = Callable[[str, Prepared], Sequence[Listener]]
"""What listens to a run, by its title and what is run."""


def silence(title: str, prepared: Prepared) -> Sequence[Listener]:
    return ()


def compare(
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]],
    federation: Federation | None = None,
    *,
    out: str | Path,
    listeners_of: ListenersOf = silence,
    report: bool = True,
    **keys: Any,
) -> list[dict[str, Any]]:
    """Run several methods over several seeds on the same clients and return the lines of compare.json.

    Every run lies in a folder of its own below `out`, beside tables (CSV, LaTeX, Markdown) and a page.

    Args:
        methods: names or "file.py:Class", or label to the keys that are one method's alone ("method" among them).
        federation: who takes part, for all seeds; None makes one for each seed from `keys`.
        out: the folder; it must not exist or be empty.
        listeners_of: called with a title and what is run; returns what to attach to that run.
        report: also write tables and page.
        **keys: any key of an experiment but the seed; and seeds (0, 1, 2), reference (the first method), target,
            tune, trials, light: see docs/comparing.md.

    Raises:
        InputError: something asked for cannot be done; nothing was written or started.
    """
    return start(spec.compose(methods, keys), Path(out), federation, listeners_of, report)


def start(
    asked: Comparison,
    folder: Path,
    federation: Federation | None = None,
    listeners_of: ListenersOf = silence,
    report: bool = True,
) -> list[dict[str, Any]]:
    """Check everything, then run all of it. A grid returns the lines of all its settings, "regime" in each."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already: choose another --out, or continue it with: unalike resume {folder}")
    asked = replace(asked, given=federation.partition.hash if federation else "")
    check(asked, federation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ASKED, asked.to_json())
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None
    return _drive(asked, folder, federation, listeners_of, report)


def resume(
    folder: str | Path, federation: Federation | None = None, listeners_of: ListenersOf = silence
) -> list[dict[str, Any]]:
    """Continue an interrupted comparison: what is finished is kept, what was begun is resumed, the rest is run.

    `federation` is the one it was started on, where that was made in Python.
    """
    folder = Path(folder)
    asked = spec.read(folder, ASKED)
    if asked.given != (federation.partition.hash if federation else ""):
        raise InputError(
            f"{folder} was started on a federation made in Python: give comparison.resume the same one"
            if asked.given
            else f"{folder} was started on federations that its keys describe: resume it without one"
        )
    if _is_finished(asked, folder):
        raise InputError(f"{folder} is finished: there is nothing to resume")
    return _drive(asked, folder, federation, listeners_of, True)


def is_comparison(folder: Path) -> bool:
    """Whether a comparison was started in `folder`."""
    return (folder / ASKED).is_file()


def _is_finished(asked: Comparison, folder: Path) -> bool:
    """Whether every method is done and the page written."""
    if asked.regimes:
        below = [folder / _below(n, regime.name) for n, regime in enumerate(asked.regimes, 1)]
        done = all(_is_finished(replace(asked, regimes=()), one) for one in below)
    else:
        lines = _lines(folder)
        done = len(lines) == len(asked.methods) and all(line["status"] == "done" for line in lines)
    return done and (folder / "report.html").exists()


def check(asked: Comparison, federation: Federation | None = None) -> None:
    """Find everything that can be wrong before anything starts.

    Raises:
        InputError: data, partition, models, methods or settings do not fit; clients and methods are named.
    """
    if not asked.regimes:
        _Cast(asked, federation).check()
    for regime in asked.regimes:
        try:
            _Cast(asked.within(regime), federation).check()
        except InputError as error:
            raise InputError(f"{regime.name}: {error}") from None


@dataclass
class _Cast:
    """The methods and the federations of one setting, made once and shared by all runs on them."""

    asked: Comparison
    given: Federation | None = None
    points: Mapping[str, list[Point]] = field(init=False)

    def __post_init__(self) -> None:
        self.points = self.asked.points(Key.root(self.asked.seeds[0]) / "tune")
        self.federation = functools.lru_cache(maxsize=None)(self._federation)

    @property
    def trials(self) -> int:
        """How many settings each method is tried with."""
        return max(len(points) for points in self.points.values())

    def experiment(self) -> config.Experiment:
        """One that says which engine serves all runs."""
        return self.prepare(Cell(next(iter(self.asked.methods)), self.asked.seeds[0])).experiment

    def _federation(self, seed: int) -> Federation:
        if self.given:
            return self.given
        return runs.load_federation(self._experiment(next(iter(self.asked.methods)), {}, seed))

    def _experiment(self, label: str, chosen: Mapping[str, Any], seed: int) -> config.Experiment:
        return config.resolve({**self.asked.keys(label, chosen), "seed": seed})

    def prepare(self, cell: Cell) -> Prepared:
        experiment = self._experiment(cell.label, cell.chosen, cell.seed)
        return runs.prepare(experiment, self.federation(cell.seed), by_hand=self.given is not None)

    def check(self) -> None:
        """Prepare a run of each method and seed, and every setting that is to be tried."""
        asked = self.asked
        for seed in asked.seeds:
            everyone = [self._experiment(label, {}, seed) for label in asked.methods]
            runs.require_alike(everyone, self.federation(seed))
            for label in asked.methods:
                self.prepare(Cell(label, seed))
        for label, points in self.points.items():
            for point in points:
                self.prepare(Cell(label, asked.seeds[0], point))


def _drive(
    asked: Comparison, folder: Path, federation: Federation | None, listeners_of: ListenersOf, report: bool
) -> list[dict[str, Any]]:
    if not asked.regimes:
        return _Drive(_Cast(asked, federation), folder, listeners_of, report).run()
    settings = [(regime, folder / _below(number, regime.name)) for number, regime in enumerate(asked.regimes, 1)]
    for number, (regime, below) in enumerate(settings, 1):
        below.mkdir(exist_ok=True)
        own = asked.within(regime)
        if not is_comparison(below):
            write_json(below / ASKED, own.to_json())
        _write_grid(asked, folder, settings)
        title = f"{number}/{len(settings)} {regime.name}: "
        if not _is_finished(own, below):
            with contextlib.suppress(InUseError):  # another process works on this one
                _Drive(_Cast(own, federation), below, listeners_of, report, title).run()
    _write_grid(asked, folder, settings)
    _report(folder, report)
    return [{"regime": regime.name, **line} for regime, below in settings for line in _lines(below)]


def _below(number: int, name: str) -> str:
    words = "".join(c if c.isalnum() or c in ".-" else " " for c in name).split()
    return f"r{number:02d}-{'-'.join(words)}"


def _lines(folder: Path) -> list[dict[str, Any]]:
    """The lines of compare.json; none before the first run is over, or where it is damaged: it can be made again."""
    try:
        found = json.loads((folder / LINES).read_text())
    except (OSError, ValueError):
        return []
    whole = isinstance(found, list) and all(isinstance(line, dict) and "status" in line for line in found)
    return found if whole else []


def _write_grid(asked: Comparison, folder: Path, settings: Sequence[tuple[Regime, Path]]) -> None:
    """Which settings there are, where, and how far each is."""
    regimes = [
        {
            "name": regime.name,
            "folder": below.name,
            "keys": dict(regime.keys),
            "status": "done"
            if _is_finished(asked.within(regime), below)
            else "running"
            if is_comparison(below)
            else "waiting",
        }
        for regime, below in settings
    ]
    write_json(folder / GRID, {"title": asked.title, "rivals": list(asked.rivals), "regimes": regimes})


def _report(folder: Path, wanted: bool) -> None:
    if wanted:
        from ..report import write

        write(folder)


@dataclass
class _Drive:
    """One setting at work."""

    cast: _Cast
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
        asked = self.cast.asked
        with runs.locked(self.folder), contextlib.ExitStack() as stack:
            self.cells = Cells(self.folder)
            stack.callback(self.cells.close)
            self.engine = stack.enter_context(api.make_engine(self.cast.experiment()))
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
        if any(self.cells.done(self._cell(label, seed)) for seed in self.cast.asked.seeds):
            return  # the choice has been made
        for cell in self._trials(label):
            self._run(cell)
            for other in self._trials(label):
                if self.cells.done(other) and other != self._winner(label):
                    self.cells.drop_models(other)

    def _trials(self, label: str) -> list[Cell]:
        seed = self.cast.asked.seeds[0]
        return [Cell(label, seed, point, number) for number, point in enumerate(self.cast.points[label])]

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
        if self.cast.asked.light and self.cells.done(cell):
            self.cells.drop_models(cell)
        return None

    def _run(self, cell: Cell) -> None:
        self.begun += 1
        if self.cells.done(cell):
            return
        prepared = self.cast.prepare(cell)
        trying = "" if cell.trial is None else " " + " ".join(f"{k}={v}" for k, v in cell.chosen.items())
        title = f"{self.title}[{self.begun}/{self._total()}] {cell.label} seed {cell.seed}{trying}"
        try:
            api.start_or_resume(
                self.folder / cell.run, prepared, self.engine, self.listeners_of(title, prepared), self.cast.given
            )
            self.cells.finish(cell)
        except UnalikeError as error:
            self.cells.fail(cell, str(error))
        except Exception as error:  # a method of the user's own may raise anything, and the others go on
            self.cells.fail(cell, f"{type(error).__name__}: {error}")

    def _total(self) -> int:
        asked = self.cast.asked
        return sum(map(len, self.cast.points.values())) + len(asked.seeds) * len(asked.methods)

    def _write_lines(self) -> list[dict[str, Any]]:
        asked = self.cast.asked
        reported = {label: [self._cell(label, seed) for seed in asked.seeds] for label in asked.methods}
        lines = figures.lines(asked, self.cells, reported, self.cast.trials)
        write_json(self.folder / LINES, lines)
        return lines

    def _write_pages(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.report and not self.cast.asked.light:
            for line in lines:
                for run in line["runs"]:
                    _report(self.folder / run, True)
        _report(self.folder, self.report)
