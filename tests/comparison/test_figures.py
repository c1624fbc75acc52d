"""From finished cells to the table, by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from unalike.comparison import Comparison
from unalike.comparison.cells import Cell, Cells
from unalike.comparison.figures import lines
from unalike.summary import over_clients

OURS, ALONE, OTHER = "pfedafm", "alone", "fedprox"
ASKED = {
    OURS: {"method": "pfedafm"},
    ALONE: {"method": "standalone"},
    OTHER: {"method": "fedprox"},
}


def comparison(**given: Any) -> Comparison:
    return Comparison(methods=ASKED, seeds=(0, 1), **given)


def finish(cells: Cells, cell: Cell, test: Sequence[float], validation: Sequence[float]) -> None:
    """A cell whose clients have the scores of `test`, its rounds those of `validation`; a round is 100 bytes."""
    folder = cells.folder / cell.run
    folder.mkdir()
    mean = {"accuracy": {"mean": max(validation)}}
    rows = {str(i): 1.0 for i in range(len(test))}
    found = {
        "rounds": len(validation),
        "accuracy": over_clients({str(i): score for i, score in enumerate(test)}, rows),
        "validation": mean,
        "bytes": {"up": 60, "down": 40},
        "flops": 1.0,
        "seconds": 1.0,
        "peak_memory_bytes": 1,
        "train": {"loss": 1.0},
    }
    (folder / "summary.json").write_text(json.dumps(found))
    (folder / "manifest.json").write_text(json.dumps({"commit": None, "machine": {}, "versions": {}}))
    told = [
        {"event": "round", "round": i, "bytes_up": 60, "bytes_down": 40, "metrics": {"validation": {"accuracy": score}}}
        for i, score in enumerate(validation, 1)
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in told))
    cells.finish(cell)


def by_method(cells: Cells, asked: Comparison) -> Mapping[str, Any]:
    reported = {label: [Cell(label, seed) for seed in asked.seeds] for label in ASKED}
    return {line["method"]: line for line in lines(asked, cells, reported, 0)}


@pytest.fixture
def empty(tmp_path: Path) -> Iterator[Cells]:
    found = Cells(tmp_path)
    yield found
    found.close()


@pytest.fixture
def cells(empty: Cells) -> Cells:
    """pFedAFM 0.6 and 0.9; standalone 0.5 and 0.5; FedProx 0.9 in seed 1 only, where seed 0 failed."""
    found = empty
    finish(found, Cell(OURS, 0), [0.5, 0.7], [0.1, 0.4, 0.5])
    finish(found, Cell(OURS, 1), [0.8, 1.0], [0.3, 0.3, 0.7])
    finish(found, Cell(ALONE, 0), [0.5, 0.5], [0.57, 0.5, 0.5])
    finish(found, Cell(ALONE, 1), [0.1, 0.9], [0.1, 0.5, 0.2])
    found.fail(Cell(OTHER, 0), "client 1: no")
    finish(found, Cell(OTHER, 1), [0.9, 0.9], [0.2, 0.2, 0.6])
    return found


def test_differences_are_to_the_first_method_or_to_the_reference(cells: Cells) -> None:
    """Standalone minus pFedAFM: −0.1 and −0.4, −0.25 ± t₁ · 0.3 / 2; FedProx has one seed, without an interval."""
    found = by_method(cells, comparison())
    assert found[OURS]["difference"] is None
    gap = found[ALONE]["difference"]
    assert (gap["to"], gap["per_seed"], gap["mean"]) == (OURS, pytest.approx([-0.1, -0.4]), pytest.approx(-0.25))
    assert gap["ci95"] == pytest.approx(12.706205 * 0.15, rel=1e-6)
    gap = found[OTHER]["difference"]
    assert (gap["mean"], gap["ci95"]) == (pytest.approx(0.0), None)
    found = by_method(cells, comparison(reference=ALONE))
    assert found[ALONE]["difference"] is None
    assert found[OURS]["difference"]["per_seed"] == pytest.approx([0.1, 0.4])


def test_the_share_of_clients_that_are_ahead_of_training_alone(cells: Cells) -> None:
    """pFedAFM: 0.7 > 0.5 but 0.5 = 0.5, then 0.8 > 0.1 and 1 > 0.9, so (1/2 + 1) / 2; FedProx: 0.9 > 0.1, 0.9 = 0.9."""
    found = by_method(cells, comparison())
    assert found[OURS]["beats_standalone"] == pytest.approx(0.75)
    assert found[OTHER]["beats_standalone"] == pytest.approx(0.5)
    assert found[ALONE]["beats_standalone"] is None


def test_the_target_is_95_percent_of_what_the_reference_reaches(cells: Cells) -> None:
    """0.95 · (0.5 + 0.7) / 2 = 0.57: pFedAFM is there in seed 1 after 3 rounds, standalone in seed 0 after 1."""
    found = by_method(cells, comparison())
    expected = {"accuracy": 0.57, "reached": 1, "seeds": 2}
    assert found[OURS]["target"] == {**expected, "bytes": 300.0, "rounds": 3.0}
    assert found[ALONE]["target"] == {**expected, "bytes": 100.0, "rounds": 1.0}
    assert found[OTHER]["target"] == {**expected, "bytes": 300.0, "rounds": 3.0, "seeds": 1}


def test_a_target_that_is_given(cells: Cells) -> None:
    """0.4: pFedAFM after two and three rounds, standalone after one and two; 0.99 is reached by none."""
    found = by_method(cells, comparison(target=0.4))
    assert found[OURS]["target"] == {"accuracy": 0.4, "bytes": 250.0, "rounds": 2.5, "reached": 2, "seeds": 2}
    assert found[ALONE]["target"]["rounds"] == 1.5
    none = by_method(cells, comparison(target=0.99))[OURS]["target"]
    assert none == {"accuracy": 0.99, "bytes": None, "rounds": None, "reached": 0, "seeds": 2}


def test_how_soon_a_run_is_nearly_where_it_ends(cells: Cells) -> None:
    """pFedAFM: 0.45 and 0.63, both in round 3; standalone: 0.45 in round 1, 0.18 in round 2."""
    found = by_method(cells, comparison())
    assert found[OURS]["rounds_to_90"] == {"mean": 3.0, "ci95": 0.0, "per_seed": [3.0, 3.0]}
    assert found[ALONE]["rounds_to_90"]["per_seed"] == [1.0, 2.0]
    assert found[OTHER]["rounds_to_90"]["per_seed"] == [3.0]


def test_what_failed_is_said_and_the_seeds_that_are_there_count(cells: Cells) -> None:
    found = by_method(cells, comparison())
    line = found[OTHER]
    assert (line["status"], line["reason"], line["mean"]) == ("failed", "client 1: no", pytest.approx(0.9))
    assert (line["seeds"], line["runs"]) == ([1], ["fedprox-seed1"])
    assert (found[OURS]["status"], found[OURS]["seeds"]) == ("done", [0, 1])
    assert found[OURS]["runs"] == ["pfedafm-seed0", "pfedafm-seed1"]
    assert found[OURS]["means"] == pytest.approx([0.6, 0.9])


def test_a_method_that_has_not_done_all_seeds_is_running(empty: Cells) -> None:
    finish(empty, Cell(ALONE, 0), [0.5, 0.5], [0.5])
    (line,) = by_method(empty, comparison()).values()
    assert (line["method"], line["status"], line["seeds"]) == (ALONE, "running", [0])
    assert (line["difference"], line["target"]) == (None, None)


def test_a_method_of_which_nothing_came(empty: Cells) -> None:
    for seed in (0, 1):
        empty.fail(Cell(OURS, seed), "the same")
    empty.fail(Cell(ALONE, 0), "one")
    empty.fail(Cell(ALONE, 1), "other")
    told = by_method(empty, comparison())
    assert (told[OURS]["reason"], told[ALONE]["reason"]) == ("the same", "one; other")
    assert told[OURS]["mean"] is told[OURS]["target"] is told[OURS]["difference"] is None
    assert told[OURS]["runs"] == []
    assert json.loads(json.dumps(list(told.values())))
