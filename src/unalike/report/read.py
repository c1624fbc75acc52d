"""Loads a run folder. What is missing has a default; what is broken is an InputError with file and line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from unalike.errors import InputError
from unalike.telemetry.events import total

from .alone import BASELINES
from .records import (
    Asked,
    Audit,
    Compared,
    Comparison,
    Event,
    Grid,
    GridFile,
    Manifest,
    Method,
    Methods,
    Partition,
    Regime,
    Run,
    Scores,
    Summary,
    Traffic,
)

R = TypeVar("R", bound=BaseModel)


def is_comparison(folder: Path) -> bool:
    return (folder / "compare.json").is_file()


def is_grid(folder: Path) -> bool:
    return (folder / "grid.json").is_file()


def is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("summary.json", "events.jsonl"))


def read_run(folder: Path) -> Run:
    """Raises InputError when the folder is no run or a file in it is broken."""
    if not is_run(folder):
        raise InputError(f"{folder} is no run folder: it has neither summary.json nor compare.json")
    events = list(_events(folder / "events.jsonl"))
    rounds = {e.round: e for e in events if e.event == "round"}  # of a round repeated after a crash the last counts
    for late in (e for e in events if e.event == "evaluation" and e.round in rounds):
        before = rounds[late.round]
        metrics = before.metrics.model_copy(update={"validation": late.metrics.validation})
        rounds[late.round] = before.model_copy(update={"evaluation": late.evaluation, "metrics": metrics})
    summary, partition = _file(folder / "summary.json", Summary), _file(folder / "partition.json", Partition)
    experiment = _toml(folder / "experiment.toml")
    ordered = [rounds[r] for r in sorted(rounds)]
    shift = {"simulated_shift": partition.simulated_shift} if partition else {}
    return Run(
        name=folder.resolve().name,
        finished=summary is not None,
        summary=summary or _so_far(folder, events, ordered, experiment | shift),
        partition=partition or Partition(),
        rounds=ordered,
        experiment=experiment,
        manifest=_file(folder / "manifest.json", Manifest) or Manifest(),
        audit=_file(folder / "audit.json", Audit),
        keepsakes={int(path.stem[6:]): path for path in (folder / "keepsakes").glob("round-*.safetensors")},
    )


def read_comparison(folder: Path) -> Comparison:
    methods = _methods(folder)
    about = _file(folder / "comparison.json", Asked) or Asked()
    return Comparison(folder.resolve().name, methods, {m.method: list(_runs(folder, m)) for m in methods}, about)


def read_grid(folder: Path) -> Grid:
    """Its comparisons without their rounds; InputError where a regime that is said to be done has no compare.json."""
    about = _file(folder / "grid.json", GridFile) or GridFile()
    rows = [_compared(folder, regime) for regime in about.regimes]
    places = [run / "manifest.json" for row in rows for m in row.methods for run in _places(folder, row.regime, m)]
    manifests = (_file(place, Manifest) for place in places)
    return Grid(folder.resolve(), about, rows, [found for found in manifests if found])


def find_baseline(folder: Path, run: Run) -> Run | None:
    """The best finished run beside this one whose clients are alone, same partition and seed. Broken neighbours are
    passed over."""
    if run.algorithm in BASELINES or run.partition_hash is None:
        return None
    found = []
    for sibling in sorted(folder.resolve().parent.iterdir()):
        with suppress(InputError):
            summary = _file(sibling / "summary.json", Summary)
            if summary and summary.algorithm in BASELINES and summary.seed == run.summary.seed:
                found.append(read_run(sibling))
    fitting = [other for other in found if other.partition_hash == run.partition_hash and shared_clients(run, other)]
    return max(fitting, key=lambda other: other.summary.accuracy.mean or 0, default=None)


def shared_clients(run: Run, other: Run) -> list[int]:
    """The clients both have a test accuracy of."""
    return sorted(run.summary.accuracy.per_client.keys() & other.summary.accuracy.per_client.keys())


def _compared(folder: Path, regime: Regime) -> Compared:
    methods = _regime(folder, regime)
    drawn = (_file(run / "partition.json", Partition) for m in methods for run in _places(folder, regime, m))
    return Compared(regime, methods, next((found.classes for found in drawn if found), []))


def _regime(folder: Path, regime: Regime) -> list[Method]:
    place = folder / regime.folder
    if regime.status == "done" and not is_comparison(place):
        raise InputError(f"{folder / 'grid.json'} says that {regime.folder} is done, but it has no compare.json")
    return _methods(place)


def _methods(folder: Path) -> list[Method]:
    listed = _file(folder / "compare.json", Methods)
    return listed.root if listed else []


def _runs(folder: Path, method: Method) -> Iterable[Run]:
    return (read_run(folder / name) for name in _names(method) if is_run(folder / name))


def _places(folder: Path, regime: Regime, method: Method) -> Iterable[Path]:
    return (folder / regime.folder / name for name in _names(method))


def _names(method: Method) -> list[str]:
    return method.runs or [f"{method.method}-seed{seed}" for seed in method.seeds] + [method.method]


_TOLD = ("data", "seed", "partition", "clients", "simulated_shift")


def _so_far(folder: Path, events: list[Event], rounds: list[Event], experiment: dict[str, Any]) -> Summary:
    """An unfinished run, at the round best on validation until now."""
    scored = [r for r in rounds if r.evaluation.accuracies("validation") and r.evaluation.test]
    best = max(scored, key=lambda r: fmean(r.evaluation.accuracies("validation").values()), default=Event(event=""))
    named = [e.method for e in events if e.method]
    return Summary.model_validate(
        {
            **{k: experiment[k] for k in _TOLD if k in experiment},
            "algorithm": str((named or [experiment.get("method", folder.resolve().name)])[0]),
            "rounds": rounds[-1].round if rounds else 0,
            "selected_round": best.round or None,
            "pooled": best.metrics.pooled.test,
            "accuracy": Scores.of(best.evaluation.accuracies("test")),
            "balanced_accuracy": Scores.of(best.evaluation.accuracies("test", "balanced_accuracy")),
            "rouge1": Scores.of(best.evaluation.accuracies("test", "rouge1")),
            "bytes": Traffic(up=sum(r.bytes_up for r in rounds), down=sum(r.bytes_down for r in rounds)),
            "wire_bytes": Traffic(up=sum(r.wire_bytes_up for r in rounds), down=sum(r.wire_bytes_down for r in rounds)),
            "flops": total(r.flops for r in rounds),
            "seconds": sum(r.seconds for r in rounds),
        }
    )


def _events(path: Path) -> Iterable[Event]:
    lines = _text(path).splitlines() if path.is_file() else []
    return (_parse(Event, line, f"{path}: line {n}") for n, line in enumerate(lines, 1) if line.strip())


def _file(path: Path, kind: type[R]) -> R | None:
    return _parse(kind, _text(path), str(path)) if path.is_file() else None


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path)) if path.is_file() else {}
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: byte {error.start} cannot be decoded") from error


def _parse(kind: type[R], text: str, where: str) -> R:
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        at = "/".join(str(part) for part in first["loc"])
        raise InputError(f"{where}: {at + ': ' if at else ''}{first['msg']}") from error
