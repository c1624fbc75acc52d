"""The command line: what it prints where, its exit codes, and one line for every wrong input."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import click
import numpy as np
import pytest
import torch

from comparing import contents
from unalike import ALGORITHMS, api, cli, config
from unalike.data.sources import SOURCES
from unalike.errors import InputError
from unalike.report import console

Call: TypeAlias = Callable[..., tuple[Any, str, str]]
SMALL = ("--data", "wine", "--clients", "3", "--models", "mlp-5", "--min-per-client", "20", "--engine", "serial")
SMALL += ("--local-epochs", "1", "--rounds", "2")

MODELS = """
from torch import nn

def narrow(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, classes))

class Eleven(nn.Module):
    def __init__(self):
        super().__init__()
        self.extractor, self.header = nn.Sequential(nn.Flatten(), nn.Linear(64, 500)), nn.Linear(500, 11)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of pFedAFM on the wines, without a page."""
    keys = {"data": "wine", "clients": 3, "models": "mlp-5", "min_per_client": 20, "rounds": 1, "local_epochs": 1}
    return api.run("pfedafm", out=tmp_path_factory.mktemp("cli") / "run", engine="serial", report=False, **keys).folder


# Lists


def test_methods_as_json(call: Call) -> None:
    code, out, err = call("methods", "--json")
    rows = json.loads(out)
    assert (code, err) == (0, "")
    assert [row["name"] for row in rows] == list(ALGORITHMS)
    assert {"pfedafm", "fedavg", "standalone", "fedprox"} <= {row["name"] for row in rows}
    assert all(set(row) == {"name", "paper", "needs", "summary"} for row in rows)
    assert all(isinstance(text, str) and text for row in rows for text in row.values())


def test_parameters_of_a_method(call: Call) -> None:
    code, out, err = call("methods", "pfedafm", "--json")
    rows = {row["name"]: row for row in json.loads(out)}
    assert (code, err) == (0, "")
    assert rows["alpha0"]["default"] == 0.5
    assert rows["alpha0"]["about"].startswith("Where α starts")
    assert set(rows) == set(config.parameters_of(config.find("pfedafm")))


@pytest.mark.parametrize("arguments", [("methods",), ("methods", "pfedafm"), ("data",), ("doctor",), ("--help",)])
def test_lists_are_tables_for_people(call: Call, arguments: tuple[str, ...]) -> None:
    code, out, err = call(*arguments)
    assert (code, err) == (0, "")
    assert len(out.splitlines()) > 3
    assert "\x1b" not in out


def test_data_and_doctor_as_json(call: Call) -> None:
    assert [row["name"] for row in json.loads(call("data", "--json")[1])] == list(SOURCES)
    rows = {row["check"]: row for row in json.loads(call("doctor", "--json")[1])}
    assert rows["unalike"]["found"] == metadata.version("unalike")
    assert rows["data digits"] == {"check": "data digits", "found": "1797 rows, 10 classes", "status": "ok"}
    assert all(set(row) == {"check", "found", "status"} for row in rows.values())


def test_help_of_run_lists_every_key(call: Call) -> None:
    code, out, _ = call("run", "--help")
    assert code == 0
    missing = {f"--{name.replace('_', '-')}" for name in config.GENERAL if name != "method"} - set(out.split())
    assert not missing


def test_no_command_is_help_and_a_usage_error(call: Call) -> None:
    code, out, _ = call()
    assert code == 2
    assert "Commands" in out


# A run


def test_progress_is_plain_lines_and_the_result_goes_to_standard_output(call: Call, tmp_path: Path) -> None:
    code, out, err = call("run", "pfedafm", *SMALL, "--lr=0.05", "--out", "a")
    assert code == 0
    lines = err.splitlines()
    assert lines[0] == "pfedafm: 2 rounds"
    assert [line.split()[:3] for line in lines[1:]] == [["pfedafm", "round", "1"], ["pfedafm", "round", "2"]]
    assert all("validation" in line and "KiB" in line for line in lines[1:])
    assert "\x1b" not in out + err
    assert out.splitlines()[-1] == "report: a/report.html"
    assert (tmp_path / "a" / "report.html").is_file()
    assert api.Result(tmp_path / "a").summary["parameters"]["lr"] == 0.05


def test_json_is_one_document_and_quiet_is_silence(call: Call, tmp_path: Path) -> None:
    code, out, err = call("run", "fedavg", *SMALL, "--out", "a", "--json")
    assert code == 0
    assert json.loads(out) == api.Result(tmp_path / "a").summary
    assert len(out.splitlines()) == 1
    assert err.splitlines()[0] == "fedavg: 2 rounds"
    assert call("run", "a/experiment.toml", "--out", "b", "--quiet") == (0, "", "")
    again = api.Result(tmp_path / "b").summary
    assert again["state_sha256"] == json.loads(out)["state_sha256"]
    assert again["accuracy"] == json.loads(out)["accuracy"]


def test_without_out_runs_are_numbered(call: Call, tmp_path: Path) -> None:
    for _ in range(2):
        assert call("run", "standalone", *SMALL, "--rounds", "1", "--quiet")[0] == 0
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["standalone", "standalone-2"]


def test_a_run_that_fails_is_one_line_and_keeps_its_folder(call: Call, tmp_path: Path) -> None:
    code, out, err = call("run", "fedavg", *SMALL, "--lr", "1e30", "--out", "a", "--quiet")
    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert "round 1, client" in err
    assert (tmp_path / "a" / "experiment.toml").is_file()


# Using a run


def test_export_and_predict(call: Call, finished: Path, tmp_path: Path) -> None:
    code, out, err = call("export", finished, "--client", "1", "--out", "one.safetensors")
    assert (code, out, err) == (0, "one.safetensors\n", "")
    np.savez(tmp_path / "rows.npz", x=np.ones((3, 13), dtype=np.float32))
    code, out, err = call("predict", "one.safetensors", "--input", "rows.npz")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "row,class,probability"
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == ["0", "1", "2"]
    code, out, err = call("predict", finished, "--client", "1", "--input", "rows.npz", "--json")
    rows = json.loads(out)
    assert (code, err, len(rows)) == (0, "", 3)
    assert sum(rows[0]["probabilities"].values()) == pytest.approx(1)
    assert rows[0]["class"] == max(rows[0]["probabilities"], key=rows[0]["probabilities"].get)


def test_report_prints_its_path(call: Call, finished: Path) -> None:
    assert call("report", finished) == (0, f"{finished / 'report.html'}\n", "")
    (finished / "report.html").unlink()


# Wrong input: one line, exit code 2, and nothing on the disk that was not there

WRONG: list[tuple[str, str]] = [
    ("run pfedafm --partition dirichlet:-1", "dirichlet:-1"),
    ("run pfedafm --partition nonsense", "nonsense"),
    ("run pfedafmm", "unknown method 'pfedafmm'"),
    ("run pfedafm --roundz 3", "unknown key 'roundz': did you mean rounds?"),
    ("run pfedafm fedavg", "unexpected argument 'fedavg'"),
    ("run pfedafm --lr", "--lr needs a value"),
    ("run pfedafm --lr --seed 3", "--lr needs a value"),
    ("run pfedafm --seed", "--seed"),
    ("run pfedafm --seed x", "seed = 'x'"),
    ("run pfedafm --out", "--out"),
    ("run pfedafm --lr -1", "lr = '-1' is refused: it should be greater than 0"),
    ("run pfedafm --split 60/40", "three positive shares"),
    ("run unknown.toml", "unknown.toml: unknown key 'roundss': did you mean rounds?"),
    ("run broken.toml", "broken.toml is not TOML"),
    ("run absent.toml", "there is no experiment file absent.toml"),
    ("run pfedafm --data nan.npz", "row 2, column 2 is NaN; give --impute"),
    ("run pfedafm --data unlabelled.csv", "has no column 'label' (--label); its columns are a, b"),
    ("run pfedafm --data nowhere.csv", "nowhere.csv"),
    ("run pfedafm --data digit", "did you mean digits?"),
    ("run pfedafm --clients 3 --models cnn-5,nets.py:narrow", "emits 64"),
    ("run pfedafm --clients 3 --models nets.py:Eleven", "has (11,) outputs a sample; the data has 10 classes"),
    ("run pfedafm --clients 3 --models nets.py:absent", "has no 'absent'"),
    ("run pfedafm --clients 3 --models cnn-9", "unknown model 'cnn-9'"),
    ("run pfedafm --clients 3 --models mlp-5(depth=3)", "depth"),
    ("run pfedafm --clients 3 --model-map 9=cnn-1", "--model-map names client 9; the clients are 0 to 2"),
    ("run pfedafm --clients 9999", "9999"),
    ("run pfedafm --device cuda:99", "--device cuda:99 cannot be used here"),
    ("run pfedafm --device quantum", "--device quantum cannot be used here"),
    ("run pfedafm --out RUN", "exists already: choose another --out, or continue it with: unalike resume"),
    ("run pfedafm --out nets.py", "nets.py exists already"),
    ("run pfedafm --clients 3 --out nets.py/run", "nets.py/run cannot be written"),
    ("run RUN/experiment.toml --out RUN", "exists already"),
    ("resume RUN", "is finished: there is nothing to resume"),
    ("resume absent", "absent is no run folder"),
    ("report empty", "empty"),
    ("export RUN", "--client"),
    ("export RUN --client 99", "has no client 99: its clients are 0 to 2"),
    ("export RUN --client -1", "-1"),
    ("export RUN --client one", "one"),
    ("export RUN --client 0 --out nets.py", "nets.py exists already: choose another --out"),
    ("export RUN --client 0 --out absent/a.safetensors", "there is no folder absent for a.safetensors"),
    ("export RUN --client 0 --format pickle", "--format pickle is unknown: safetensors or onnx"),
    ("export empty --client 0", "empty is no run folder"),
    ("predict RUN --input nan.npz", "say whose model"),
    ("predict RUN --client 0 --input wide.npz", "x is float64 of shape (2, 14); the model takes numbers (n, 13)"),
    ("predict RUN --client 0 --input absent.npz", "there is no file or folder absent.npz"),
    ("predict RUN --client 0", "--input"),
    ("predict nets.py --input wide.npz", "is no personal model written by `unalike export`"),
    ("methods nothing", "unknown method 'nothing'"),
    ("frobnicate", "frobnicate"),
    ("data --nothing", "--nothing"),
]


@pytest.fixture
def place(call: Call, tmp_path: Path) -> Path:
    """The folder in which wrong things lie."""
    (tmp_path / "unknown.toml").write_text("roundss = 3\n")
    (tmp_path / "broken.toml").write_text("rounds =\n")
    (tmp_path / "unlabelled.csv").write_text("a,b\n1,2\n3,4\n")
    (tmp_path / "nets.py").write_text(MODELS)
    (tmp_path / "empty").mkdir()
    x = np.random.default_rng(0).normal(size=(40, 3))
    x[1, 1] = np.nan
    np.savez(tmp_path / "nan.npz", x=x, y=np.arange(40) % 2)
    np.savez(tmp_path / "wide.npz", x=np.ones((2, 14)))
    return tmp_path


@pytest.mark.parametrize(("line", "words"), WRONG, ids=lambda value: value)
def test_wrong_input_is_one_line_and_changes_nothing(
    line: str, words: str, call: Call, place: Path, finished: Path
) -> None:
    before = contents(place), contents(finished)
    code, out, err = call(*(part.replace("RUN", str(finished)) for part in line.split()))
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("unalike: ")
    assert words in err
    assert "internal error" not in err
    assert (contents(place), contents(finished)) == before


def test_debug_lets_the_error_through(call: Call, place: Path) -> None:
    for line in (["run", "--debug", "nothing"], ["--debug", "resume", "empty"], ["run", "broken.toml", "--debug"]):
        with pytest.raises(InputError):
            cli.main(line)
    with pytest.raises(click.UsageError):
        cli.main(["--debug", "export", "empty"])


def test_an_error_of_ours_is_one_line_too(call: Call, finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a\nb")

    monkeypatch.setattr(api, "prepare", broken)
    expected = "unalike: internal error, ZeroDivisionError: a b (--debug shows where)\n"
    assert call("run", "pfedafm") == (1, "", expected)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", "pfedafm", "--debug"])


def test_an_interruption_is_exit_code_130(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(api, "prepare", interrupted)
    code, out, err = call("run", "pfedafm")
    assert (code, out) == (130, "")
    assert err == "unalike: interrupted: continue a run from its last committed round with: unalike resume RUN\n"


def test_a_run_folder_that_is_in_use_is_refused(call: Call, tmp_path: Path) -> None:
    from unalike import runs

    prepared = api.prepare("standalone", data="wine", clients=3, models="mlp-5", min_per_client=20, engine="serial")
    runs.create(tmp_path / "a", prepared)
    with runs.locked(tmp_path / "a"):
        code, _, err = call("resume", "a", "--quiet")
    assert code == 2
    assert err == "unalike: a is being written by another process\n"


def test_device_cuda_where_there_is_none(call: Call, tmp_path: Path) -> None:
    if not torch.cuda.is_available():
        code, _, err = call("run", "pfedafm", "--device", "cuda")
        assert (code, len(err.splitlines())) == (2, 1)
        assert "--device cuda cannot be used here" in err
        assert list(tmp_path.iterdir()) == []


def test_the_tables_of_a_comparison_fit_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    """Wide figures, a label that looks like markup, and a method that failed."""
    gap = {"to": "standalone", "mean": -0.25, "ci95": 0.125, "per_seed": [-0.25, -0.25]}
    target = {"accuracy": 0.813, "bytes": 99.5 * 2**20, "rounds": 3.5, "reached": 1, "seeds": 2}
    line = {"mean": 0.5, "ci95": 0.125, "std": 0.1, "worst": 0.1, "worst_decile": 0.1, "beats_standalone": 0.5}
    line |= {"bytes_up": 998.5 * 2**20, "bytes_down": 998.5 * 2**20, "flops": 1.234e13, "seconds": 12345.0}
    line |= {"peak_memory_bytes": 998.5 * 2**20, "train": {"alpha_mean": 0.25}, "seeds": [0, 1], "status": "done"}
    told = {"chosen": {"lr": 0.1}, "trials": 4, "difference": gap, "target": target}
    failed = {"method": "fedprox", "mean": None, "seeds": [0, 1], "status": "failed", "reason": "round 1: no"}
    console.show([{**line, **told, "method": "[b]alone[/x]"}, failed])
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    assert "…" not in shown
    for words in ("[b]alone[/x]", "0.500 ±0.125", "-0.250 ±0.125", "99.5 MiB (1/2)", "0.250", "50 %", "12.3"):
        assert words in shown
    for words in ("difference to standalone", "over 2 seeds", "lr = 0.1, best on validation of 4 settings"):
        assert words in " ".join(shown.split())
    assert "fedprox failed: round 1: no" in shown
