"""docs/comparing.md and the files in benchmarks/pfedafm do what they say."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from pages import ROOT, blocks, run_in
from unalike import Key, comparison
from unalike.algorithms import ALGORITHMS

FILES = sorted((ROOT / "benchmarks/pfedafm").glob("*.toml"))
KEY = Key.root(0)
SEVEN = {"standalone", "lg-fedavg", "fd", "fedproto", "fml", "fedkd", "fedapen"}


def test_the_pages_python_runs(tmp_path: Path) -> None:
    assert json.loads(run_in(tmp_path, "-c", blocks("docs/comparing.md", "python")[0]).replace("'", '"'))["mean"] <= 1
    assert (tmp_path / "runs" / "wine" / "compare.tex").exists()


def test_the_pages_file_makes_four_settings(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text(blocks("docs/comparing.md", "toml")[0])
    names = [regime.name for regime in comparison.from_toml(tmp_path / "file.toml", {}).regimes]
    assert names == [f"{n} clients, dirichlet:{alpha}" for n in ("ten", "twenty") for alpha in (0.1, 0.5)]


def test_the_pages_two_fedavgs_differ_in_their_loss(tmp_path: Path) -> None:
    (tmp_path / "file.toml").write_text(blocks("docs/comparing.md", "toml")[1])
    asked = comparison.from_toml(tmp_path / "file.toml", {"data": "digits"})
    assert [asked.keys(name) for name in asked.methods] == [
        {"method": "fedavg", "data": "digits", **own} for own in ({}, {"class_balance": 0.99})
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_experiment_files_are_read_and_hold_the_papers_seven(path: Path) -> None:
    asked = comparison.from_toml(path, {})
    assert asked.judged == "pfedafm"
    assert set(asked.rivals) >= SEVEN
    assert asked.points(KEY).keys() == asked.methods.keys()
    assert not asked.tune or len({len(tried) for tried in asked.points(KEY).values()}) == 1
    command = next(line for line in path.read_text().splitlines() if "unalike compare" in line)
    assert str(path.relative_to(ROOT)) in command


@pytest.mark.parametrize("scale", ["full", "scaled"])
@pytest.mark.parametrize("kind", ["pathological", "dirichlet"])
def test_the_papers_settings_are_there_and_take_other_data(scale: str, kind: str) -> None:
    """(N, C) = (10, 1.0), (50, 0.2), (100, 0.1)."""
    path = ROOT / f"benchmarks/pfedafm/{scale}-{kind}.toml"
    regimes = tomllib.loads(path.read_text())["regimes"]
    assert [(r["clients"], r.get("fraction", 1.0)) for r in regimes] == [(10, 1.0), (50, 0.2), (100, 0.1)]
    for data in ("cifar-10", "cifar-100", "fashion-mnist", "digits"):
        assert comparison.from_toml(path, {"data": data}).common["data"] == data


def test_the_regimes_hold_all_methods_of_the_library_that_they_were_written_for() -> None:
    asked = comparison.from_toml(ROOT / "benchmarks/pfedafm/regimes.toml", {})
    homogeneous = {"fedavg-ft", "fedprox", "fedbn", "fedrep", "ditto", "scaffold"}
    compared = {own["method"] for own in asked.methods.values()}
    assert compared >= SEVEN | homogeneous | {"pfedafm", "fedavg"}
    assert compared <= {*ALGORITHMS}
