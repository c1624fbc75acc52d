"""FedDPA with SmolLM2-135M: the tasks of the comparison, the time of a step, and what clients of one process share.

    python benchmarks/feddpa/smollm2.py tasks SOURCE FOLDER                 the eight tasks, cut to 80 and 16 rows each
    python benchmarks/feddpa/smollm2.py steps MODEL FOLDER --out F.jsonl    seconds a step, float32 and bfloat16 in turn
    python benchmarks/feddpa/smollm2.py memory MODEL FOLDER --out F.jsonl   peak memory of a run of 1 client, and of 8

SOURCE has TASK.train.json and TASK.test.json of tasks of BIG-bench (github.com/keirp/automatic_prompt_engineer @
eac521c7), MODEL is a folder, a .gguf file or a hub id. Of 80 rows 64 train and 16 validate.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from unalike import api, runs
from unalike.data.federation import Federation, federation
from unalike.protocol import Job
from unalike.rng import Key

TASKS = (
    "epistemic_reasoning",
    "implicatures",
    "logical_fallacy_detection",
    "navigate",
    "object_counting",
    "ruin_names",
    "sports_understanding",
    "winowhy",
)
ROWS = {"train": 80, "test": 16}
FEW = 16
"""Rows of a task where only time and memory are asked for."""
REPEATS = 5
WATCHED = """import resource, subprocess, sys
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)"""
"""A program that runs a command and prints its peak resident memory in bytes (Linux)."""


def write_tasks(source: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        for part, count in ROWS.items():
            rows = json.loads((source / f"{task}.{part}.json").read_text())
            drawn = np.sort((Key.root(0) / task / part).numpy().permutation(len(rows))[:count])
            (folder / f"{task}.{part}.json").write_text(json.dumps([rows[i] for i in drawn], indent=1))


def clients(model: str, dtype: str, folder: Path) -> Federation:
    options = f"(dtype='{dtype}', length=160)"
    return federation(str(folder), partition="site", split=(0.64, 0.16, 0.2), models=[f"lm:{model}{options}"])


def steps(model: str, folder: Path) -> dict[str, Any]:
    """Seconds a step of FedDPA-T, both adapters counted, batches of 8; a visit of either precision in turn."""
    seconds: dict[str, list[float]] = {"float32": [], "bfloat16": []}
    key, ready = Key.root(0), {}
    for dtype in seconds:
        found = clients(model, dtype, folder)
        method = api.prepare("feddpa", found, local_epochs=1, batch_size=8).algorithm
        data = {name: rows[:FEW] for name, rows in found.data(1, "train").items()}
        info = replace(found.clients[1], n=FEW)
        job = Job(info, 1, method.broadcast(method.init_server(key), info, 1), {}, data, key)
        ready[dtype] = (method, job, 2 * -(-info.n // 8))
        method.client_update(job)
    for _ in range(REPEATS):
        for dtype, (method, job, count) in ready.items():
            begun = time.perf_counter()
            method.client_update(job)
            seconds[dtype].append((time.perf_counter() - begun) / count)
    ratios = [b / f for b, f in zip(seconds["bfloat16"], seconds["float32"], strict=True)]
    return {"what": "steps", "seconds_a_step": seconds, "bfloat16_over_float32": float(np.median(ratios))}


def memory(model: str, folder: Path) -> dict[str, Any]:
    """Peak resident memory of `unalike run feddpa` in one process, of the first task alone and of all eight."""
    peaks: dict[str, int] = {}
    for count in (1, len(TASKS)):
        with tempfile.TemporaryDirectory() as place:
            some = Path(place) / "tasks"
            some.mkdir()
            for task in TASKS[:count]:
                for part in ROWS:
                    name = f"{task}.{part}.json"
                    (some / name).write_text(json.dumps(json.loads((folder / name).read_text())[:FEW]))
            asked = {"data": some, "partition": "site", "models": f"lm:{model}(length=160)", "rounds": 1}
            asked |= {"local-epochs": 1, "batch-size": 8, "max-new-tokens": 8, "engine": "serial", "eval-every": 1}
            flags = [part for name, value in asked.items() for part in (f"--{name}", str(value))]
            command = [sys.executable, "-m", "unalike", "run", "feddpa", *flags, "--out", str(Path(place) / "run")]
            done = subprocess.run([sys.executable, "-c", WATCHED, *command], capture_output=True, text=True, check=True)
            peaks[str(count)] = int(done.stdout)
    return {"what": "memory", "peak_bytes": peaks, "ratio": peaks[str(len(TASKS))] / peaks["1"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["tasks", "steps", "memory"])
    parser.add_argument("first", help="SOURCE or MODEL")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if given.what == "tasks":
        write_tasks(Path(given.first), given.folder)
        return
    if not given.out:
        parser.error("give --out")
    told = {"steps": steps, "memory": memory}[given.what](given.first, given.folder)
    told |= {"commit": runs.commit(), "machine": runs.processor()}
    with given.out.open("a") as out:
        out.write(json.dumps(told) + "\n")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
