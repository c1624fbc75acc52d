"""What a method leaves for reports: at evaluated rounds, the same bytes after a resume, nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.numpy import load_file

from unalike import api
from unalike.algorithms.fedavg import FedAvg
from unalike.data.federation import Federation, federation

KEYS: dict[str, Any] = {"rounds": 5, "local_epochs": 1, "eval_every": 2, "engine": "serial", "report": False}


@pytest.fixture(scope="module")
def table() -> Federation:
    return federation("wine", clients=2, models=["mlp-5"], min_per_client=20)


class Keeping(FedAvg):
    """Keeps its header's bias, but not after round 4."""

    def keepsakes(self, server: Any, round: int) -> Mapping[str, torch.Tensor]:
        return {} if round == 4 else {"bias": server["model"]["header"]["bias"], "round": torch.tensor(round)}


def kept(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "keepsakes").iterdir())}


def stop(event: Mapping[str, Any]) -> None:
    if event["event"] == "round" and event["round"] == 2:
        raise KeyboardInterrupt


def test_a_file_for_each_evaluated_round_with_something_to_keep(table: Federation, tmp_path: Path) -> None:
    api.run(f"{__file__}:Keeping", table, **KEYS, out=tmp_path / "run")
    assert list(kept(tmp_path / "run")) == ["round-000002.safetensors", "round-000005.safetensors"]
    found = load_file(tmp_path / "run/keepsakes/round-000005.safetensors")
    assert (int(found["round"]), found["bias"].shape) == (5, (3,))
    api.run("fedavg", table, **KEYS, out=tmp_path / "none")
    assert not (tmp_path / "none/keepsakes").exists()


def test_a_resumed_run_leaves_the_same_bytes(table: Federation, tmp_path: Path) -> None:
    api.run(f"{__file__}:Keeping", table, **KEYS, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        api.run(f"{__file__}:Keeping", table, **KEYS, listeners=[stop], out=tmp_path / "resumed")
    (tmp_path / "resumed/keepsakes/.round-000005.safetensors.77.tmp").write_bytes(b"half")
    (tmp_path / "resumed/keepsakes/round-000005.safetensors").write_bytes(b"of a round that was not committed")
    api.resume(tmp_path / "resumed", table, report=False)
    assert kept(tmp_path / "resumed") == kept(tmp_path / "whole")
