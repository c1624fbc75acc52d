"""Each task by itself: the accuracy of a client's model on its own test rows (P) and on everybody's (TTP).

    python benchmarks/feddpa/tasks.py COMPARISON

COMPARISON is a folder that `unalike compare` wrote with a client a task and `evaluate = ["own", "all"]`; of a grid, the
folder of one regime. Figures are means over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from unalike import runs
from unalike.summary import average


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("comparison", type=Path)
    folder = parser.parse_args().comparison
    lines = json.loads((folder / "compare.json").read_text())
    found = {
        line["method"]: [json.loads((folder / run / runs.SUMMARY).read_text()) for run in line["runs"]]
        for line in lines
        if line["runs"]
    }
    clients = json.loads((folder / lines[0]["runs"][0] / "partition.json").read_text())["clients"]
    print(f"| task | {' | '.join(found)} |\n|---|{'--:|' * len(found)}")
    for client in clients:
        at = str(client["id"])
        cells = [
            f"{average(s['accuracy']['per_client'][at] for s in seeds):.2f} / "
            f"{average(s['scopes']['all']['accuracy']['per_client'][at] for s in seeds):.2f}"
            for seeds in found.values()
        ]
        print(f"| {client['name']} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
