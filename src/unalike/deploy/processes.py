"""Flower's programs as children of ours: quiet, found without a path, and ended with us."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from ..engines.flower.supernode import POLL

QUIET = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.05"}
"""Flower sends nothing home, asks no one for updates, and looks for tasks often."""


def environment(home: Path, **more: str) -> dict[str, str]:
    """What Flower's programs are given: quiet, at home in a folder of ours, and with each other on the path."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    modules = os.pathsep.join(p for p in sys.path if p)
    ours = {"FLWR_HOME": str(home), "PATH": programs, "PYTHONPATH": modules, "NO_PROXY": without_proxy(), POLL: "0.2"}
    return {**os.environ, **QUIET, **ours, **more}


def without_proxy() -> str:
    """NO_PROXY as it is and this machine: a proxy is for the way to the server, not between processes of one site."""
    known = os.environ.get("NO_PROXY") or os.environ.get("no_proxy") or ""
    return ",".join([*filter(None, known.split(",")), "127.0.0.1", "localhost"])


@contextlib.contextmanager
def child(command: Sequence[str], env: Mapping[str, str], log: IO[bytes]) -> Iterator[subprocess.Popen[Any]]:
    """A process that ends with this block, or with us, however that comes."""
    leashed = [sys.executable, "-m", "unalike.deploy.leash", *command]
    process = subprocess.Popen(leashed, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any], patience: float = 10.0) -> None:
    """Ask a process to end, and then its group, if it still has not."""
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(patience)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    """A port of this machine's loopback that nothing listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def interrupted_by_signals() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it has started is ended too."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
