"""CONTRIBUTING's "your own algorithm in 40 lines" and README's Python are run as they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

import unalike
from pages import blocks, run_in


@pytest.fixture
def method(tmp_path: Path) -> Path:
    path = tmp_path / "my_method.py"
    path.write_text(blocks("CONTRIBUTING.md", "python")[0])
    return path


def test_the_algorithm_has_about_40_lines(method: Path) -> None:
    lines = [line for line in method.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 40


def test_the_algorithm_runs_by_the_command_given(method: Path, tmp_path: Path) -> None:
    command = blocks("CONTRIBUTING.md", "bash")[0].splitlines()[0]
    assert command.startswith("unalike run my_method.py:SharedExtractor")
    run_in(tmp_path, "-m", *command.split())
    assert (tmp_path / "runs" / "sharedextractor" / "summary.json").exists()


def test_the_algorithm_keeps_the_contract(method: Path) -> None:
    unalike.check_algorithm(f"{method}:SharedExtractor")


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    run_in(tmp_path, "-c", blocks("README.md", "python")[0])
    assert (tmp_path / "runs" / "mine" / "report.html").exists()


def test_it_sends_the_extractor_only(method: Path, tmp_path: Path) -> None:
    result = unalike.run(f"{method}:SharedExtractor", out=tmp_path / "run", rounds=1, clients=3, report=False)
    spec = unalike.Spec("cnn-3", (1, 8, 8), 10)
    assert result.summary["bytes"]["up"] == 3 * 4 * unalike.models.parameters(spec, "extractor")
