"""`unalike rehearse`: the exact deployment on loopback, with TLS and keys, held against the in-process engine."""

from __future__ import annotations

import contextlib
import logging
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import api, config, runs
from ..config import Experiment
from ..errors import RunError
from ..telemetry.events import Listener
from . import operate
from .folder import SITES, port_of, read_deployment
from .init import init
from .processes import child, environment, free_port

_log = logging.getLogger("unalike.deploy")


@dataclass(frozen=True)
class Rehearsal:
    """What came of it: both runs' hashes, and what a round of the deployment took."""

    deployed: str
    in_process: str
    seconds_per_round: float
    folder: Path

    @property
    def identical(self) -> bool:
        return self.deployed == self.in_process

    def as_json(self) -> dict[str, Any]:
        """What `--json` prints."""
        hashes = {"state_sha256": self.deployed, "in_process_state_sha256": self.in_process}
        return {
            "identical": self.identical,
            **hashes,
            "seconds_per_round": self.seconds_per_round,
            "run": str(self.folder),
        }


def rehearse(
    experiment: Experiment, names: Sequence[str], out: Path, listeners: Sequence[Listener] = (), keep_alive: bool = True
) -> Rehearsal:
    """Deploy `experiment` to sites of these names on this machine, run it, stop everything, run it again in process.

    Args:
        out: folder to make; the deployment is in it, and the run in process in `in-process`.
        keep_alive: whether sites keep their client process between messages.

    Raises:
        InputError: the experiment or the folder is wrong; nothing was started.
        RunError: a part of the deployment failed, in plain words.
    """
    init(out, experiment, names, f"127.0.0.1:{free_port()}")
    with deployed(out, names, keep_alive):
        folder = operate.run(out, listeners=listeners)
    prepared = api.prepare(config.from_toml(out / runs.EXPERIMENT), engine="serial")
    alone = api.run(prepared, out=out / "in-process", report=False)
    found, events = api.Result(folder), [e for e in api.Result(folder).events() if e["event"] == "round"]
    steady = [event["seconds"] for event in events[1:-1]] or [event["seconds"] for event in events]
    return Rehearsal(found.summary["state_sha256"], alone.summary["state_sha256"], sum(steady) / len(steady), folder)


class Parts(dict[str, subprocess.Popen[Any]]):
    """SuperLink and sites as processes of this machine, by name: "server" and the sites'."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        super().__init__()
        self._folder, self._stack = folder, stack

    def start(self, name: str) -> None:
        """Start a part, also once more after it has ended."""
        log = self._stack.enter_context((self._folder / f"{name}.log").open("ab"))
        words = (
            ["deploy", "server", str(self._folder)] if name == "server" else ["site", str(self._folder / SITES / name)]
        )
        command = [sys.executable, "-m", "unalike", *words]
        self[name] = self._stack.enter_context(child(command, environment(self._folder / operate.HOME), log))


@contextlib.contextmanager
def deployed(folder: Path, names: Sequence[str], keep_alive: bool = True) -> Iterator[Parts]:
    """A deployment at work on this machine, ended by pid at the end."""
    with contextlib.ExitStack() as stack:
        parts = Parts(folder, stack)
        parts.start("server")
        for name in names:
            file = folder / SITES / name / "site.toml"
            kept = file.read_text()
            file.write_text(kept if keep_alive else kept.replace("keep_alive = true", "keep_alive = false"))
            parts.start(name)
        _wait(port_of(read_deployment(folder).address), parts["server"], folder / "server.log")
        yield parts


def _wait(port: int, server: subprocess.Popen[Any], log: Path, patience: float = 60.0) -> None:
    """Until the SuperLink listens."""
    end = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
            return
        if server.poll() is not None or time.monotonic() > end:
            raise RunError(log.read_text(errors="replace").strip().splitlines()[-1])
        time.sleep(0.2)
