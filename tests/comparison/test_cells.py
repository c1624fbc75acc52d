"""The lines of cells.jsonl: what is finished stays finished, whatever happened in between."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from unalike.comparison.cells import Cell, Cells, folder_name
from unalike.errors import InputError

ORIGIN: dict[str, Any] = {"commit": "c", "machine": {"cores": 2}, "versions": {}}
REPORTED, TRIAL = Cell("fedprox", 3, {"lr": 0.1}), Cell("fedprox", 3, {"lr": 0.1}, 1)


Opened: TypeAlias = Callable[[Path], Cells]


def complete(folder: Path, accuracy: float = 0.5) -> None:
    """A run folder that is finished."""
    (folder / "checkpoint").mkdir(parents=True)
    (folder / "summary.json").write_text(json.dumps({"accuracy": accuracy}))
    (folder / "manifest.json").write_text(json.dumps({**ORIGIN, "seed": 3}))


@pytest.fixture
def opened() -> Iterator[Opened]:
    """Opens the lines of a folder, and closes them at the end."""
    with contextlib.ExitStack() as stack:

        def made(folder: Path) -> Cells:
            found = Cells(folder)
            stack.callback(found.close)
            return found

        yield made


def test_where_a_run_lies() -> None:
    assert REPORTED.run == "fedprox-seed3"
    assert TRIAL.run == "trials/fedprox-1"
    assert folder_name("../a b/ü<x>") == "..-a-b-ü-x-"


def test_what_is_finished_is_a_line_with_its_origin(opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / REPORTED.run)
    found = opened(tmp_path)
    assert found.done(REPORTED) is None
    found.finish(REPORTED)
    (line,) = map(json.loads, (tmp_path / "cells.jsonl").read_text().splitlines())
    assert line.pop("time")
    which = {"method": "fedprox", "seed": 3, "trial": None, "chosen": {"lr": 0.1}, "run": "fedprox-seed3"}
    assert line == {**which, "status": "done", **ORIGIN, "summary": {"accuracy": 0.5}}
    assert opened(tmp_path).done(REPORTED)


def test_a_failure_is_one_line_and_a_later_success_counts(opened: Opened, tmp_path: Path) -> None:
    found = opened(tmp_path)
    found.fail(REPORTED, "out\nof memory")
    assert (found.failed(REPORTED), found.done(REPORTED)) == ("out of memory", None)
    complete(tmp_path / REPORTED.run)
    found.finish(REPORTED)
    again = opened(tmp_path)
    assert again.failed(REPORTED) is None
    assert again.done(REPORTED)


def test_of_half_a_last_line_nothing_is_kept(opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / REPORTED.run)
    found = opened(tmp_path)
    found.finish(REPORTED)
    whole = (tmp_path / "cells.jsonl").read_bytes()
    (tmp_path / "cells.jsonl").write_bytes(whole + b'{"method": "fed')
    again = opened(tmp_path)
    assert again.done(REPORTED)
    again.fail(TRIAL, "no")
    lines = (tmp_path / "cells.jsonl").read_bytes().splitlines(keepends=True)
    assert lines[0] == whole
    assert json.loads(lines[1])["reason"] == "no"
    assert len(lines) == 2


@pytest.mark.parametrize("content", ["x\n", "3\n", "{}\n", '{"run": "a"}\n', "[]\n"])
def test_a_damaged_line_is_named_and_left_as_it_is(content: str, opened: Opened, tmp_path: Path) -> None:
    (tmp_path / "cells.jsonl").write_text(content + "half")
    with pytest.raises(InputError, match=r"cells\.jsonl is damaged"):
        opened(tmp_path)
    assert (tmp_path / "cells.jsonl").read_text() == content + "half"


def test_the_winning_trial_becomes_the_reported_run(opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / TRIAL.run)
    found = opened(tmp_path)
    found.finish(TRIAL)
    found.adopt(TRIAL, REPORTED)
    assert not (tmp_path / TRIAL.run).exists()
    assert (tmp_path / REPORTED.run / "checkpoint").exists()
    found.finish(REPORTED)
    found.adopt(TRIAL, REPORTED)  # a second time does nothing
    assert found.done(TRIAL)
    assert found.done(REPORTED)
    found.drop_models(REPORTED)
    assert [p.name for p in sorted((tmp_path / REPORTED.run).iterdir())] == ["manifest.json", "summary.json"]


@pytest.mark.parametrize("cell", [Cell("fedprox", 3, {"lr": 0.3}), Cell("fedprox", 3)])
def test_a_run_with_other_parameters_is_not_taken_for_this_one(cell: Cell, opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / REPORTED.run)
    found = opened(tmp_path)
    found.finish(REPORTED)
    with pytest.raises(InputError, match=r"fedprox-seed3 was run with lr = 0.1, which is no longer what is asked for"):
        found.done(cell)


def test_a_reported_run_whose_folder_is_gone_is_not_finished(opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / REPORTED.run)
    found = opened(tmp_path)
    found.finish(REPORTED)
    (tmp_path / REPORTED.run / "summary.json").unlink()
    assert found.done(REPORTED) is None


def test_events_are_those_of_its_run(opened: Opened, tmp_path: Path) -> None:
    complete(tmp_path / REPORTED.run)
    told: list[dict[str, Any]] = [{"event": "start"}, {"event": "end"}]
    (tmp_path / REPORTED.run / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in told))
    assert list(opened(tmp_path).events(REPORTED)) == told
