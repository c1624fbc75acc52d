"""What passes the Grid, for every method: the tensors of its `Wire`, heads of fixed fields, and nothing private."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from messages import Recorder

from catalogue import NETWORKS
from unalike import ALGORITHMS, api, check, tree
from unalike.data.federation import Federation
from unalike.engines.flower.in_process import InProcess
from unalike.engines.store import Store
from unalike.engines.wire import Message

TICKET = {"run", "kind", "client", "round", "key", "version", "sha256", "keep", "base"}
REPLY = {"run", "kind", "client", "round", "peak_memory_bytes"}
TRAINED = {"weight", "metrics", "rows", "version", "sha256", "flops", "seconds"}
ECHO = {"run", "kind"}
DOWN = {
    "open": [
        ECHO | {"protocol", "unalike", "method", "parameters", "init_key", "check_memory", "models", "tiers", "task"}
    ],
    "update": [TICKET, TICKET | {"evaluate"}],
    "evaluate": [TICKET],
}
UP = {
    "open": [ECHO | {"name", "protocol", "versions", "clients"}],
    "update": [REPLY | TRAINED, REPLY | TRAINED | {"scores"}],
    "evaluate": [REPLY | {"scores"}],
}
SCORES = {"accuracy", "balanced_accuracy", "loss", "n"}

LEAST = 8
"""Scalars in a leaf, and different values among them, below which its bytes may be found by chance or say nothing:
zeros are in every message."""


def received(leaf: bytes, name: str, passed: Passed) -> bool:
    """θ as it was sent to this client: pFedAFM predicts with the θ beside which it trained, and keeps a copy."""
    return leaf == passed.down.get(name)


def sent(leaf: bytes, name: str, passed: Passed) -> bool:
    """What this client has sent itself, under the same name: FedAvg-FT predicts with the w_k that it sends, FedCurv
    takes its u_k and v_k out of the sums that come back."""
    return leaf == passed.up.get(name)


def sent_outputs(leaf: bytes, name: str, passed: Passed) -> bool:
    """FD keeps the F̄_k,l it has sent, to take them out of the sum that comes back."""
    return leaf == passed.up.get(name.replace("sent/", "outputs/", 1))


def received_if_whole(leaf: bytes, name: str, passed: Passed) -> bool:
    """FedKD keeps the common s as it last had it: sent whole at a first visit, else moved by a common update, when it
    is what the server has and will send whole to others."""
    return leaf == passed.down.get(name) or any(name.startswith("mentee/") for name in passed.to_others[leaf])


def sent_at_first(leaf: bytes, name: str, passed: Passed) -> bool:
    """SCAFFOLD sends c_k⁺ − c_k, which is c_k⁺ where c_k was zero: at a client's first visit, and then only."""
    return passed.first and leaf == passed.up.get(name)


def received_by_all(leaf: bytes, name: str, passed: Passed) -> bool:
    """ProFL's frozen blocks are the server's: each client is sent them once, and keeps them."""
    return name in passed.to_others[leaf]


KEPT_COPIES = {
    ("pfedafm", "theta"): received,
    ("fedavg-ft", "model"): sent,
    ("fd", "sent"): sent_outputs,
    ("fedkd", "mentee"): received_if_whole,
    ("fedcurv", "u"): sent,
    ("fedcurv", "v"): sent,
    ("scaffold", "control"): sent_at_first,
    ("profl", "frozen"): received_by_all,
}
"""Method and field of its private state: why that is no secret, as a condition on what has passed at that visit."""

KEEP_NOTHING = ("fedavg", "fedprox", "fedimpres", "allsmall", "exclusivefl", "heterofl", "fedrolex", "depthfl")
"""Methods whose clients have no private state."""


@dataclasses.dataclass
class Passed:
    """What passed between the server and a client at one visit: leaf to bytes."""

    down: Mapping[str, bytes]
    up: Mapping[str, bytes]
    first: bool
    to_others: Mapping[bytes, set[str]]
    """Bytes to the names under which they came down to anyone."""


@dataclasses.dataclass
class Traffic:
    name: str
    seen: Recorder
    states: list[tuple[int, int, dict[str, Any]]]
    """Client, round and state, of every one that was kept."""
    federation: Federation


@pytest.fixture(scope="module", params=NETWORKS)
def traffic(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Traffic:
    """Three rounds of a method with half of four unlike clients a round, all messages and all states recorded."""
    name, seen, states = request.param, Recorder(), list[tuple[int, int, dict[str, Any]]]()
    given = check.small_federation(alike=ALGORITHMS[name].equal_architectures)
    save = Store.save

    def saving(self: Store, client: int, version: int, state: Any) -> str:
        states.append((client, version, tree.clone(state)))
        return save(self, client, version, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Store, "save", saving)
        keys: dict[str, Any] = {"local_epochs": 1} if hasattr(ALGORITHMS[name], "local_epochs") else {}
        keys |= {"shrinking": False} if name == "profl" else {}  # only what growing has frozen is kept
        prepared = api.prepare(name, given, rounds=3, fraction=0.5, **keys)
        folder = tmp_path_factory.mktemp("run") / "run"
        api.start_or_resume(folder, prepared, InProcess(seen), federation=given)
    return Traffic(name, seen, states, given)


def leaves(message: Message) -> dict[str, bytes]:
    return {name: raw(leaf) for name, leaf in tree.flatten(message.tree).items()}


def raw(leaf: torch.Tensor) -> bytes:
    return leaf.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def test_the_tensors_are_those_of_the_methods_wire(traffic: Traffic) -> None:
    kind = ALGORITHMS[traffic.name]
    wire = set(sys.modules[kind.__module__].Wire.__annotations__)
    jobs = [m for m in traffic.seen.down if m.head["kind"] != "open"]
    answers = [m for m in traffic.seen.up if m.head["kind"] == "update"]
    assert len(jobs) == 2 * 3 + 4 + len([m for m in jobs if m.head["kind"] == "evaluate" and m.head["round"] < 3])
    assert len(answers) == 2 * 3
    for message in [*jobs, *answers]:
        assert set(message.tree) <= wire
    assert {name for m in answers for name in m.tree} or traffic.name == "standalone"
    for message in [*traffic.seen.down, *traffic.seen.up]:
        if message not in jobs and message not in answers:
            assert message.body == b""


def test_no_tensor_of_a_private_state_passes(traffic: Traffic) -> None:
    """Byte for byte, in none of Flower's objects, but for the copies of `KEPT_COPIES`, each under its condition."""
    wire, first, private, on_wire = b"".join(traffic.seen.wire), set[int](), 0, list[str]()
    down = {(m.head["client"], m.head["round"]): m for m in traffic.seen.down if m.head["kind"] == "update"}
    up = {(m.head["client"], m.head["round"]): m for m in traffic.seen.up if m.head["kind"] == "update"}
    to_others: dict[bytes, set[str]] = {}
    for message in traffic.seen.down:
        for name, leaf in leaves(message).items():
            to_others.setdefault(leaf, set()).add(name)
    for client, round, state in traffic.states:
        visit = (client, round)
        passed = Passed(leaves(down[visit]), leaves(up[visit]), client not in first, to_others)
        first.add(client)
        for name, leaf in tree.flatten(state).items():
            if leaf.numel() < LEAST or len(leaf.unique()) < LEAST:
                continue
            private += 1
            if raw(leaf) in wire:
                why = KEPT_COPIES.get((traffic.name, name.partition("/")[0]))
                if not (why and why(raw(leaf), name, passed)):
                    on_wire.append(f"client {client}, round {round}: {name}")
    keeps = traffic.name not in KEEP_NOTHING
    assert bool(traffic.states) == keeps
    assert private >= (6 if keeps else 0)
    assert on_wire == [], f"{len(on_wire)} private tensors of {private}"


def test_no_row_of_data_passes(traffic: Traffic) -> None:
    """Neither as it lies in the source nor as a model sees it."""
    wire, rows = b"".join(traffic.seen.wire), 0
    found = traffic.federation
    for info in found.clients:
        for part in ("train", "validation", "test"):
            assert all(raw(x) not in wire for x in found.data(info.id, part)["x"][:8])
            for x in found.source.x[found.rows(info.id, part)[:8]]:
                assert x.tobytes() not in wire
                rows += 1
        labels = raw(found.data(info.id, "train")["y"])
        assert labels not in wire
    assert rows > 4 * 3 * 5


def test_heads_hold_a_fixed_set_of_fields(traffic: Traffic) -> None:
    """Numbers and texts; all lists of numbers are as long as something that is told anyway."""
    for message in traffic.seen.down:
        assert set(message.head) in DOWN[message.head["kind"]]
    for message in traffic.seen.up:
        head = message.head
        assert set(head) in UP[head["kind"]]
        for about in head.get("clients", ()):
            assert set(about) == {"id", "n", "memory", "modalities"}
        if head["kind"] == "open":
            assert set(head["versions"]) == {"unalike", "torch", "python"}
        for said in head.get("scores", {}).values():
            assert set(said) <= SCORES
            assert all(isinstance(value, float) for value in said.values())
        assert set(head.get("scores", ())) <= {"validation", "test"}
        assert all(isinstance(value, float) for value in head.get("metrics", {}).values())
        plain = {k: v for k, v in head.items() if k not in ("metrics", "scores", "clients", "versions", "flops")}
        assert all(isinstance(value, int | float | str) for value in plain.values())


def test_the_recorder_would_see_a_private_tensor(tmp_path: Path) -> None:
    """Bytes of a leaf are in what is recorded of the message that carries it."""
    from flwr.app import Message as Sent
    from messages import Scripted

    from unalike.engines.flower.records import to_content
    from unalike.engines.wire import pack

    Scripted([])
    seen, leaf = Recorder(), torch.rand(LEAST)
    seen(Sent(to_content(Message({"kind": "update"}, pack({"model": {"w": leaf}}))), 2, "query"))
    assert raw(leaf) in seen.wire[0]
    assert leaves(seen.down[0]) == {"model/w": raw(leaf)}
