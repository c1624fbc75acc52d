"""The Python interface: `run`, `resume`, and the results they return."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import config, runs
from .algorithms import ALGORITHMS, find
from .config import Experiment
from .data.federation import Federation
from .engines import loop
from .engines.processes import Processes
from .engines.serial import Serial
from .errors import InputError, RunError
from .protocol import Algorithm
from .runs import Prepared
from .telemetry import events
from .telemetry.events import Listener

if TYPE_CHECKING:
    import pandas as pd

    from .engines.flower.in_process import InProcess


@dataclass(frozen=True)
class Result:
    """A finished run, as it lies in its folder."""

    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """The contents of summary.json."""
        found: dict[str, Any] = json.loads((self.folder / runs.SUMMARY).read_text())
        return found

    def events(self) -> Iterator[dict[str, Any]]:
        """The lines of events.jsonl, in order."""
        return events.read(self.folder / runs.EVENTS)

    def records(self) -> list[dict[str, Any]]:
        """One flat record for each evaluated round, client and part of the data, ready for `pandas.DataFrame`."""
        return [
            {"round": event["round"], "client": int(client), "part": part, **scores}
            for event in self.events()
            for part, clients in event.get("evaluation", {}).items()
            for client, scores in clients.items()
        ]

    def frame(self) -> pd.DataFrame:
        """`records` as a pandas data frame (extra `pandas`)."""
        import pandas as pd

        return pd.DataFrame(self.records())

    def report(self) -> Path:
        """Write report.html into the folder and return its path."""
        from .report import write

        return write(self.folder)

    def __repr__(self) -> str:
        found = self.summary
        scores = found["accuracy"]
        return (
            f"<{found['algorithm']} on {found['data']}: accuracy {scores['mean']:.3f}, worst client "
            f"{scores['worst']:.3f}, round {found['selected_round']} of {found['rounds']}, {self.folder}>"
        )

    def _repr_html_(self) -> str:
        found = self.summary
        rows = {
            "method": found["algorithm"],
            "accuracy, mean over clients": f"{found['accuracy']['mean']:.3f}",
            "worst client": f"{found['accuracy']['worst']:.3f}",
            "round chosen on validation": f"{found['selected_round']} of {found['rounds']}",
            "folder": str(self.folder),
        }
        from html import escape

        return "<table>" + "".join(f"<tr><th>{k}<td>{escape(str(v))}" for k, v in rows.items()) + "</table>"


def run(
    method: str | Algorithm[Any, Any, Any] | Experiment | Prepared = "pfedafm",
    federation: Federation | None = None,
    *,
    out: str | Path | None = None,
    listeners: Sequence[Listener] = (),
    report: bool = True,
    **keys: Any,
) -> Result:
    """Train one method and return what came of it.

    Args:
        method: a name, "file.py:Class", an algorithm made by hand, a resolved experiment, or what
            `prepare` made of one of these.
        federation: who takes part; None makes one from `keys` (data, clients, partition, models, ...).
        out: the run folder; it must not exist. None takes runs/<method>, runs/<method>-2, ...
        listeners: called with every event as it happens.
        report: also write report.html.
        **keys: any key of an experiment file, the method's own parameters included.

    Raises:
        InputError: something asked for cannot be done; nothing was written.
        RunError: the run failed; its folder can be resumed.
    """
    prepared = method if isinstance(method, Prepared) else prepare(method, federation, **keys)
    folder = Path(out) if out is not None else free_folder(prepared.experiment.method)
    runs.create(folder, prepared)
    with make_engine(prepared.experiment) as engine:
        return drive(folder, prepared, engine, listeners, report)


def resume(
    folder: str | Path,
    federation: Federation | None = None,
    *,
    listeners: Sequence[Listener] = (),
    report: bool = True,
) -> Result:
    """Continue an interrupted run from its last committed round; the end is bit for bit that of an undisturbed run.

    `federation` is needed only where the run was given one made by hand.
    """
    folder = Path(folder)
    runs.open_run(folder)
    if (folder / runs.SUMMARY).exists():
        raise InputError(f"{folder} is finished: there is nothing to resume")
    prepared = runs.reopen(folder, federation)
    with make_engine(prepared.experiment) as engine:
        return drive(folder, prepared, engine, listeners, report)


def prepare(
    method: str | Algorithm[Any, Any, Any] | Experiment, federation: Federation | None = None, **keys: Any
) -> Prepared:
    """Resolve and check everything that `run` would, without writing or starting anything."""
    if isinstance(method, Experiment):
        experiment = config.resolve({**config.flat(method), **keys})
    elif isinstance(method, Algorithm):
        own = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.name not in config.SET_LATER}
        experiment = config.resolve({**own, **keys, "method": name_of(type(method))})
    else:
        experiment = config.resolve({**keys, "method": method})
    return runs.prepare(experiment, federation)


def start_or_resume(
    folder: Path,
    one: Prepared,
    engine: loop.Engine,
    listeners: Sequence[Listener] = (),
    federation: Federation | None = None,
) -> Result:
    """Bring a run to its end, from wherever it stands; without a page.

    `federation` is the one made by hand, where the run has such a one.
    """
    if (folder / runs.SUMMARY).exists():
        return Result(folder)
    if (folder / runs.EXPERIMENT).exists():
        one = runs.reopen(folder, federation)
    else:
        shutil.rmtree(folder, ignore_errors=True)  # what is there was left by a start that did not get to its end
        runs.create(folder, one)
    return drive(folder, one, engine, listeners, report=False)


def drive(
    folder: Path,
    prepared: Prepared,
    engine: loop.Engine,
    listeners: Sequence[Listener] = (),
    report: bool = True,
    again: str = "",
) -> Result:
    """Bring the run that lies in `folder`, just made or interrupted, to its end on an engine that is open already.

    `again` is the command that goes on with it, where that is not `unalike resume`.
    """
    try:
        with runs.locked(folder):
            loop.run(prepared.plan(folder, tuple(listeners)), engine)
            runs.finish(folder, prepared)
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        kept = f"the last committed round is kept, continue with: {again or f'unalike resume {folder}'}"
        raise RunError(f"{error.strerror or error}{place}: {kept}") from error
    finally:
        for listener in listeners:
            getattr(listener, "close", lambda: None)()
    result = Result(folder)
    try:
        if report:
            result.report()
    except OSError as error:
        remedy = f"the run is finished, write its page with: unalike report {folder}"
        raise RunError(f"{error.strerror or error}: {remedy}") from error
    return result


@contextlib.contextmanager
def make_engine(experiment: Experiment) -> Iterator[loop.Engine]:
    """The engine that an experiment names, closed at the end."""
    with _engine(experiment) as engine:
        yield engine


def _engine(experiment: Experiment) -> Processes | Serial | InProcess:
    if experiment.engine == "processes":
        return Processes(experiment.workers or 1)
    if experiment.engine == "flower":
        from .engines.flower.in_process import InProcess

        return InProcess()
    return Serial()


def name_of(kind: type[Algorithm[Any, Any, Any]]) -> str:
    """The name by which `find` finds a class again, also in another process."""
    for name, known in ALGORITHMS.items():
        if known is kind:
            return name
    import inspect

    name = f"{kind.__module__}:{kind.__qualname__}"
    if kind.__module__ == "__main__" or kind.__module__.startswith("unalike_user_"):
        try:
            name = f"{Path(inspect.getfile(kind)).resolve()}:{kind.__qualname__}"
        except (OSError, TypeError):
            raise InputError(f"{kind.__name__} was typed into a session: put it into a file") from None
    try:
        find(name)
    except InputError as error:
        raise InputError(f"{kind.__name__} cannot be found again as {name}: put it at a file's top ({error})") from None
    return name


def free_folder(name: str) -> Path:
    """runs/<name>, or the first of runs/<name>-2, -3, ... that does not exist."""
    stem = name.rpartition(":")[2].lower() if ":" in name else name
    tries = (Path("runs") / (stem if i == 1 else f"{stem}-{i}") for i in range(1, 10_000))
    return next(folder for folder in tries if not folder.exists())
