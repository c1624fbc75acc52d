"""The models of one run of feddpa under other weightings than the run's own, without training them again.

    python benchmarks/feddpa/weightings.py RUN --out F.jsonl [--only "fixed ½" "local only" ...]
    python benchmarks/feddpa/weightings.py --table F.jsonl

A weighting changes what is predicted and nothing that is trained. The models are the last round's, and each client's
anchors are drawn by one key for all weightings. P is the mean accuracy on clients' own test rows, TTP on everybody's.
"""

from __future__ import annotations

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from unalike import personal, runs
from unalike.local import tally
from unalike.rng import Key

WEIGHTINGS: dict[str, dict[str, Any]] = {
    "auto": {},
    "auto, centred": {"contrast": "centred"},
    "auto, λ = 1": {"lam": 1.0},
    "auto, λ = 1, centred": {"lam": 1.0, "contrast": "centred"},
    "fixed ½": {"weighting": "fixed"},
    "global only": {"weighting": "global"},
    "local only": {"weighting": "local"},
    "inverted": {"weighs": "global"},
}


@torch.no_grad()
def scores(folder: Path, settings: dict[str, Any]) -> dict[str, float]:
    """P and TTP of a run's models with other settings of the method."""
    prepared = runs.reopen(folder)
    found, own, everybody = prepared.federation, [], []
    method = replace(prepared.algorithm, **settings)
    for info in found.clients:
        model = personal.extract(folder, info.id, True, found)
        down = {"adapter": model.down["adapter"]}
        ready = method.prepare(info, down, model.state, found.data(info.id, "train"), Key.root(0) / info.id)
        each = []
        for other in found.clients:
            tallies = tally(method.task, lambda rows, r=ready: method.predict(r, rows), found.data(other.id, "test"))
            each.append(method.task.scores(tallies)["accuracy"])
        own.append(each[info.id])
        everybody.append(statistics.mean(each))
    return {"P": statistics.mean(own), "TTP": statistics.mean(everybody)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", nargs="+", choices=WEIGHTINGS, default=[*WEIGHTINGS], metavar="NAME")
    given = parser.parse_args()
    if given.table:
        print("| run | weighting | P | TTP |\n|---|---|---|---|")
        for line in map(json.loads, given.table.read_text().splitlines()):
            print(f"| {line['run']} | {line['weighting']} | {line['P']:.3f} | {line['TTP']:.3f} |")
        return
    if not (given.run and given.out):
        parser.error("give a run folder and --out, or --table")
    known = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    for name in given.only:
        settings = WEIGHTINGS[name]
        line = {"run": given.run.name, "weighting": name}
        if not any(line.items() <= old.items() for old in known):
            line |= scores(given.run, settings) | {"commit": runs.commit()}  # type: ignore[arg-type]
            with given.out.open("a") as out:
                out.write(json.dumps(line, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
