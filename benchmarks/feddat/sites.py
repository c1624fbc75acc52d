"""Client by client what a grid of comparisons found, beside what always saying the most frequent answer is right for.

    python benchmarks/feddat/sites.py RUNS

RUNS is the folder of a grid such as missing.toml: test accuracies, ± half of the 95 % interval over seeds. The most
frequent answer is that of a client's training rows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from unalike import runs
from unalike.report.units import interval
from unalike.summary import average, half_width


def majority(run: Path) -> dict[str, float]:
    """Each client's share of test rows that its most frequent training answer is right for."""
    found = runs.reopen(run).federation
    y, share = found.source.y, {}
    for info in found.clients:
        most = np.bincount(y[found.rows(info.id, "train")]).argmax()
        share[str(info.id)] = float((y[found.rows(info.id, "test")] == most).mean())
    return share


def per_client(folder: Path, line: dict[str, Any]) -> list[dict[str, float]]:
    """Of each seed the test accuracies of the clients."""
    found = [json.loads((folder / run / runs.SUMMARY).read_text()) for run in line["runs"]]
    return [summary["accuracy"]["per_client"] for summary in found]


def told(values: list[float]) -> str:
    return interval(average(values), half_width(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    folder = parser.parse_args().runs
    for regime in json.loads((folder / "grid.json").read_text())["regimes"]:
        below = folder / regime["folder"]
        lines = json.loads((below / "compare.json").read_text())
        clients = json.loads((below / lines[0]["runs"][0] / "partition.json").read_text())["clients"]
        scores = {line["method"]: per_client(below, line) for line in lines}
        by_majority = [majority(below / run) for run in lines[0]["runs"]]
        print(f"\n| {regime['name']} | trains on | rows | majority | {' | '.join(scores)} |")
        print("|---|---|--:|--:|" + "--:|" * len(scores))
        for client in clients:
            at = str(client["id"])
            shown = [told([seed[at] for seed in found]) for found in (by_majority, *scores.values())]
            has = " and ".join(client.get("modalities", ["image", "text"]))
            print(f"| {client['name']} | {has} | {client['train']} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
