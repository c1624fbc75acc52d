"""What a site's owner has of it: the models of its clients, complete, and a word on which methods it serves."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("flwr")

from unalike import api, cli, config, personal, runs
from unalike.deploy import site
from unalike.deploy.folder import SITES, read_site
from unalike.deploy.init import init
from unalike.deploy.serverapp import staged
from unalike.engines.flower.client import client_app
from unalike.engines.flower.engine import Flower, Patience
from unalike.engines.flower.grid import LocalGrid
from unalike.errors import InputError, RunError

NAMES = ("oslo", "paris")
KEYS = {"data": "wine", "clients": 2, "models": "mlp-5,mlp-4", "rounds": 2, "local_epochs": 1, "min_per_client": 20}


def deployment(folder: Path, method: str) -> Path:
    init(folder, config.resolve({**KEYS, "method": method}), NAMES)
    return folder


def trained(folder: Path) -> Path:
    """A run of the deployment's, its sites served in this process; the run's folder."""
    hosts = [site.host(read_site(folder / SITES / name), folder / SITES / name) for name in NAMES]
    engine = Flower(
        LocalGrid([client_app(host.answer) for host in hosts]), "run1", patience=Patience(poll=0.001, join=0.3)
    )
    prepared = api.prepare(config.from_toml(folder / runs.EXPERIMENT))
    return api.start_or_resume(folder / "out", prepared, engine).folder


@pytest.mark.parametrize("method", ["pfedafm", "fedproto", "fedavg"])
def test_a_sites_model_is_the_one_that_the_run_ended_with(method: str, tmp_path: Path) -> None:
    folder = deployment(tmp_path / "d", method)
    trained(folder)
    out = api.run(
        api.prepare(config.from_toml(folder / runs.EXPERIMENT), engine="serial"), out=tmp_path / "same"
    ).folder
    rows = np.random.default_rng(0).normal(size=(5, 13)).astype("float32")
    for client, name in enumerate(NAMES):
        found, same = site.extract(folder / SITES / name, client), personal.extract(out, client, last=True)
        assert (found.round, found.method, found.classes) == (same.round, method, same.classes)
        assert torch.equal(found.logits(rows), same.logits(rows))
    assert not torch.equal(found.logits(rows), site.extract(folder / SITES / NAMES[0], 0).logits(rows))


def test_it_is_taken_out_by_the_command_and_predicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = deployment(tmp_path / "d", "pfedafm")
    trained(folder)
    np.savez(tmp_path / "rows.npz", x=np.zeros((2, 13), "float32"))
    with pytest.raises(SystemExit) as done:
        cli.main(["export", str(folder / SITES / "paris"), "--client", "1", "--out", str(tmp_path / "m.safetensors")])
    assert done.value.code == 0
    with pytest.raises(SystemExit) as done:
        cli.main(["predict", str(tmp_path / "m.safetensors"), "--input", str(tmp_path / "rows.npz")])
    assert done.value.code == 0
    assert len(capsys.readouterr().out.splitlines()) == 4  # the file's name, a head, two rows


def test_another_client_or_none_yet_is_named(tmp_path: Path) -> None:
    folder = deployment(tmp_path / "d", "pfedafm")
    with pytest.raises(InputError, match="site paris keeps no model of client 1: its clients are 1"):
        site.extract(folder / SITES / "paris", 1)
    trained(folder)
    with pytest.raises(InputError, match="no model of client 0"):
        site.extract(folder / SITES / "paris", 0)


def test_a_method_that_was_not_agreed_on_is_refused(tmp_path: Path) -> None:
    folder = deployment(tmp_path / "d", "fedproto")
    assert read_site(folder / SITES / "oslo").methods == ("fedproto", "standalone")
    experiment = folder / runs.EXPERIMENT
    experiment.write_text(config.to_toml(config.flat(config.resolve({**KEYS, "method": "fedavg"}))))
    with pytest.raises(RunError, match="the server asks for fedavg, but this site agreed to fedproto, standalone"):
        trained(folder)


def test_the_local_stage_is_agreed_on(tmp_path: Path) -> None:
    from unalike.deploy.folder import Stage, read_deployment

    folder = deployment(tmp_path / "d", "pfedafm")
    local = read_deployment(folder).model_copy(update={"stage": Stage.LOCAL})
    experiment = staged(config.from_toml(folder / runs.EXPERIMENT), local)
    (folder / runs.EXPERIMENT).write_text(config.to_toml(config.flat(experiment)))
    assert api.Result(trained(folder)).summary["bytes"] == {"up": 0, "down": 0}


def test_a_service_that_is_stopped_has_not_failed(tmp_path: Path) -> None:
    """SIGTERM, as systemd sends it: exit code 0, and a word."""
    folder = deployment(tmp_path / "d", "pfedafm")
    command = [sys.executable, "-m", "unalike", "site", str(folder / SITES / "oslo")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert "site oslo: clients (0,)" in process.stderr.readline()
        os.kill(process.pid, signal.SIGTERM)
        assert process.stderr.read().splitlines()[-1] == "unalike: stopped"
    assert process.returncode == 0
