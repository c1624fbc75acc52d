"""Client by client what a grid of comparisons found, beside what always saying the most frequent answer is right for.

    python benchmarks/feddat/sites.py RUNS [--last]

RUNS is the folder of a grid such as missing.toml: test accuracies, ± half of the 95 % interval over seeds, of the round
that validation chose or of the last one. The most frequent answer is that of a client's training rows. Below stands, in
points and paired by seed, what a method brings a client of the first regime over its own local adapter, and over the
same method in the other regimes, where not everybody takes part.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from unalike import runs
from unalike.report.columns import difference
from unalike.report.measured import Difference
from unalike.report.units import interval
from unalike.summary import average, half_width
from unalike.summary import difference as paired

Scores = dict[str, list[float]]
"""Of each client, by its id, the test accuracy of every seed."""


@dataclass(frozen=True)
class Regime:
    name: str
    clients: list[dict[str, Any]]
    majority: Scores
    methods: dict[str, Scores]


def majority(run: Path) -> dict[str, float]:
    """Each client's share of test rows that its most frequent training answer is right for."""
    found = runs.reopen(run).federation
    y, share = found.source.y, {}
    for info in found.clients:
        most = np.bincount(y[found.rows(info.id, "train")]).argmax()
        share[str(info.id)] = float((y[found.rows(info.id, "test")] == most).mean())
    return share


def regime(name: str, folder: Path, last: bool) -> Regime:
    lines = json.loads((folder / "compare.json").read_text())
    seeds = [folder / run for run in lines[0]["runs"]]
    clients = json.loads((seeds[0] / "partition.json").read_text())["clients"]

    def by_client(tested: Sequence[dict[str, float]]) -> Scores:
        return {str(client["id"]): [seed[str(client["id"])] for seed in tested] for client in clients}

    def scores(line: dict[str, Any]) -> Scores:
        found = [json.loads((folder / run / runs.SUMMARY).read_text()) for run in line["runs"]]
        return by_client([(summary["last"] if last else summary)["accuracy"]["per_client"] for summary in found])

    most = by_client([majority(run) for run in seeds])
    return Regime(name, clients, most, {line["method"]: scores(line) for line in lines})


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    for cells in ([title, *columns], ["---", *["--:"] * len(columns)], *rows):
        print(f"| {' | '.join(cells)} |")
    print()


def accuracies(found: Regime) -> None:
    rows = []
    for client in found.clients:
        shown = [scores[str(client["id"])] for scores in (found.majority, *found.methods.values())]
        has = " and ".join(client.get("modalities", ["image", "text"]))
        told = [interval(average(values), half_width(values)) for values in shown]
        rows.append([client["name"], has, str(client["train"]), *told])
    show(found.name, ["trains on", "rows", "majority", *found.methods], rows)


def gains(title: str, found: Regime, base: dict[str, Scores]) -> None:
    """Points of each method of `found` above what `base` has for it, of clients that are in both."""

    def points(method: str, client: str) -> str:
        ours, theirs = (dict(enumerate(scores[method][client])) for scores in (found.methods, base))
        return difference(Difference.model_validate(paired(ours, theirs, method)))

    methods = [method for method in found.methods if method in base]
    clients = {client["name"]: str(client["id"]) for client in found.clients}
    both = {name: client for name, client in clients.items() if client in base[methods[0]]}
    rows = [[name, *(points(method, client) for method in methods)] for name, client in both.items()]
    show(title, methods, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--last", action="store_true", help="the last round, not the one that validation chose")
    given = parser.parse_args()
    listed = json.loads((given.runs / "grid.json").read_text())["regimes"]
    regimes = [regime(each["name"], given.runs / each["folder"], given.last) for each in listed]
    for each in regimes:
        accuracies(each)
    first, *others = regimes
    own = {method: first.methods["local-adapter"] for method in first.methods if method != "local-adapter"}
    gains("points over a local adapter", first, own)
    for apart in others:
        gains(f"points over: {apart.name}", first, apart.methods)


if __name__ == "__main__":
    main()
