"""What answers at a site: its data and private states, kept warm, and the runs it takes part in.

It trusts the server with nothing but the method's messages. Code is only run that is part of unalike, or that the
site's owner trusts; what a job carries is checked against what it says of itself; errors go back as one line, their
traceback stays here. States lie in the site's own folder, a folder a run, and outlive this process.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import platform
import re
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import tasks, tree
from ...data.federation import Federation
from ...errors import InputError, UnalikeError
from ...files import with_tuples, write_atomically, write_json
from ...plugins import label
from ...protocol import ClientInfo, Spec
from ..site import Setup, Site
from ..store import DEFAULT_BUDGET, remove_unreferenced
from ..wire import Message

PROTOCOL = 1
"""Changes whenever messages change so that old and new cannot work together."""
_log = logging.getLogger("unalike.site")
_PATH = re.compile(r"""(['"])(?:[A-Za-z]:)?[/\\].*?\1|(?<![\w/\\.-])(?:[A-Za-z]:|~)?[/\\][^\s'"(),:;]+""")
"""An absolute path: in quotes, or until the next space or mark."""


@dataclass(frozen=True, kw_only=True)
class Local:
    """What a site decides for itself, whatever the server asks for."""

    name: str
    clients: Sequence[int]
    """The numbers of the clients whose data lie here."""
    folder: Path
    """Where the runs it takes part in are kept, each with its private states."""
    states: Path | None = None
    """Where private states lie instead, for a site that shares a run's own folder."""
    memory: int | None = None
    modalities: tuple[str, ...] = ()
    device: str = "cpu"
    budget: int = DEFAULT_BUDGET
    methods: tuple[str, ...] = ()
    """Methods of unalike that the server may ask for; empty is any of them."""
    keeps_broadcasts: bool = False
    """Whether what a client was last sent stays here, so that its owner can take its model out."""
    at_home: Callable[[str], str] = field(default=lambda name: own_code_only(name))
    """What a method or model that the server names is called here; raises `InputError` for code it does not trust."""


def own_code_only(name: str) -> str:
    """The name, if it is one of unalike's own; `InputError` for any other code."""
    if ":" in name.partition("(")[0]:
        raise InputError(f"the server names code of its own, {label(name)}, which this site does not trust")
    return name


def versions() -> dict[str, str]:
    """What must be alike at server and sites (unalike), and what should be for equal bits (torch)."""
    return {name: metadata.version(name) for name in ("unalike", "torch")} | {"python": platform.python_version()}


class Host:
    """Answers the messages of a `Flower` engine, one at a time."""

    def __init__(self, local: Local, federation: Federation) -> None:
        self.local, self.federation = local, federation
        self._sites: dict[str, Site] = {}
        self._lock = threading.Lock()

    def answer(self, frame: bytes) -> bytes:
        """The reply to a frame; an error becomes a reply that says so in one line."""
        message = Message.decode(frame)
        head = message.head
        with self._lock:
            try:
                reply = self._reply(message)
            except Exception as error:  # whatever a message holds, the next one is answered
                why = str(error) if isinstance(error, UnalikeError) else f"{type(error).__name__}: {error}"
                reply = Message({"error": f"site {self.local.name}: {why}", "trace": traceback.format_exc()})
        said = {name: value for name, value in reply.head.items() if name != "trace"}
        if "error" in said:
            _log.error("%s\n%s", said["error"], reply.head.get("trace", ""))
            said["error"] = self._without_paths(said["error"])
        echoed = {name: head[name] for name in ("run", "kind", "round", "client") if name in head}
        return Message({**said, **echoed}, reply.body).encode()

    def _without_paths(self, error: str) -> str:
        """An error in one line that names no folder of this site."""
        for folder in (self.local.states, self.local.folder):
            if folder and folder.is_absolute():  # it may hold spaces
                error = error.replace(str(folder), "/states")
        return _PATH.sub("a file of the site", " ".join(error.split()))

    def _reply(self, message: Message) -> Message:
        kind = message.head["kind"]
        if kind == "ping":
            return Message({})
        if kind == "hello":
            return Message(self._hello())
        if kind == "open":
            self._open(str(message.head["run"]), message.head)
            return Message(self._hello())
        return self._job(message)

    def _hello(self) -> dict[str, Any]:
        clients = [
            {"id": k, "n": n, "memory": self._memory(k), "modalities": self.local.modalities}
            for k, n in self._rows().items()
        ]
        return {"name": self.local.name, "protocol": PROTOCOL, "versions": versions(), "clients": clients}

    def _rows(self) -> dict[int, int]:
        """Number of training rows of each client that is here."""
        return {k: len(self.federation.rows(k, "train")) for k in self.local.clients}

    def _memory(self, client: int) -> int | None:
        """A client's budget: what the site's owner wrote, else what its federation was drawn with."""
        return self.federation.clients[client].memory if self.local.memory is None else self.local.memory

    def _open(self, run: str, asked: Mapping[str, Any]) -> Site:
        """Take part in a run as the server describes it, now and after a restart."""
        if asked["protocol"] != PROTOCOL or asked["unalike"] != metadata.version("unalike"):
            raise InputError(
                f"the server has unalike {asked['unalike']}, this site {metadata.version('unalike')}: install the same"
            )
        folder = self._folder(run)
        known = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
        if known.get("data", self._fingerprint()) != self._fingerprint():
            raise InputError("its data have changed since the run began: put them back, or begin a new run")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._sites[run] = self._site(folder, asked)
        write_json(folder / "run.json", {"data": self._fingerprint(), "asked": dict(asked)})
        return self._sites[run]

    def _site(self, folder: Path, asked: Mapping[str, Any]) -> Site:
        method = str(asked["method"])
        if self.local.methods and ":" not in method and method not in self.local.methods:
            agreed = ", ".join(self.local.methods)
            raise InputError(
                f"the server asks for {label(method)}, but this site agreed to {agreed}: see methods there"
            )
        named = {tier: Spec(**with_tuples(spec)) for tier, spec in asked["models"].items()}
        specs = {tier: dataclasses.replace(spec, name=self.local.at_home(spec.name)) for tier, spec in named.items()}
        own = {
            k: ClientInfo(k, asked["tiers"][k], n, self._memory(k), tuple(self.local.modalities))
            for k, n in self._rows().items()
        }
        infos = tuple(own.get(k, ClientInfo(k, tier, 0)) for k, tier in enumerate(asked["tiers"]))
        federation = dataclasses.replace(
            self.federation, clients=infos, models=specs, task=tasks.restore(asked["task"])
        )
        states = self.local.states or folder / "clients"
        states.mkdir(exist_ok=True)
        setup = Setup(
            method=self.local.at_home(method),
            parameters=asked["parameters"],
            federation="",
            store=str(states),
            init_key=asked["init_key"],
            device=self.local.device,
            budget=self.local.budget,
            check_memory=asked.get("check_memory", True),
        )
        return Site(setup, federation)

    def _job(self, message: Message) -> Message:
        head = message.head
        run, client = str(head["run"]), int(head["client"])
        if client not in self.local.clients:
            raise InputError(f"client {client} is not here: this site has {', '.join(map(str, self.local.clients))}")
        site = self._sites.get(run) or self._reopen(run)
        if tree.sha256(message.tree) != head["base"]:
            raise InputError(f"what arrived for client {client} is not what was sent: its sha256 differs")
        self._tidy(site, client, int(head["version"]), {(client, int(version)) for version in head["keep"]})
        reply = site.reply(message)
        if self.local.keeps_broadcasts and "error" not in reply.head:
            kept = {"round": int(head["round"]) - (head["kind"] == "update"), "client": client}
            kept |= {name: head[name] for name in ("version", "sha256")}
            write_atomically(self._broadcast(run, client), Message(kept, message.body).encode())
        return reply

    def last(self, client: int) -> tuple[Site, Message]:
        """What `client` was last sent, by any run, beside its site; the head says after which round, with which state.

        Raises `InputError` where it has been sent nothing.
        """
        found = [path for path in self.local.folder.glob(f"*/sent/{client}.frame") if path.parts[-3].isalnum()]
        if client not in self.local.clients or not found:
            raise InputError(
                f"site {self.local.name} keeps no model of client {client}: its clients are "
                f"{', '.join(map(str, self.local.clients))}, and a model is there after a client's first job"
            )
        newest = max(found, key=lambda path: path.stat().st_mtime_ns)
        return self._reopen(newest.parts[-3]), Message.decode(newest.read_bytes())

    def _broadcast(self, run: str, client: int) -> Path:
        folder = self._folder(run) / "sent"
        folder.mkdir(exist_ok=True)
        return folder / f"{client}.frame"

    @staticmethod
    def _tidy(site: Site, client: int, version: int, kept: set[tuple[int, int]]) -> None:
        """Delete versions that are older than the one the job starts from, unless they are kept.

        A newer one is of a round that is not committed yet, or that was after this message, if it comes late.
        """
        if site.store.path(client, version).exists():
            remove_unreferenced(site.store.folder, [client], kept, below=version)

    def _folder(self, run: str) -> Path:
        if not run.isalnum():
            raise InputError(f"the server names its run {run!r}: letters and digits were expected")
        return self.local.folder / run

    def _reopen(self, run: str) -> Site:
        """A run that this site had joined before it was restarted."""
        try:
            return self._open(run, json.loads((self._folder(run) / "run.json").read_text())["asked"])
        except FileNotFoundError:
            raise InputError(f"run {run} is not known here") from None

    def _fingerprint(self) -> str:
        """Says whether the data are still the same; it stays at the site."""
        return self.federation.source.fingerprint


def describe(setup: Setup, federation: Federation) -> dict[str, Any]:
    """What a site is told of a run when it joins."""
    return {
        "protocol": PROTOCOL,
        "unalike": metadata.version("unalike"),
        "method": setup.method,
        "parameters": dict(setup.parameters),
        "init_key": setup.init_key,
        "check_memory": setup.check_memory,
        "models": {tier: asdict(spec) for tier, spec in federation.models.items()},
        "tiers": [info.tier for info in federation.clients],
        "task": tasks.describe(federation.task),
    }
