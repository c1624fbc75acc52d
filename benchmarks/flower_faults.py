"""What a deployment survives: kill -9 of its SuperLink, its ServerApp and a site, in the middle of a run.

    python benchmarks/flower_faults.py --out docs/benchmarks/flower_faults.jsonl

For each part a deployment of three sites is rehearsed on loopback, TLS and keys on; after its second round the part is
killed, what a service manager restarts is restarted after a second, and the run is held against the engine in process:
same state_sha256, and how long after the restart the next round and the end came.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unalike import api, config, runs
from unalike.deploy import operate
from unalike.deploy.init import init
from unalike.deploy.processes import free_port
from unalike.deploy.rehearse import Parts, deployed

EXPERIMENT = {"method": "pfedafm", "data": "digits", "clients": 3, "min_per_client": 60, "local_epochs": 1, "seed": 7}
EXPERIMENT |= {"models": ["cnn-4", "cnn-5"], "rounds": 8}
NAMES = ["a", "b", "c"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--kill", default="superlink,serverapp,site")
    asked = parser.parse_args()
    experiment = config.resolve(EXPERIMENT)
    with tempfile.TemporaryDirectory() as scratch:
        alone = api.run(api.prepare(experiment, engine="serial"), out=Path(scratch) / "alone", report=False)
        expected = alone.summary["state_sha256"]
        for victim in asked.kill.split(","):
            line = {"killed": victim, **one(Path(scratch) / victim, experiment, victim, expected)}
            line |= {"commit": runs.commit(), "machine": f"{runs.processor()}, {os.cpu_count()} cores"}
            print(json.dumps(line), flush=True)
            with asked.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


def one(folder: Path, experiment: Any, victim: str, expected: str) -> dict[str, Any]:
    init(folder, experiment, NAMES, f"127.0.0.1:{free_port()}")
    at: dict[str, float] = {}
    told: list[tuple[int, float]] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "round":
            told.append((event["round"], time.monotonic()))

    with deployed(folder, NAMES) as parts:
        killer = threading.Thread(target=kill, args=(folder, parts, victim, told, at))
        killer.start()
        out = operate.run(folder, listeners=[listen])
        killer.join()
    ended = time.monotonic()
    found = api.Result(out).summary["state_sha256"]
    after = [(round, when) for round, when in told if when > at["killed"]]
    repeated = len([round for round, _ in told]) - len({round for round, _ in told})
    return {
        "identical": found == expected,
        "seconds_to_next_round": after[0][1] - at["restarted"],
        "seconds_to_end": ended - at["restarted"],
        "rounds_left": EXPERIMENT["rounds"] - at["round"],
        "committed_rounds_repeated": repeated,
    }


def kill(folder: Path, parts: Parts, victim: str, told: list[tuple[int, float]], at: dict[str, float]) -> None:
    while len(told) < 2:
        time.sleep(0.05)
    time.sleep(0.5)  # into the third round
    at["round"] = told[-1][0]
    pids = {"site": [parts["b"].pid]}
    pids["superlink"] = [p for p in below(parts["server"].pid) if "flower.superlink" in command(p)]
    pids["serverapp"] = [p for p in below(parts["server"].pid) if "flwr-serverapp" in command(p)]
    for pid in pids[victim]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    at["killed"] = time.monotonic()
    if victim == "serverapp":  # unalike deploy run starts it again by itself
        at["restarted"] = at["killed"]
        return
    name = {"site": "b", "superlink": "server"}[victim]
    parts[name].wait()
    time.sleep(1.0)
    at["restarted"] = time.monotonic()
    parts.start(name)


def below(pid: int) -> Iterator[int]:
    """All processes that a process has started, and they."""
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            yield int(child)
            yield from below(int(child))


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


if __name__ == "__main__":
    main()
