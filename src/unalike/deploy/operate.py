"""The server's side of a deployment: SuperLink, keys, runs. Flower's own programs do the work, each by its command."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import config, runs
from ..errors import InputError, RunError
from ..files import write_atomically
from ..telemetry import events
from ..telemetry.events import Listener
from . import certificates
from .diagnose import diagnose
from .folder import APP, SERVER, SITES, Deployment, is_loopback, port_of, read_deployment
from .processes import child, environment
from .serverapp import failure_of, is_driven, run_folder

_log = logging.getLogger("unalike.deploy")
HOME, LOG = ".flower", "superlink.log"
CONNECTION = "here"
STARTING = 60.0
"""Seconds within which a ServerApp that Flower has taken on is at work."""
STARTED = re.compile(r"Successfully started run (\d+)")


def server(folder: Path, allow_insecure: bool = False) -> None:
    """Run the SuperLink of a deployment until interrupted, and say in plain words what it complains of.

    Raises:
        InputError: the deployment's files are wrong, or its port is taken.
        RunError: the SuperLink ended by itself.
    """
    folder = folder.resolve()
    deployment = read_deployment(folder, allow_insecure)
    for line in certificate_warnings(folder, deployment):
        _log.warning("%s", line)
    with superlink(folder, deployment) as process:
        told = set[str]()
        for line in _lines(folder / SERVER / LOG, lambda: process.poll() is not None):
            for finding in diagnose(line):
                if finding.cause not in told:
                    told.add(finding.cause)
                    _log.warning("%s: %s", finding.cause, finding.remedy)
        said = (folder / SERVER / LOG).read_text(errors="replace")
        raise RunError(_why(said, f"the SuperLink ended with code {process.returncode}"))


@contextmanager
def superlink(folder: Path, deployment: Deployment) -> Iterator[subprocess.Popen[Any]]:
    """The SuperLink as a child process; what it says is in server/superlink.log."""
    host = "127.0.0.1" if is_loopback(deployment.address) else "0.0.0.0"
    place = folder / SERVER
    command = [sys.executable, "-m", "unalike.engines.flower.superlink", "--host", host]
    command += ["--port", str(port_of(deployment.address)), "--disable-runtime-dependency-installation"]
    if deployment.insecure:
        command += ["--insecure"]
    else:
        command += ["--ssl-ca-certfile", str(place / "ca.crt"), "--ssl-certfile", str(place / "server.crt")]
        command += ["--ssl-keyfile", str(place / "server.key"), "--enable-supernode-auth"]
        command += [word for name, key in _keys(folder, deployment) for word in ("--site", f"{name}={key}")]
    env = environment(folder / HOME, FLWR_SUPEREXEC_TASK_POLL_INTERVAL="0.5")  # it only ever starts the ServerApp
    with (place / LOG).open("wb") as log, child(command, env, log) as process:
        yield process


def _keys(folder: Path, deployment: Deployment) -> list[tuple[str, Path]]:
    """The public keys of the sites that are there; a word on those that are not."""
    found = []
    for name in deployment.sites:
        file = _key(folder, name)
        if file.is_file():
            found.append((name, file))
        else:
            _log.warning("site %s cannot take part: there is no %s: copy its public key there", name, file)
    return found


def _key(folder: Path, site: str) -> Path:
    """Where a site's public key lies at the server."""
    return folder / SITES / site / "node.pub"


def certificate_warnings(folder: Path, deployment: Deployment) -> list[str]:
    """A line for each certificate of the server that ends within 30 days, or is not valid."""
    if deployment.insecure:
        return []
    return certificates.warnings([folder / SERVER / name for name in ("ca.crt", "server.crt")])


def register(folder: Path, allow_insecure: bool = False) -> list[str]:
    """Tell the running SuperLink the public keys that came after its start; names of those it did not know yet."""
    folder = folder.resolve()
    deployment = read_deployment(folder, allow_insecure)
    new = []
    for name in deployment.sites:
        key = _key(folder, name)
        if not key.is_file():
            raise InputError(f"there is no {key}: copy the public key of site {name} there")
        said = _flwr(folder, deployment, ["supernode", "register", str(key), CONNECTION, "--name", name])
        if "registered successfully" in said:
            new.append(name)
        elif "already" not in said:
            raise RunError(_why(said, f"site {name} could not be registered"))
    return new


def run(folder: Path, allow_insecure: bool = False, listeners: Sequence[Listener] = (), wait: float = 600.0) -> Path:
    """Bring the deployment's run to its end, from its last committed round on; its run folder.

    The run goes on without this command too; called again it follows where it stands. A ServerApp that was killed is
    started again, also after its SuperLink had to be.

    Args:
        wait: seconds without a ServerApp at work, after which this gives up.

    Raises:
        RunError: the run failed, or no SuperLink was there to start it.
    """
    folder = folder.resolve()
    deployment, out = read_deployment(folder, allow_insecure), run_folder(folder)
    failed, tail = failure_of(out), _Tail(out / runs.EVENTS, listeners)
    failed.unlink(missing_ok=True)
    next_start, end, said = 0.0, time.monotonic() + wait, ""
    while not (out / runs.SUMMARY).exists() or is_driven(folder):
        tail.tell()
        now = time.monotonic()
        if is_driven(folder):
            next_start, end, said = now, now + wait, ""
        elif failed.exists():
            raise RunError(json.loads(failed.read_text())["error"])
        elif now > end:
            raise RunError(_why(said, f"no ServerApp has been at work for {wait:g} s"))
        elif now >= next_start:
            if ended := _ended(folder, deployment, said):
                raise RunError(_why(ended, "the ServerApp could not start"))
            said = _flwr(folder, deployment, ["run", str(folder / APP), CONNECTION])
            next_start = time.monotonic() + (STARTING if STARTED.search(said) else 2.0)
        time.sleep(0.2)
    tail.tell()
    return out


def status(folder: Path, allow_insecure: bool = False) -> dict[str, Any]:
    """What stands in a deployment's folder: its stage, sites, certificates, and how far its run has come."""
    folder = folder.resolve()
    deployment, out = read_deployment(folder, allow_insecure), run_folder(folder)
    failed = failure_of(out)
    rounds = (
        [e for e in events.read(out / runs.EVENTS) if e["event"] == "round"] if (out / runs.EVENTS).exists() else []
    )
    state = "finished" if (out / runs.SUMMARY).exists() else "running" if is_driven(folder) else "not running"
    found: dict[str, Any] = {
        "deployment": deployment.name,
        "address": deployment.address,
        "stage": deployment.stage.value,
        "sites": list(deployment.sites),
        "certificates": certificate_warnings(folder, deployment) or ["valid for more than 30 days"],
        "run": str(out),
        "state": state,
        "round": rounds[-1]["round"] if rounds else 0,
        "clients of the round": rounds[-1]["clients"] if rounds else [],
    }
    return found | ({"failed": json.loads(failed.read_text())["error"]} if failed.exists() else {})


def _ended(folder: Path, deployment: Deployment, said: str) -> str:
    """What the ServerApp that was started has said, if it has ended without ever being at work."""
    started = STARTED.search(said)
    return _flwr(folder, deployment, ["log", started[1], CONNECTION, "--show"]) if started else ""


class _Tail:
    """Tells listeners the events of a file as it grows; one that was cut after a crash is told anew from there."""

    def __init__(self, path: Path, listeners: Sequence[Listener]) -> None:
        self.path, self.listeners, self.read = path, listeners, 0

    def tell(self) -> None:
        if not self.listeners or not self.path.exists():
            return
        self.read = min(self.read, self.path.stat().st_size)
        with self.path.open("rb") as file:
            file.seek(self.read)
            whole = file.read().rpartition(b"\n")[0]
        self.read += len(whole) + bool(whole)
        for line in whole.splitlines():
            for listener in self.listeners:
                listener(json.loads(line))


def _flwr(folder: Path, deployment: Deployment, arguments: Sequence[str]) -> str:
    """What Flower's command line says to these words, spoken to the deployment's SuperLink."""
    keys = {"address": f"127.0.0.1:{port_of(deployment.address)}"}
    more = {"insecure": True} if deployment.insecure else {"root-certificates": str(folder / SERVER / "ca.crt")}
    env = environment(folder / HOME)
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{config.to_toml(keys | more)}'
    write_atomically(folder / HOME / "config.toml", text.encode())
    command = [str(Path(sys.executable).parent / "flwr"), *arguments]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=folder)
    return done.stdout + done.stderr


def _lines(path: Path, ended: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file as it grows, until `ended` and all are read."""
    with path.open(errors="replace") as file:
        while True:
            over = ended()
            line = file.readline()
            if line:
                yield line
            elif over:
                return
            else:
                time.sleep(0.2)


def _why(said: str, what: str) -> str:
    """What failed, with the cause that Flower's words tell, or its last line."""
    found = diagnose(said)
    if found:
        return f"{what}: {found[0].cause}: {found[0].remedy}"
    last = [line.strip() for line in said.splitlines() if line.strip()][-1:]
    return f"{what}: {last[0] if last else 'it said nothing'}"
