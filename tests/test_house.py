"""The house rules that a machine can check."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import unalike

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent

PUBLIC = """ALGORITHMS Algorithm Arrival ClientInfo Federation InputError Job Key PersonalModel Result RunError Spec
UnalikeError Update algorithms check_algorithm compare data federation load local models prepare resume run tree"""


def call(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    "command",
    [("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",), ("lint-imports", "--no-cache")],
    ids=["ruff", "format", "mypy", "imports"],
)
def test_the_linters_are_content(command: tuple[str, ...]) -> None:
    done = call(BIN / command[0], *command[1:])
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_public_names_are_pinned() -> None:
    assert unalike.__all__ == sorted(PUBLIC.split())
    for name in unalike.__all__:
        assert getattr(unalike, name) is not None


def test_importing_unalike_or_its_help_loads_no_torch() -> None:
    code = "import sys, unalike, unalike.cli, unalike.report; sys.exit('torch' in sys.modules)"
    assert call(sys.executable, "-c", code).returncode == 0


def test_nothing_optional_is_imported() -> None:
    code = (
        "import sys, unalike, unalike.api, unalike.personal, unalike.doctor, unalike.check; "
        "import unalike.deploy.folder, unalike.deploy.init, unalike.deploy.wheels; "
        "[kind for kind in unalike.ALGORITHMS.values()]; "
        "unwanted = {'cryptography', 'datasets', 'flwr', 'onnx', 'onnxruntime', 'onnxscript', 'pandas'} "
        "| {'transformers', 'tokenizers', 'peft', 'gguf', 'rouge_score'}; "
        "sys.exit(', '.join(unwanted & {*sys.modules}) or 0)"
    )
    done = call(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted((ROOT / "src").rglob("*.py")), ids=lambda p: p.name)
def test_no_file_unpickles_evaluates_or_is_too_long(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"import pickle|pickle\.|torch\.(load|save)\(|[^.\w]eval\(|yaml\.load\(", text)
    assert len(text.splitlines()) <= 400


def test_the_contract_stays_under_200_lines() -> None:
    assert len((ROOT / "src/unalike/protocol.py").read_text().splitlines()) < 200


def test_ci_runs_the_readmes_test_command() -> None:
    commands = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert commands[1].strip() in (ROOT / ".ci/run").read_text()
    assert all(len(block.strip().splitlines()) == 1 for block in commands[:2])


def test_every_file_of_the_folder_is_a_method_that_names_its_paper_and_deviations() -> None:
    files = {p.stem for p in (ROOT / "src/unalike/algorithms").glob("*.py")} - {"__init__"}
    assert {kind.__module__.rpartition(".")[2] for kind in unalike.ALGORITHMS.values()} == files
    for name, kind in unalike.ALGORITHMS.items():
        assert kind.paper
        assert kind.__doc__
        about = sys.modules[kind.__module__].__doc__ or ""
        assert "Deviations" in about or name == "standalone"
