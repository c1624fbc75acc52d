"""docs/coming-from-pfllib.md: its commands and its Python are run on tiny settings, and its tables hold."""

from __future__ import annotations

import importlib.util
import itertools
import re
import shlex
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

import unalike
from pages import blocks, run_in, text
from unalike.algorithms import find
from unalike.config import GENERAL, Experiment, parameters_of
from unalike.data import PLAIN

PAGE = "docs/coming-from-pfllib.md"
SOURCE, METHOD = blocks(PAGE, "python")
TINY = {
    "--data": "digits",
    "--partition": "dirichlet:1.0",
    "--rows": "240",
    "--clients": "3",
    "--min-per-client": "60",
    "--rounds": "1",
    "--seeds": "0,1",
    "--engine": "serial",
}


def commands() -> list[str]:
    """Every command of ours: the lines of bash blocks, and what stands in backticks."""
    lines = [line for block in blocks(PAGE, "bash") for line in block.splitlines()]
    quoted = re.findall(r"`(unalike [a-z]+ [^`]*)`", re.sub(r"```.*?```", "", text(PAGE), flags=re.DOTALL))
    found = [c.replace("\\|", "|") for c in lines + quoted if re.match("unalike (run|compare) ", c)]
    assert len(found) == 8
    return found


def tiny(command: str) -> list[str]:
    """The same command with what makes it long replaced by TINY; a folder keeps its own rows and clients."""
    _, verb, *words = shlex.split(command)
    left_out = {"--seeds"} if verb == "run" else set()
    if "--data plain" in command:
        left_out |= {"--data", "--rows", "--partition", "--clients"}
    kept = {name: value for name, value in TINY.items() if name not in left_out}
    return [verb, *words, *itertools.chain(*kept.items())]


def write_their_folder(folder: Path) -> None:
    """Three clients as PFLlib stores them: a pickled dict of float pixels in -1..1 and labels."""
    x, y = load_digits(return_X_y=True)
    x = (x.reshape(-1, 1, 8, 8) / 8 - 1).astype(np.float32)
    for part, client in itertools.product(("train", "test"), range(3)):
        (folder / part).mkdir(parents=True, exist_ok=True)
        rows = np.arange(client, 300, 3) + (300 if part == "test" else 0)
        with (folder / part / f"{client}.npz").open("wb") as file:
            np.savez_compressed(file, data={"x": x[rows], "y": y[rows]})  # type: ignore[arg-type]


@pytest.fixture
def apfl(tmp_path: Path) -> Path:
    path = tmp_path / "apfl.py"
    path.write_text(METHOD, encoding="utf-8")
    return path


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("apfl_of_the_page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("command", [c for c in commands() if "plain" not in c])
def test_each_command_runs(command: str, apfl: Path) -> None:
    run_in(apfl.parent, "-m", "unalike", *tiny(command), "--out", "out", "--quiet")


def test_their_folder_is_converted_run_and_read_for_their_figure(tmp_path: Path) -> None:
    write_their_folder(tmp_path)
    [convert] = [line for line in blocks(PAGE, "bash")[0].splitlines() if line.startswith("python ")]
    assert convert == PLAIN
    run_in(tmp_path, *shlex.split(convert)[1:])
    [command] = [c for c in commands() if "plain" in c]
    run_in(tmp_path, "-m", "unalike", *tiny(command), "--rounds", "3")
    result = unalike.Result(tmp_path / "runs" / "mnist")
    described = (tmp_path / "runs" / "mnist" / "partition.json").read_text()
    assert described.count('"test": 100') == 3
    theirs = float(run_in(tmp_path, "-c", SOURCE))
    frame = result.frame()
    test = frame[frame["part"] == "test"]
    by_round = (test["accuracy"] * test["n"]).groupby(test["round"]).sum() / test["n"].groupby(test["round"]).sum()
    assert len(by_round) == 3
    assert theirs == pytest.approx(by_round.max())
    assert theirs >= result.summary["accuracy"]["weighted_mean"]


def test_the_ported_method_keeps_the_contract(apfl: Path) -> None:
    unalike.check_algorithm(f"{apfl}:APFL")


def test_the_ported_method_trains_and_sends_the_common_model_only(apfl: Path, alike: unalike.Federation) -> None:
    result = unalike.run(f"{apfl}:APFL", alike, out=apfl.parent / "run", rounds=2, engine="serial", report=False)
    spec = unalike.Spec("cnn-5", (1, 8, 8), 10)
    assert result.summary["bytes"]["up"] == 2 * 4 * 4 * unalike.models.parameters(spec)
    assert result.summary["accuracy"]["mean"] > 0.3
    assert result.summary["train"]["alpha"] != 0.5


def test_the_mixture_is_alpha_v_plus_the_rest_of_w(apfl: Path) -> None:
    own, common = ({"a": torch.tensor([x]), "~steps": torch.tensor(int(x))} for x in (4.0, 8.0))
    params = {"alpha": torch.tensor(0.25), "own": own, "model": common}
    mixed = loaded(apfl).mix(params)
    assert mixed["a"].item() == 0.25 * 4 + 0.75 * 8
    assert mixed["~steps"].item() == 4
    params["alpha"].fill_(1.5)
    loaded(apfl).clamp(params)
    assert params["alpha"].item() == 1


def test_the_options_and_their_defaults_are_as_the_table_says() -> None:
    rows = re.findall(r"^\| .* \| (`(?:[a-z-]+ )?--[^|]*) \| ([^|]+) \|$", text(PAGE), re.MULTILINE)
    found = 0
    for options, defaults in rows:
        named = re.findall(r"`(?:([a-z-]+) )?--([a-z-]+)`", options)
        for (method, option), default in zip(named, defaults.split("<br>"), strict=True):
            name, fields = option.replace("-", "_"), parameters_of(find(method or "fedavg"))
            assert name in fields or (name in GENERAL and not method), option
            real = fields[name].default if name in fields else Experiment.model_fields[name].default
            shown = {"clients": "10", "models": "five sizes", "feature_width": "off"}.get(name, str(real))
            assert default.strip() == shown, option
            found += 1
    assert found == 28


def test_the_names_are_those_of_the_catalogue() -> None:
    table = text(PAGE).partition("## Names")[2]
    here = set(re.findall(r"`([a-z-]+)`", table))
    assert here == set(unalike.ALGORITHMS)
    assert not {"APFL", "FedPer"} & {name.upper() for name in unalike.ALGORITHMS}
