"""kill -9 and resume, several times in one run: does it end in the bits of the run that nobody disturbed?

    python benchmarks/killed.py --kills 3 -- feddpa --data FOLDER --partition site --models lm:tiny --rounds 6

What follows -- are the arguments of `unalike run`, without --out. The run is killed with all its processes at random
moments after a committed round, and continued with `unalike resume`. Prints the rounds after which it was killed and
the sha256 of the server's and all clients' states at the end; exit 1 where they differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

UNALIKE = (sys.executable, "-m", "unalike")


def rounds(folder: Path) -> int:
    """How many rounds stand in a run's events."""
    file = folder / "events.jsonl"
    return sum('"event": "round"' in line for line in file.read_text().splitlines()) if file.is_file() else 0


def started(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([*UNALIKE, *arguments, "--quiet"], start_new_session=True)


def finished(*arguments: str) -> None:
    if code := started(*arguments).wait():
        sys.exit(f"unalike {arguments[0]} ended with {code}")


def told(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "summary.json").read_text())
    return {name: summary.get(name) for name in ("state_sha256", "accuracy", "scopes", "selected_round")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("run", nargs="+", help="arguments of unalike run")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as place:
        whole, torn = Path(place) / "whole", Path(place) / "torn"
        finished("run", *given.run, "--out", str(whole))
        process, killed = started("run", *given.run, "--out", str(torn)), []
        for _ in range(given.kills):
            before = rounds(torn)
            while process.poll() is None and rounds(torn) <= before:
                time.sleep(0.01)
            time.sleep(rng.random())
            if process.poll() is not None:
                break
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            killed.append(rounds(torn))
            process = started("resume", str(torn))
        process.wait()
        ends = [told(folder) for folder in (whole, torn)]
        print(json.dumps({"killed_after_rounds": killed, "sha256": [end["state_sha256"] for end in ends]}))
        sys.exit(ends[0] != ends[1] or len(killed) < given.kills)


if __name__ == "__main__":
    main()
