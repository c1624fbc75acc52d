"""One setting of a comparison: its methods and its clients, made once and shared by all runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import config, runs
from ..data.federation import Federation
from ..errors import NobodyFitsError
from ..rng import Key
from ..runs import Prepared
from .cells import Cell
from .spec import Comparison
from .tuning import Point


@dataclass
class Setting:
    """The methods with the settings they are tried with, and a federation for each seed."""

    asked: Comparison
    given: Federation | None = None
    """A federation made in Python, for all seeds."""
    points: Mapping[str, list[Point]] = field(init=False)

    def __post_init__(self) -> None:
        self.points = self.asked.points(Key.root(self.asked.seeds[0]) / "tune")
        self.federation = functools.lru_cache(maxsize=None)(self._federation)

    @property
    def trials(self) -> int:
        """How many settings each method is tried with."""
        return max(len(points) for points in self.points.values())

    def experiment(self) -> config.Experiment:
        """One that says which engine serves all runs. `NobodyFitsError` where every method is one for nobody."""
        refused: NobodyFitsError | None = None
        for label, seed in itertools.product(self.asked.methods, self.asked.seeds):
            try:
                return self.prepare(Cell(label, seed)).experiment
            except NobodyFitsError as error:
                refused = refused or error
        assert refused
        raise refused

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
        """Prepare a run of each method and seed, and every setting that is to be tried.

        A method that no client's memory holds is no fault of the comparison: there it has no result.
        """
        asked = self.asked
        cells = [Cell(label, asked.seeds[0], point) for label, points in self.points.items() for point in points]
        for seed in asked.seeds:
            everyone = [self._experiment(label, {}, seed) for label in asked.methods]
            runs.require_alike(everyone, self.federation(seed))
            cells += [Cell(label, seed) for label in asked.methods]
        for cell in cells:
            with contextlib.suppress(NobodyFitsError):
                self.prepare(cell)
        self.experiment()
