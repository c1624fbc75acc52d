"""Shared fixtures, and the rule that every skip is a listed one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import seeing
from unalike import cli, tiny
from unalike.data.federation import Federation, federation

KNOWN_SKIPS = (Path(__file__).parent / "known_skips.txt").read_text().splitlines()


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def unlike() -> Federation:
    """Six clients with five architectures on the digits."""
    return federation("digits", clients=6, partition="dirichlet:1.0", min_per_client=60, seed=3)


@pytest.fixture(scope="session")
def alike() -> Federation:
    """Four clients with one architecture on the digits."""
    return federation("digits", clients=4, partition="dirichlet:1.0", min_per_client=60, models=["cnn-5"], seed=3)


@pytest.fixture(scope="session")
def tiny_lm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a language model of 170 words trained for seconds: it knows the order of words, and few facts."""
    return tiny.write_model(tmp_path_factory.mktemp("models") / "tiny", steps=40)


@pytest.fixture(scope="session")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of eight tasks, each of 16 training and 4 official test rows."""
    return tiny.write_tasks(tmp_path_factory.mktemp("tasks") / "eight", train=16, test=4)


@pytest.fixture(scope="session")
def asked(tiny_lm: Path, eight: Path) -> Federation:
    """Eight clients with a task each, of 12 training, 4 validation and 4 test rows, and one language model."""
    return federation(str(eight), partition="site", models=[f"lm:{tiny_lm}(r=2)"])


@pytest.fixture(scope="session")
def foundations(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Kind to the folder of an untrained model of it: ViLT, BERT, ViT and CLIP, two layers of 32 each."""
    folder = tmp_path_factory.mktemp("foundations")
    return {kind: seeing.write_model(folder / kind, kind) for kind in seeing.KINDS}


@pytest.fixture(scope="session")
def pictured(foundations: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Three clients with questions about coloured squares, of 12 training, 4 validation and 4 test rows, and a ViLT;
    the last one sees no image."""
    data = seeing.write_questions(tmp_path_factory.mktemp("questions") / "squares")
    return federation(str(data), partition="site", models=[f"vl:{foundations['vilt']}"], modalities="2:text")


@pytest.fixture
def call(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[Any, str, str]]:
    """`unalike` with some arguments, in an empty folder: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def called(*arguments: object) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main([str(a) for a in arguments])
        return (ended.value.code, *capsys.readouterr())

    return called


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in terminalreporter.stats.get("skipped", []):
        terminalreporter.write_line(f"skipped: {report.nodeid}: {_reason(report)}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    unlisted = {_reason(report) for report in skipped} - set(KNOWN_SKIPS)
    if unlisted:
        reporter.write_line(f"skips that are not in tests/known_skips.txt: {sorted(unlisted)}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _reason(report: pytest.TestReport) -> str:
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    return text.removeprefix("Skipped: ")
