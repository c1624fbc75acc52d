"""Recorded and scripted Grids, and hosts behind them, for the tests of Flower's messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flwr.app import Error
from flwr.app import Message as Sent
from flwr.proto.node_pb2 import NodeInfo
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from unalike import api, tree
from unalike.data.federation import Federation
from unalike.engines.flower.client import client_app
from unalike.engines.flower.engine import Flower, Patience
from unalike.engines.flower.grid import LocalGrid
from unalike.engines.flower.host import Host, Local, describe
from unalike.engines.flower.records import from_content, to_content
from unalike.engines.site import Setup
from unalike.engines.wire import Message
from unalike.protocol import Spec
from unalike.rng import Key

QUICK = Patience(poll=0.001, ping=0.05, again=0.01, join=0.3, gone=0.4)


@dataclass
class Recorder:
    """Every message of Flower's that passed, as the bytes that would go over a wire and as what it says."""

    down: list[Message] = field(default_factory=list)
    up: list[Message] = field(default_factory=list)
    sizes: list[tuple[Mapping[str, Any], bool, int]] = field(default_factory=list)
    """Head, whether it goes up, and bytes of every message."""
    wire: list[bytes] = field(default_factory=list)

    def __call__(self, sent: Sent) -> None:
        said, is_up = from_content(sent.content), bool(sent.metadata.reply_to_message_id)
        parts = [part.deflate() for part in get_all_nested_objects(sent).values()]
        self.wire.append(b"".join(parts))
        self.sizes.append((said.head, is_up, sum(map(len, parts))))
        (self.up if is_up else self.down).append(said)


class Scripted(LocalGrid):
    """A Grid whose nodes come and go, and that loses, breaks, forges or repeats what a script says.

    The script is asked with a message's head and node before it is answered, and says "answer", "lose" (it is never
    heard of again), "wait" (it is asked about again), "fail" (Flower's error comes back), "twice" (the reply comes two
    times), or a function that changes the reply.
    """

    def __init__(self, apps: Sequence[Any], script: Callable[[Mapping[str, Any], int], Any] | None = None) -> None:
        super().__init__(apps)
        self.script = script or (lambda head, node: "answer")
        self.names: dict[int, str] = {}
        """Under which a node's key was registered."""
        self.here = set(self._apps)
        self.pushed: list[Mapping[str, Any]] = []

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node, name=self.names.get(node, "")) for node in sorted(self.here)]

    def push_messages(self, messages: Iterable[Sent]) -> Iterable[str]:
        listed = list(messages)
        self.pushed += [from_content(message.content).head for message in listed]
        return super().push_messages(listed)

    def kinds(self) -> list[str]:
        return [head["kind"] for head in self.pushed]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Sent]:
        found: list[Sent] = []
        for id in [id for id in message_ids if id in self._asked]:
            message = self._asked[id]
            node = message.metadata.dst_node_id
            verdict = self.script(from_content(message.content).head, node) if node in self.here else "wait"
            if verdict == "wait":
                continue
            if verdict == "down":  # as a SuperLink says of a node that is away, whenever it is asked
                found.append(Sent(Error(code=3, reason="the node is unavailable"), reply_to=message))
                continue
            del self._asked[id]
            if verdict == "fail":
                found.append(Sent(Error(code=2, reason="the client app is being restarted"), reply_to=message))
            elif verdict != "lose":
                reply = self._answer(message)
                if callable(verdict):
                    changed = verdict(from_content(reply.content))
                    reply = Sent(to_content(changed), reply_to=message)
                found += [reply] * (2 if verdict == "twice" else 1)
        return found


def host(folder: Path, given: Federation, clients: Sequence[int] = (0,), **keys: Any) -> Host:
    """A site with these clients, named after the first one, whose runs lie in `folder`."""
    name = keys.pop("name", f"site{clients[0]}")
    return Host(Local(name=name, clients=clients, folder=folder / name, **keys), given)


def scripted(
    folder: Path, given: Federation, sites: Sequence[Sequence[int]], script: Any = None, **keys: Any
) -> tuple[Scripted, Flower]:
    """A Grid with a site for each group of clients, and an engine on it."""
    grid = Scripted([client_app(host(folder, given, clients).answer) for clients in sites], script)
    return grid, Flower(grid, "run1", patience=keys.pop("patience", QUICK), **keys)


def train(folder: Path, method: Any, given: Federation, engine: Any, listeners: Any = (), **keys: Any) -> api.Result:
    """A run from the start or from where it stands, on an engine made by hand."""
    prepared = api.prepare(method, given, local_epochs=1, **keys)
    return api.start_or_resume(folder, prepared, engine, listeners, given)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in api.Result(folder).events() if event["event"] == "round"]


def setup(given: Federation) -> tuple[Setup, Federation]:
    """A run of pFedAFM's, as an engine is told of it."""
    prepared = api.prepare("pfedafm", given, rounds=2, local_epochs=1)
    return Setup("pfedafm", prepared.parameters, "", "", "00" * 32), prepared.federation


def opening(given: Federation, **changes: Any) -> dict[str, Any]:
    """What a site is told of it."""
    return {"kind": "open", "run": "run1", **describe(*setup(given)), **changes}


def job(given: Federation, client: int = 0, round: int = 1, **changes: Any) -> Message:
    """A job of pFedAFM's for a client, from the state that it starts with."""
    method = api.prepare("pfedafm", given, rounds=2, local_epochs=1).algorithm
    info, key = given.clients[client], Key.root(0)
    down = method.broadcast(method.init_server(key), info, round)
    head = {"kind": "update", "client": client, "round": round, "key": key.digest.hex(), "version": 0, "sha256": ""}
    head |= {"keep": [], "run": "run1", "base": tree.sha256(down)}
    return Message({**head, **changes}, tree.to_bytes(down))


def say(at: Host, head: Mapping[str, Any] | Message) -> Message:
    """What a site answers."""
    return Message.decode(at.answer((head if isinstance(head, Message) else Message(head)).encode()))


def foreign(given: Federation) -> dict[str, Any]:
    """Models that name code of the server's own."""
    spec: Spec = next(iter(given.models.values()))
    return {"own": {"name": "elsewhere:model", "input": list(spec.input), "classes": spec.classes, "features": None}}
