"""A thousand clients on one machine: how much memory their states take.

    python benchmarks/many_clients.py [--clients 1000] [--rounds 10] [--budgets 32,4096]

pFedAFM on Fashion-MNIST, ten clients a round, each with a model of about 10 MB of its own. For each store budget (MiB)
a fresh process runs serially and prints one JSON line: the most bytes of states the store ever held in memory, the
bytes of states on disk, and the process's peak RSS. The bits at the end must not depend on the budget.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import unalike
from unalike.engines.store import Store
from unalike.runs import commit, processor


def measure(clients: int, rounds: int, budget: int) -> dict[str, Any]:
    """Run in this process and say what the store held."""
    most = 0
    keep = Store._keep

    def watched(self: Store, *arguments: Any) -> None:
        nonlocal most
        keep(self, *arguments)
        most = max(most, self._held)

    Store._keep = watched  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as scratch:
        result = unalike.run(
            "pfedafm",
            out=Path(scratch) / "run",
            data="fashion-mnist",
            clients=clients,
            partition="iid",
            fraction=10 / clients,
            rounds=rounds,
            local_epochs=1,
            engine="serial",
            eval_every=rounds,
            eval_clients=50,
            store_budget=budget,
            report=False,
        )
        found = result.summary
        on_disk = sum(f.stat().st_size for f in result.folder.glob("checkpoint/clients/*/*.safetensors"))
    return {
        "clients": clients,
        "rounds": rounds,
        "store_budget": budget * 2**20,
        "most_held": most,
        "states_on_disk": on_disk,
        "peak_rss": found["peak_memory_bytes"],
        "state_sha256": found["state_sha256"],
        "seconds": round(found["seconds"], 1),
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--budgets", default="32,4096", help="MiB, comma-separated")
    arguments = parser.parse_args()
    budgets = arguments.budgets.split(",")
    if len(budgets) == 1:
        print(json.dumps(measure(arguments.clients, arguments.rounds, int(budgets[0]))))
        return
    for budget in budgets:
        again = ["--clients", str(arguments.clients), "--rounds", str(arguments.rounds), "--budgets", budget]
        subprocess.run([sys.executable, __file__, *again], check=True)


if __name__ == "__main__":
    main()
