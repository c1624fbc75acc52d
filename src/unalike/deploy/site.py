"""`unalike site`: one process that keeps a site's data, model and private states, and its SuperNode beside it.

    SuperLink ◄── outbound TLS ── SuperNode ── loopback ── this process (warm client, worker)

With `keep_alive = false` Flower starts a process per message instead, which passes it on over a socket that only this
user can open.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from .. import api
from ..data.schema import FILE as SCHEMA
from ..data.schema import Schema
from ..engines.flower.channel import Listener
from ..engines.flower.client import SOCKET, client_app
from ..engines.flower.host import Host, Local
from ..files import write_atomically
from ..personal import PersonalModel
from . import certificates, processes
from .diagnose import diagnose
from .folder import SiteConfig, at_home, read_site, site_federation
from .processes import child, environment, free_port

_log = logging.getLogger("unalike.site")
LOG = "supernode.log"
LONGEST = 5.0
"""Seconds between tries to start a SuperNode that ends at once, as while its key is not registered yet."""


def run(folder: Path, allow_insecure: bool = False) -> None:
    """Serve the site in `folder` until interrupted.

    Raises:
        InputError: something in its files is wrong; nothing was started.
    """
    site = read_site(folder, allow_insecure)
    if not site.insecure:
        for line in certificates.warnings([Path(site.root_certificates)]):
            _log.warning("%s", line)
    os.environ["NO_PROXY"] = processes.without_proxy()
    torch.set_num_threads(1)
    worker = host(site, folder)
    rows = sum(len(worker.federation.rows(client, "train")) for client in site.clients)
    _log.info("site %s: clients %s, %d training rows, server %s", site.name, site.clients, rows, site.superlink)
    with _client(site, worker) as arguments:
        _keep_running(site, arguments)


def host(site: SiteConfig, folder: Path) -> Host:
    """What answers the server's messages, with the site's rows read and held against the agreement."""
    federation = site_federation(site, Schema.from_json(folder / SCHEMA))
    Path(site.state).mkdir(mode=0o700, parents=True, exist_ok=True)
    return Host(_local(site), federation)


def extract(folder: Path, client: int) -> PersonalModel:
    """The complete model of a client of this site, as it was at the last job it was sent.

    Raises:
        InputError: something in the site's files is wrong, or no job of this client has come yet.
    """
    there = host(read_site(folder, allow_insecure=True), folder)
    at, sent = there.last(client)
    return PersonalModel(
        algorithm=at.algorithm,
        method=api.name_of(type(at.algorithm)),
        info=at.federation.clients[client],
        preprocess=at.federation.preprocess(client),
        down=sent.tree,
        state=at.state(client, sent.head["version"], sent.head["sha256"]),
        round=sent.head["round"],
    )


def _local(site: SiteConfig) -> Local:
    return Local(
        name=site.name,
        clients=site.clients,
        folder=Path(site.state),
        memory=None if site.memory is None else int(site.memory),
        modalities=site.modalities,
        device=site.device,
        methods=site.methods,
        keeps_broadcasts=True,
        at_home=lambda name: at_home(name, site.trust),
    )


@contextlib.contextmanager
def _client(site: SiteConfig, worker: Host) -> Iterator[list[str]]:
    """What answers the SuperNode, at work; the SuperNode's arguments that lead to it."""
    port = site.port or free_port()
    common = ["--host", "127.0.0.1", "--port", str(port)]
    if not site.keep_alive:
        listener = Listener(worker.answer)
        try:
            yield [*common, "--isolation", "subprocess", "--node-config", f'{SOCKET}="{listener.address}"']
        finally:
            listener.close()
        return
    from ..engines.flower import warm

    secret, stop = secrets.token_bytes(32), threading.Event()
    file = Path(site.state) / ".superexec"
    write_atomically(file, secret, mode=0o600)
    arguments = (client_app(worker.answer), f"127.0.0.1:{port}", secret, 0.05, stop)
    thread = threading.Thread(target=warm.serve, args=arguments, daemon=True)
    thread.start()
    try:
        yield [*common, "--isolation", "process", "--superexec-auth-secret-file", str(file)]
    finally:
        stop.set()
        file.unlink(missing_ok=True)


def _keep_running(site: SiteConfig, arguments: Sequence[str]) -> None:
    """A SuperNode, started again whenever it ends, until this process is told to end; why it ended is said once."""
    command = [sys.executable, "-m", "unalike.engines.flower.supernode", "--superlink", site.superlink, *arguments]
    if site.insecure:
        command += ["--insecure"]
    else:
        command += ["--root-certificates", site.root_certificates, "--auth-supernode-private-key", site.key]
    told, pause, state = "", 0.5, Path(site.state)
    while True:
        started = time.monotonic()
        with (state / LOG).open("ab") as log, child(command, environment(state / "flower"), log) as process:
            begun = log.tell()
            code = process.wait()
        said = (state / LOG).read_bytes()[begun:].decode(errors="replace")
        found = diagnose(said)
        why = f"{found[0].cause}: {found[0].remedy}" if found else f"it ended with code {code}, see {state / LOG}"
        if why != told:
            _log.warning("site %s has no connection, and tries again: %s", site.name, why)
        told, pause = why, 0.5 if time.monotonic() - started > 60 else min(2 * pause, LONGEST)
        time.sleep(pause)
