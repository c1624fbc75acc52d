"""The share of a round that the server takes to make impressions, with 2 and with 5 local epochs, in two processes.

    python benchmarks/impressions_time.py [--data fashion-mnist] [--rows 6000] [--model MODEL] [--repeats 2]

Runs of both are interleaved, so that whatever else the machine does meets both. A round's time is from selection to
commit; evaluation is left out, and so is the first synthesis, which searches for its step size and is told apart.
Prints one JSON object for each number of epochs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import unalike

ROUNDS = 5
"""The first is warm-up and ends with the search, the last is evaluated: three are counted."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="fashion-mnist")
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--model", default="cnn-5(norm=True)")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=2)
    asked = parser.parse_args()
    federation = unalike.federation(
        asked.data, rows=asked.rows, clients=asked.clients, partition="dirichlet:0.5", models=[asked.model]
    )
    rounds: dict[int, list[dict[str, Any]]] = {2: [], 5: []}
    for _ in range(asked.repeats):
        for epochs, found in rounds.items():
            found += timed(federation, epochs, asked.images)
    for epochs, found in rounds.items():
        later = [event for event in found if 1 < event["round"] < ROUNDS]
        print(json.dumps({"local_epochs": epochs, **summary(later), **searching(found)}))


def timed(federation: unalike.Federation, epochs: int, images: int) -> list[dict[str, Any]]:
    """The events of the rounds of one run."""
    with tempfile.TemporaryDirectory() as scratch:
        run = unalike.run(
            "fedimpres",
            federation,
            out=Path(scratch) / "run",
            report=False,
            rounds=ROUNDS,
            warm_up=1,
            local_epochs=epochs,
            images=images,
            engine="processes",
            workers=2,
            eval_every=ROUNDS,
        )
        return [event for event in run.events() if event["event"] == "round"]


def summary(events: list[dict[str, Any]]) -> dict[str, Any]:
    """The server's share of a round, and what it is a share of, in medians over rounds."""
    shares = [event["server_seconds"] / event["seconds"] for event in events]
    return {
        "share": round(statistics.median(shares), 3),
        "shares": [round(share, 3) for share in sorted(shares)],
        "server_seconds": round(statistics.median(event["server_seconds"] for event in events), 2),
        "seconds": round(statistics.median(event["seconds"] for event in events), 2),
        "synthetic_loss": [round(event["metrics"]["server"]["synthetic_loss"], 4) for event in events],
    }


def searching(events: list[dict[str, Any]]) -> dict[str, Any]:
    """What the first synthesis of each run took, with its search."""
    return {"first_server_seconds": [round(event["server_seconds"], 2) for event in events if event["round"] == 1]}


if __name__ == "__main__":
    main()
