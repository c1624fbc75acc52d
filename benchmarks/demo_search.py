"""Choose the demonstration's rates: the same grid size for every method, judged on validation only.

    python benchmarks/demo_search.py OUT.jsonl [--part 0/2]

Every trial trains on seeds 0, 1, 2 of the demonstration (partition, models and budget as in `unalike.demo`) and is
scored by the clients' mean validation accuracy at the round that is best on it. Finished trials are lines of OUT.jsonl
and are not repeated; the end prints each method's ranking. The test set is not looked at.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import unalike
from unalike.demo import COMMON
from unalike.runs import commit

SEEDS = (0, 1, 2)
PLAIN = [
    {"lr": lr, "momentum": m} for lr, m in itertools.product((0.02, 0.03, 0.05, 0.1, 0.2, 0.3), (0.0, 0.5, 0.9, 0.95))
]
GRIDS: dict[str, list[dict[str, float]]] = {
    "pfedafm": [
        {"lr": lr, "lr_theta": lt, "alpha0": a0, "lr_alpha": la}
        for lr, lt, a0, la in itertools.product((0.05, 0.1, 0.2), (0.1, 0.2), (0.25, 0.5), (0.1, 1.0))
    ],
    "standalone": PLAIN,
    "fedavg": PLAIN,
}
"""24 trials a method."""


def validation_score(method: str, parameters: dict[str, float], seed: int) -> float:
    """Mean validation accuracy over clients at the best round."""
    with tempfile.TemporaryDirectory() as scratch:
        keys: dict[str, Any] = {**COMMON, **parameters, "seed": seed, "engine": "serial"}
        try:
            result = unalike.run(method, out=Path(scratch) / "run", report=False, **keys)
        except unalike.RunError:
            return 0.0  # diverged
        return float(result.summary["validation"]["accuracy"]["mean"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--part", default="0/1", help="i/n: do every n-th trial, from the i-th on")
    arguments = parser.parse_args()
    part, parts = map(int, arguments.part.split("/"))
    trials = [(m, p, s) for m, grid in GRIDS.items() for p in grid for s in SEEDS]
    done = {json.dumps(t["trial"]) for t in read(arguments.out)}
    for number, trial in enumerate(trials):
        if number % parts != part or json.dumps(trial) in done:
            continue
        line = {"trial": trial, "validation": validation_score(*trial), "commit": commit(), "rounds": COMMON["rounds"]}
        with arguments.out.open("a") as file:
            file.write(json.dumps(line) + "\n")
    ranking(read(arguments.out))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def ranking(lines: list[dict[str, Any]]) -> None:
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        method, parameters, _ = line["trial"]
        scores[method][json.dumps(parameters)].append(line["validation"])
    for method, found in scores.items():
        print(f"{method}: {len(found)} trials")
        for parameters, values in sorted(found.items(), key=lambda item: -sum(item[1]) / len(item[1])):
            print(f"  {sum(values) / len(values):.4f}  {parameters}  {[round(v, 3) for v in values]}")


if __name__ == "__main__":
    main()
