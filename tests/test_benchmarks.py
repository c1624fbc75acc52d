"""Settings of all comparisons can be read; benchmarks/htfllib.py as far as it goes without HtFLlib."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unalike.comparison.spec import from_toml
from unalike.data.federation import Federation

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
FILE = BENCHMARKS / "htfllib.py"


@pytest.fixture(scope="module")
def htfllib() -> Any:
    spec = importlib.util.spec_from_file_location("htfllib_benchmark", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("file", sorted(BENCHMARKS.rglob("*.toml")), ids=lambda file: file.stem)
def test_settings_name_methods_and_keys_that_there_are(file: Path) -> None:
    found = from_toml(file, {})
    assert found.methods


def test_both_libraries_get_the_same_rows(htfllib: Any, unlike: Federation, tmp_path: Path) -> None:
    htfllib.write_clients(unlike, tmp_path, seed=1)
    for client in range(len(unlike.clients)):
        for part in ("train", "test"):
            theirs = np.load(tmp_path / part / f"{client}.npz", allow_pickle=True)["data"].tolist()
            ours = {name: rows.numpy() for name, rows in unlike.data(client, part).items()}
            rows = [sorted(zip(map(bytes, d["x"]), d["y"].tolist(), strict=True)) for d in (theirs, ours)]
            assert rows[0] == rows[1]
            assert theirs["y"].tolist() != ours["y"].tolist(), "they never shuffle, so the order is to be random"


def test_the_table_by_hand(htfllib: Any) -> None:
    """Means 0.6 and 0.5; over two seeds half of the interval is 12.706 times half of what the two differ by."""
    values = {"fedproto": (0.59, 0.61), "FedProto": (0.49, 0.51), "fml": (0.7, 0.7), "FML": (0.69, 0.73)}
    lines = [{"run": run, "seed": k, "mean": mean} for run, means in values.items() for k, mean in enumerate(means)]
    proto, fml = htfllib.table(lines, [0, 1]).splitlines()[2:]
    assert proto == "| fedproto | FedProto | 0.600 ± 0.127 | 0.500 ± 0.127 | +10.0 ± 0.0 | yes | yes |"
    assert fml == "| fml | FML | 0.700 ± 0.000 | 0.710 ± 0.254 | -1.0 ± 25.4 | yes | yes |"
    lines[2]["mean"] = lines[3]["mean"] = 0.5
    assert "0.500 ± 0.000 | +10.0 ± 12.7 | **no** | yes |" in htfllib.table(lines, [0, 1])
    assert "| – | – |" in htfllib.table(lines, [0])
