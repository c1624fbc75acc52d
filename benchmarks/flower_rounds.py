"""Seconds per round of a deployment on loopback: three sites, TLS and keys, in three ways.

    python benchmarks/flower_rounds.py --out docs/benchmarks/flower_rounds.jsonl

flower        as Flower comes: a process per message that imports torch, reads the data and trains; Flower's own waits
per-message   a process per message that passes it on to the site's warm worker (keep_alive = false)
warm          the client process stays as well (keep_alive = true, as `unalike site` comes)

The ways take turns, so that a busy machine hurts all alike. The first round, in which sites join, and the last, which
is evaluated in a message of its own, are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unalike import api, config, runs
from unalike.deploy import operate
from unalike.deploy.folder import SITES, read_site
from unalike.deploy.init import init
from unalike.deploy.processes import child, environment, free_port
from unalike.deploy.rehearse import deployed

NAMES = ["a", "b", "c"]
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "mlp, 11 kB": {"method": "fedavg", "data": "wine", "clients": 3, "models": ["mlp-5"]},
    "pfedafm, 2.1 MB": {"method": "pfedafm", "data": "digits", "clients": 3, "min_per_client": 60, "models": ["cnn-5"]},
}
COLD = '''"""A client that holds nothing between messages."""

import os
from pathlib import Path

import torch

from unalike.deploy.folder import read_site
from unalike.deploy.site import host
from unalike.engines.flower.client import client_app

torch.set_num_threads(1)
PLACE = Path(os.environ["UNALIKE_SITE"])
app = client_app(lambda frame: host(read_site(PLACE), PLACE).answer(frame))
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--ways", default="flower,per-message,warm")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    asked = parser.parse_args()
    for repeat in range(asked.repeats):
        for name, keys in EXPERIMENTS.items():
            for way in asked.ways.split(","):
                with tempfile.TemporaryDirectory() as scratch:
                    found = one(Path(scratch) / "run", config.resolve({**keys, "rounds": asked.rounds, "seed": 3}), way)
                line = {"way": way, "experiment": name, "repeat": repeat, **found, "commit": runs.commit()}
                line |= {"machine": f"{runs.processor()}, {os.cpu_count()} cores"}
                print(json.dumps(line), flush=True)
                with asked.out.open("a") as file:
                    file.write(json.dumps(line) + "\n")


def one(folder: Path, experiment: Any, way: str) -> dict[str, Any]:
    init(folder, experiment, NAMES, f"127.0.0.1:{free_port()}")
    with cold(folder) if way == "flower" else deployed(folder, NAMES, keep_alive=way == "warm"):
        out = operate.run(folder)
    rounds = [event for event in api.Result(out).events() if event["event"] == "round"]
    seconds = [event["seconds"] for event in rounds[1:-1]]
    return {"seconds": seconds, "median": statistics.median(seconds), "wire_bytes_up": rounds[1]["wire_bytes_up"]}


@contextlib.contextmanager
def cold(folder: Path) -> Iterator[None]:
    """Flower's SuperNodes as they come, with a ServerApp that waits as Flower's own does."""
    (folder / "app/unalike_app/client.py").write_text(COLD)
    about = folder / "app/pyproject.toml"
    about.write_text(about.read_text() + "poll = 3.0\n")
    slow = {"FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "1.0"}  # as it is where nobody says anything
    with deployed(folder, []), contextlib.ExitStack() as stack:
        for name in NAMES:
            place = folder / SITES / name
            site = read_site(place)
            command = [str(Path(sys.executable).parent / "flower-supernode"), "--superlink", site.superlink]
            command += ["--root-certificates", site.root_certificates, "--auth-supernode-private-key", site.key]
            command += ["--host", "127.0.0.1", "--port", str(free_port())]
            log = stack.enter_context((folder / f"{name}.log").open("wb"))
            env = environment(place / "state/flower", UNALIKE_SITE=str(place), **slow)
            stack.enter_context(child(command, env, log))
        yield


if __name__ == "__main__":
    main()
