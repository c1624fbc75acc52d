"""Run folders to report on, all synthetic."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from synthetic_runs import ALONE, AVERAGED, FEDERATED, make_run, method


@pytest.fixture
def federated(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "pfedafm", "pfedafm", FEDERATED)


@pytest.fixture
def alone(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs" / "standalone", "standalone", ALONE)


@pytest.fixture
def compared(tmp_path: Path) -> Path:
    """Three methods and three seeds, and one that failed."""
    folder = tmp_path / "comparison"
    rows = []
    for name, final, half in (("pfedafm", FEDERATED, 0.011), ("standalone", ALONE, 0.016), ("fedavg", AVERAGED, 0.04)):
        runs = [f"{name}-seed{seed}" for seed in (0, 1, 2)]
        for seed, run in enumerate(runs):
            make_run(folder / run, name, {i: a - 0.01 * seed for i, a in final.items()}, seed=seed)
        rows.append(
            method(
                name,
                fmean(final.values()) - 0.01,
                half,
                runs=runs,
                worst=min(final.values()) - 0.01,
                worst_decile=min(final.values()) - 0.01,
            )
        )
    rows.append(method("fedproto", None, status="failed", reason="client 3 ran out of memory in round 2"))
    (folder / "compare.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder
