"""Synthetic run folders. Nothing in here was measured: tests give the accuracies, the rest follows formulas."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from unalike.report.records import Scores
from unalike.summary import half_width

TIERS = ("cnn-1", "cnn-2", "cnn-3")


def scores(per_client: Mapping[int, float]) -> dict[str, Any]:
    return Scores.of(per_client).model_dump()


def partition(clients: int, classes: Sequence[str]) -> dict[str, Any]:
    rows = [[(7 * i + 3 * c * c + i * c) % 23 for c in range(len(classes))] for i in range(clients)]
    return {
        "scheme": "dirichlet:0.5",
        "hash": "abc123",
        "classes": list(classes),
        "clients": [
            {"id": i, "name": str(i), "tier": TIERS[i % 3], "train": sum(r), "validation": 36, "test": 36, "labels": r}
            for i, r in enumerate(rows)
        ],
    }


def event(r: int, rounds: int, final: Mapping[int, float], alpha: bool, sent: int) -> dict[str, Any]:
    """Accuracy grows towards `final`; alpha moves slowly from one half."""
    reached = {i: a * (1 - 0.6 ** (r + i % 3)) / (1 - 0.6 ** (rounds + i % 3)) for i, a in final.items()}
    measured = {i: {"accuracy": a, "balanced_accuracy": a - 0.02, "loss": 1 - a, "n": 36} for i, a in reached.items()}
    took_part = [i for i in final if (i + r) % 4]
    return {
        "event": "round",
        "round": r,
        "clients": took_part,
        "metrics": {"validation": {"accuracy": fmean(reached.values()), "worst": min(reached.values()), "loss": 0.5}},
        "evaluation": {"validation": measured, "test": measured},
        "updates": {
            i: {"loss": 0.5, **({"alpha_mean": 0.5 - 0.002 * r * (i % 5)} if alpha else {})} for i in took_part
        },
        "bytes_up": sent * len(took_part),
        "bytes_down": sent * len(took_part),
        "wire_bytes_up": (sent + 300) * len(took_part),
        "wire_bytes_down": (sent + 300) * len(took_part),
        "flops": 3e9,
        "seconds": 1.5 + r % 3 / 10,
    }


def write_lines(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def make_run(
    folder: Path,
    algorithm: str,
    final: Mapping[int, float],
    *,
    classes: Sequence[str] = tuple("0123456789"),
    rounds: int = 12,
    seed: int = 0,
    finished: bool = True,
    paper: str = "arXiv 2404.17847",
    clients: Sequence[Mapping[str, Any]] | None = None,
) -> Path:
    """A run whose clients end at the test accuracies `final`."""
    folder.mkdir(parents=True)
    sent = 0 if algorithm == "standalone" else 2_080_992
    events = [event(r, rounds, final, algorithm == "pfedafm", sent) for r in range(1, rounds + 1)]
    total = {way: sum(e[f"bytes_{way}"] for e in events) for way in ("up", "down")}
    drawn = partition(len(final), classes)
    drawn["clients"] = clients or drawn["clients"]
    summary = {
        "algorithm": algorithm,
        "paper": paper,
        "data": "digits",
        "seed": seed,
        "rounds": rounds,
        "clients": len(final),
        "accuracy": scores(final),
        "balanced_accuracy": scores({i: a - 0.02 for i, a in final.items()}),
        "selected_round": rounds - 2,
        "bytes": total,
        "wire_bytes": {way: n + 300 * rounds * bool(n) for way, n in total.items()},
        "flops": 3e9 * rounds,
        "seconds": 18.6,
        "peak_memory_bytes": 412_000_000,
        "state_sha256": "0123456789abcdef" * 4,
        "parameters": {"lr": 0.03, "alpha0": 0.5},
        "partition": "dirichlet:0.5",
        "partition_hash": "abc123",
    }
    manifest = {
        "versions": {"unalike": "0.1.0", "torch": "2.13.0"},
        "machine": {"system": "Linux", "cpus": 2},
        "data": {"name": "digits", "fingerprint": "f00d"},
        "commit": "c0ffee",
    }
    (folder / "partition.json").write_text(json.dumps(drawn), encoding="utf-8")
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    (folder / "experiment.toml").write_text(
        f'method = "{algorithm}"\ndata = "digits"\nrounds = {rounds}\nseed = {seed}\nlr = 0.03\n'
        'local_epochs = 2\nengine = "serial"\nclients = 10\npartition = "dirichlet:0.5"\nsplit = [0.6, 0.2, 0.2]\n',
        encoding="utf-8",
    )
    write_lines(folder / "events.jsonl", [{"event": "start", "method": algorithm}, *events])
    if finished:
        (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def method(name: str, mean: float | None, ci95: float | None = None, **more: Any) -> dict[str, Any]:
    """A row of compare.json."""
    row = {
        "method": name,
        "mean": mean,
        "ci95": ci95,
        "status": "done",
        "seeds": [0, 1, 2] if ci95 is not None else [0],
    }
    if mean is not None:
        sent = 0 if name == "standalone" else 187_000_000
        row |= {"std": 0.05, "worst": mean - 0.1, "worst_decile": mean - 0.08, "bytes_up": sent, "bytes_down": sent}
        row |= {"flops": 3.6e10, "seconds": 18.6, "peak_memory_bytes": 412_000_000}
    return row | more


def row(name: str, means: Sequence[float], reference: Mapping[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A row of compare.json with all that it may have: seeds 0, 1, .. with these means, set against `reference`."""
    paired = [] if reference is None else [a - b for a, b in zip(means, reference["means"], strict=True)]
    difference = reference and {
        "to": reference["method"],
        "mean": fmean(paired),
        "ci95": half_width(paired),
        "per_seed": paired,
    }
    full = {
        "seeds": list(range(len(means))),
        "means": list(means),
        "weighted_mean": fmean(means) + 0.004,
        "best": 0.99,
        "best_decile": 0.98,
        "jain": 0.995,
        "beats_standalone": 0.7,
        "difference": difference,
        "target": {"accuracy": 0.8, "bytes": 12_300_000, "rounds": 14.0, "reached": 2, "seeds": 3},
        "rounds_to_90": {"mean": 4.0, "ci95": 1.2, "per_seed": [4.0, 3.5, 4.5]},
        "bytes_per_round": {"up": 9_350_000, "down": 9_350_000},
        "chosen": {"lr": 0.05, "momentum": 0.9},
        "trials": 24,
        "train": {"loss": 0.3},
    }
    return method(name, fmean(means), half_width(means), **(full | more))


FAILED = method("fedmd", None, status="failed", reason="client 3 sent fc/weight (10, 64), a_b | c & d < e", seeds=[])


def write_comparison(folder: Path, rows: Sequence[Mapping[str, Any]], clients: int = 0) -> Path:
    """compare.json, and a run a method where `clients` is given."""
    folder.mkdir(parents=True)
    for k, one in enumerate(rows):
        if clients and one["mean"] is not None:
            final = {i: min(0.99, one["mean"] + 0.01 * ((i + k) % 5 - 2)) for i in range(clients)}
            make_run(folder / f"{one['method']}-seed0", one["method"], final, rounds=6)
    (folder / "compare.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


FEDERATED = {0: 0.90, 1: 0.92, 2: 0.88, 3: 0.86, 4: 0.83, 5: 0.91, 6: 0.95, 7: 0.90, 8: 0.84, 9: 0.88}
ALONE = {0: 0.85, 1: 0.90, 2: 0.80, 3: 0.33, 4: 0.851, 5: 0.88, 6: 0.94, 7: 0.91, 8: 0.78, 9: 0.87}
AVERAGED = {0: 0.80, 1: 0.92, 2: 0.84, 3: 0.66, 4: 0.79, 5: 0.93, 6: 0.90, 7: 0.85, 8: 0.62, 9: 0.86}
