"""What a client's own adapter counts, on its own test inputs and on others': the histogram of a(x) of FedDPA's runs.

    python benchmarks/feddpa/weights.py RUN [RUN ...] --out F.jsonl
    python benchmarks/feddpa/weights.py --table F.jsonl

RUN are run folders of feddpa with weighting "auto"; their models are those of the round best on validation. A line of
F is one run: shares of inputs in `BINS` bins of 0..1, means, and "auc", how often an own input weighs more than another
client's (ties count half). Runs that F has are passed over.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unalike import personal, runs

BINS = 20


@torch.no_grad()
def weights(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """a(x) of every client's model on its own test inputs, and on all others'."""
    prepared = runs.reopen(folder)
    method, found = prepared.algorithm, prepared.federation
    own, others = [], []
    for info in found.clients:
        ready = personal.extract(folder, info.id, False, found).ready_on("cpu")
        for other in found.clients:
            x = found.data(other.id, "test", by=info.id)["x"]
            (own if other.id == info.id else others).append(method.weights(ready, x)[0].numpy())  # type: ignore[attr-defined]
    return np.concatenate(own), np.concatenate(others)


def measured(folder: Path) -> dict[str, Any]:
    own, others = weights(folder)
    parameters = runs.reopen(folder).parameters
    above = np.mean([(a > others).mean() + (a == others).mean() / 2 for a in own])
    told: dict[str, Any] = {"run": folder.name, "auc": float(above), "commit": runs.commit()}
    told |= {name: parameters[name] for name in ("contrast", "similarity", "embedding", "lam", "weighs", "variant")}
    for name, a in (("own", own), ("others", others)):
        counts, _ = np.histogram(a, BINS, (0, 1))
        told[name] = {"mean": float(a.mean()), "std": float(a.std()), "n": len(a), "shares": (counts / len(a)).tolist()}
    return told


def table(lines: Sequence[dict[str, Any]]) -> str:
    """Markdown: a row a run, then the histogram of each, empty bins left out."""
    told = ["| run | a(x) on own inputs | on others' | own above others' |", "|---|---|---|---|"]
    for line in lines:
        both = (f"{line[name]['mean']:.3f} ± {line[name]['std']:.3f}" for name in ("own", "others"))
        told.append(f"| {line['run']} | {' | '.join(both)} | {line['auc']:.3f} |")
    used = [i for i in range(BINS) if any(line[name]["shares"][i] for line in lines for name in ("own", "others"))]
    told += [
        "",
        "| share of inputs | " + " | ".join(f"{i / BINS:.2f}" for i in used) + " |",
        "|---" * (len(used) + 1) + "|",
    ]
    for line in lines:
        for name in ("own", "others"):
            shares = (f"{line[name]['shares'][i]:.2f}" if line[name]["shares"][i] else "" for i in used)
            told.append(f"| {line['run']}, {name} | {' | '.join(shares)} |")
    return "\n".join(told) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    given = parser.parse_args()
    if given.table:
        print(table([json.loads(line) for line in given.table.read_text().splitlines()]), end="")
        return
    if not (given.runs and given.out):
        parser.error("give run folders and --out, or --table")
    known = [json.loads(line)["run"] for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for folder in given.runs:
        if folder.name not in known:
            line = measured(folder)
            with given.out.open("a") as out:
                out.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
