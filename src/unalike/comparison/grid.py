"""A comparison from its start to its pages: one setting, or a grid of them that several processes may share."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import runs
from ..data.federation import Federation
from ..errors import InputError
from ..files import write_json
from ..runs import InUseError, Prepared
from ..telemetry.events import Listener
from . import spec
from .drive import Drive, ListenersOf, lines_of, write_pages
from .setting import Setting
from .spec import Comparison

ASKED, GRID = "comparison.json", "grid.json"


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
    runs.require_free(folder)
    asked = replace(asked, given=federation.partition.hash if federation else "")
    checked = check(asked, federation)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / ASKED, asked.to_json())
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None
    return _drive(asked, folder, federation, listeners_of, report, checked)


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
    states = [_state(asked, folder)] if not asked.regimes else [_state(own, at) for own, at in _settings(asked, folder)]
    return all(state == "done" for state in states) and (folder / "report.html").exists()


def _state(asked: Comparison, folder: Path) -> str:
    """How far one setting is: "done", "failed" in part, "running" or "waiting"."""
    lines = lines_of(folder)
    gone = any(not (folder / run / runs.SUMMARY).exists() for line in lines for run in line["runs"])
    if gone or len(lines) < len(asked.methods) or any(line["status"] == "running" for line in lines):
        return "running" if is_comparison(folder) else "waiting"
    return "failed" if any(line["status"] == "failed" for line in lines) else "done"


def _settings(asked: Comparison, folder: Path) -> list[tuple[Comparison, Path]]:
    """Each setting of a grid with its folder."""
    return [(asked.within(r), folder / _below(number, r.name)) for number, r in enumerate(asked.regimes, 1)]


def check(asked: Comparison, federation: Federation | None = None) -> Setting | None:
    """Find everything that can be wrong before anything starts.

    What was made of a comparison without a grid is returned: its data need not be read again.

    Raises:
        InputError: data, partition, models, methods or settings do not fit; clients and methods are named.
    """
    if not asked.regimes:
        setting = Setting(asked, federation)
        setting.check()
        return setting
    for regime in asked.regimes:
        try:
            Setting(asked.within(regime), federation).check()
        except InputError as error:
            raise InputError(f"{regime.name}: {error}") from None
    return None


def _drive(
    asked: Comparison,
    folder: Path,
    federation: Federation | None,
    listeners_of: ListenersOf,
    report: bool,
    checked: Setting | None = None,
) -> list[dict[str, Any]]:
    if not asked.regimes:
        return Drive(checked or Setting(asked, federation), folder, listeners_of, report).run()
    settings = _settings(asked, folder)
    for number, (own, below) in enumerate(settings, 1):
        below.mkdir(exist_ok=True)
        if not is_comparison(below):
            write_json(below / ASKED, own.to_json())
        _write_grid(asked, folder)
        title = f"{number}/{len(settings)} {own.title}: "
        if not _is_finished(own, below):
            with contextlib.suppress(InUseError):  # another process works on this one
                Drive(Setting(own, federation), below, listeners_of, report, title).run()
    _write_grid(asked, folder)
    write_pages(folder, report)
    return [{"regime": own.title, **line} for own, below in settings for line in lines_of(below)]


def _below(number: int, name: str) -> str:
    words = "".join(c if c.isalnum() or c in ".-" else " " for c in name).split()
    return f"r{number:02d}-{'-'.join(words)}"


def _write_grid(asked: Comparison, folder: Path) -> None:
    """Which settings there are, where, and how far each is."""
    regimes = [
        {"name": regime.name, "folder": below.name, "keys": dict(regime.keys), "status": _state(own, below)}
        for regime, (own, below) in zip(asked.regimes, _settings(asked, folder), strict=True)
    ]
    write_json(folder / GRID, {"title": asked.title, "rivals": list(asked.rivals), "regimes": regimes})
