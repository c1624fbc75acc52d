"""The round loop: who is asked, what travels, what is kept, what is reported, and what stops it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import api, models, runs, tree
from unalike.algorithms.fedavg import FedAvg
from unalike.algorithms.pfedafm import PFedAFM
from unalike.algorithms.standalone import Standalone
from unalike.data.federation import Federation, federation
from unalike.engines import loop
from unalike.engines.checkpoint import Checkpoints, Index
from unalike.engines.processes import Processes, Worker
from unalike.engines.serial import Serial
from unalike.engines.site import Setup, forget_peak_memory, peak_memory
from unalike.engines.wire import Message
from unalike.errors import RunError
from unalike.protocol import Algorithm, Arrival, ClientInfo, Job, Update
from unalike.rng import Key
from unalike.summary import summarise

REQUEST = {"kind", "client", "round", "key", "version", "sha256"}
REPLY = {"client", "weight", "metrics", "rows", "version", "sha256", "flops", "seconds", "peak_memory_bytes"}
SCORES = {"client", "scores", "counts", "peak_memory_bytes"}


@pytest.fixture(scope="module")
def table() -> Federation:
    """Four clients with one small model on the wines."""
    return federation("wine", clients=4, models=["mlp-5"], min_per_client=20)


class Scripted:
    """An engine without sites: each client sends back what it got, and its scores are those of a script."""

    name = "scripted"
    workers = 1

    def __init__(self, scores: Mapping[int, Mapping[str, Sequence[float]]] | None = None, **sends: Any) -> None:
        """`scores` is round to {"validation": accuracies, "test": ...}; `sends` replaces fields of updates."""
        self.scores, self.sends = scores or {}, sends
        self.asked: list[Mapping[str, Any]] = []

    def open(self, setup: Setup, federation: Federation) -> None:
        pass

    def map(self, requests: Iterable[bytes]) -> Iterator[bytes]:
        for frame in requests:
            request = Message.decode(frame)
            self.asked.append(request.head)
            yield Message(self.head(request.head), request.body if request.head["kind"] == "update" else b"").encode()

    def head(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        client, round = asked["client"], asked["round"]
        if asked["kind"] == "update":
            kept = {"version": 0, "sha256": "", "flops": 10.0, "peak_memory_bytes": 1}
            return {"client": client, "weight": 1.0, "metrics": {"loss": 1.0}, **kept, **self.sends}
        script = self.scores.get(round, {"validation": [0.5] * 99, "test": [0.5] * 99})
        scores = {part: {"accuracy": found[client], "loss": 1.0} for part, found in script.items()}
        return {"client": client, "scores": scores}

    def visits(self, kind: str) -> dict[int, list[int]]:
        """Round to the clients that were asked for a `kind` of reply, in order."""
        found: dict[int, list[int]] = {}
        for head in self.asked:
            if head["kind"] == kind:
                found.setdefault(head["round"], []).append(head["client"])
        return found

    def close(self) -> None:
        pass


class Recording(Serial):
    """The serial engine, keeping every message that passes."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.replies: list[bytes] = []

    def map(self, requests: Iterable[bytes]) -> Iterator[bytes]:
        def asked() -> Iterator[bytes]:
            for frame in requests:
                self.requests.append(frame)
                yield frame

        for frame in super().map(asked()):
            self.replies.append(frame)
            yield frame


def drive(folder: Path, method: Any, given: Federation, engine: loop.Engine, **keys: Any) -> dict[str, Any]:
    """A run on an engine made by hand; its summary."""
    prepared = api.prepare(method, given, **keys)
    runs.create(folder, prepared)
    try:
        loop.run(prepared.plan(folder), engine)
    finally:
        engine.close()
    return runs.finish(folder, prepared)


def rounds_of(folder: Path) -> list[dict[str, Any]]:
    return [event for event in api.Result(folder).events() if event["event"] == "round"]


# Who is asked


class Lazy(Sequence[ClientInfo]):
    """A million clients of which only those that are asked for exist."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, i: Any) -> Any:
        return ClientInfo(i, "mlp-5", 10)

    def __iter__(self) -> Any:
        raise AssertionError("select must not iterate over the clients")


def test_selection_is_uniform_without_replacement_and_repeatable() -> None:
    """3 of 10 clients in 2000 rounds: each client 600 times (σ = 20.5), each of the 45 pairs 133 times (σ = 11.1)."""
    method, clients = Standalone(fraction=0.3), [ClientInfo(i, "mlp-5", 10) for i in range(10)]
    seen, pairs = Counter[int](), Counter[tuple[int, int]]()
    for round in range(2000):
        key = Key.root(0) / round
        chosen = [info.id for info in method.select({}, clients, round, key)]
        assert chosen == sorted(set(chosen))
        assert len(chosen) == 3
        assert chosen == [info.id for info in method.select({}, clients, round, key)]
        seen.update(chosen)
        pairs.update((a, b) for a in chosen for b in chosen if a < b)
    assert all(abs(n - 600) < 4.5 * 20.5 for n in seen.values()), seen
    assert len(pairs) == 45
    assert all(abs(n - 2000 / 15) < 4.5 * 11.1 for n in pairs.values()), pairs


@pytest.mark.parametrize(("fraction", "n", "expected"), [(1.0, 7, 7), (0.01, 7, 1), (0.5, 5, 3), (0.1, 1, 1)])
def test_how_many_are_selected(fraction: float, n: int, expected: int) -> None:
    """max(1, round(fraction · N)), halves rounded up."""
    clients = [ClientInfo(i, "mlp-5", 10) for i in range(n)]
    assert len(Standalone(fraction=fraction).select({}, clients, 1, Key.root(1))) == expected


def test_selection_among_a_million_asks_for_the_chosen_only() -> None:
    assert len(Standalone(fraction=1e-5).select({}, Lazy(), 1, Key.root(1))) == 10


def test_the_loop_asks_those_with_most_data_first_and_aggregates_in_the_order_of_selection(
    unlike: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, arrived = Scripted(), list[int]()

    def aggregate(self: Standalone, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        arrived.extend(arrival.info.id for arrival in arrivals)
        return server

    monkeypatch.setattr(Standalone, "aggregate", aggregate)
    drive(tmp_path / "run", "standalone", unlike, engine, rounds=1)
    sizes = [unlike.clients[c].n for c in engine.visits("update")[1]]
    assert sizes == sorted(sizes, reverse=True)
    assert arrived == rounds_of(tmp_path / "run")[0]["clients"] == [0, 1, 2, 3, 4, 5]
    assert engine.visits("update")[1] != arrived


def test_each_round_selects_with_a_key_of_its_own(unlike: Federation, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "again", "other")]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        drive(folder, "standalone", unlike, Scripted(), rounds=8, fraction=0.5, seed=seed)
    one, again, other = ([event["clients"] for event in rounds_of(folder)] for folder in folders)
    assert one == again != other
    assert len({tuple(clients) for clients in one}) > 3


# When clients are evaluated, and what is chosen


def test_evaluation_happens_every_so_many_rounds_and_at_the_end(unlike: Federation, tmp_path: Path) -> None:
    engine = Scripted()
    drive(tmp_path / "run", "standalone", unlike, engine, rounds=7, eval_every=3)
    assert engine.visits("evaluate") == {round: [0, 1, 2, 3, 4, 5] for round in (3, 6, 7)}
    events = rounds_of(tmp_path / "run")
    assert [event["round"] for event in events if "evaluation" in event] == [3, 6, 7]
    assert [event["round"] for event in events if "validation" in event["metrics"]] == [3, 6, 7]


def test_a_sample_of_clients_is_the_same_in_every_round_and_for_every_method(
    unlike: Federation, tmp_path: Path
) -> None:
    engines = [Scripted() for _ in range(3)]
    for name, engine, seed in zip(("standalone", "fedavg", "standalone"), engines, (0, 0, 1), strict=True):
        drive(tmp_path / f"{name}-{seed}", name, unlike, engine, rounds=3, eval_clients=2, seed=seed)
    sampled = [{tuple(clients) for clients in engine.visits("evaluate").values()} for engine in engines]
    assert sampled[0] == sampled[1] != sampled[2]
    assert [len(s) for s in sampled] == [1, 1, 1]
    (pair,) = sampled[0]
    assert len(set(pair)) == 2
    assert set(rounds_of(tmp_path / "standalone-0")[0]["evaluation"]["test"]) == {str(client) for client in pair}


def test_the_round_is_chosen_on_validation_where_test_would_choose_another(unlike: Federation, tmp_path: Path) -> None:
    """Validation is best in rounds 2 and 4 alike (the earlier counts); test is best in rounds 1 and 3."""
    scores = {
        1: {"validation": [0.1] * 6, "test": [1.0] * 6},
        2: {"validation": [0.9, 0.5, 0.7, 0.7, 0.7, 0.7], "test": [0.2, 0.4, 0.3, 0.3, 0.3, 0.3]},
        3: {"validation": [0.6] * 6, "test": [1.0] * 6},
        4: {"validation": [0.7] * 6, "test": [0.9] * 6},
        5: {"validation": [0.5] * 6, "test": [0.5] * 6},
    }
    summary = drive(tmp_path / "run", "standalone", unlike, Scripted(scores), rounds=5)
    assert summary["selected_round"] == 2
    assert summary["accuracy"]["mean"] == pytest.approx(0.3)
    assert summary["accuracy"]["worst"] == 0.2
    assert summary["accuracy"]["per_client"] == {"0": 0.2, "1": 0.4, "2": 0.3, "3": 0.3, "4": 0.3, "5": 0.3}
    assert summary["last"]["accuracy"]["mean"] == 0.5
    kept = Checkpoints(tmp_path / "run" / "checkpoint")
    assert kept.read(2).best_round == 2
    assert [event["metrics"]["validation"]["worst"] for event in rounds_of(tmp_path / "run")][1] == 0.5


# What the summary says


def event(round: int, test: Mapping[str, float] | None = None, **more: Any) -> dict[str, Any]:
    """A round's event; every client scores `test`, with half of it as balanced accuracy and 0.9 on validation."""
    costs = {
        "bytes_up": 10 * round,
        "bytes_down": 20,
        "wire_bytes_up": 11 * round,
        "wire_bytes_down": 21,
        "flops": 1e3,
        "seconds": 0.5,
        "peak_memory_bytes": 1000 - round,
    }
    found: dict[str, Any] = {
        "event": "round",
        "round": round,
        "clients": [0],
        "metrics": {"train": {"loss": round}},
        **costs,
        **more,
    }
    if test:
        scores = {c: {"accuracy": v, "balanced_accuracy": v / 2, "loss": 1.0, "n": 5.0} for c, v in test.items()}
        found["evaluation"] = {"test": scores, "validation": {c: {"accuracy": 0.9, "loss": 1.0} for c in test}}
        found["bytes_evaluation"] = 7
    return found


def test_the_summary_by_hand() -> None:
    lines = [
        {"event": "start", "round": 0},
        event(1),
        event(2, {"0": 0.2, "1": 0.6}),
        event(3),
        event(4, {"0": 0.8, "1": 1.0}),
        {"event": "end", "round": 4},
    ]
    found = summarise(lines, selected_round=2)
    assert found["rounds"] == 4
    assert found["selected_round"] == 2
    assert found["accuracy"]["mean"] == pytest.approx(0.4)
    assert found["accuracy"]["std"] == pytest.approx(0.2)
    assert (found["accuracy"]["worst"], found["accuracy"]["worst_decile"]) == (0.2, 0.2)
    assert found["balanced_accuracy"]["mean"] == pytest.approx(0.2)
    assert found["last"]["accuracy"]["mean"] == pytest.approx(0.9)
    assert found["last"]["balanced_accuracy"]["worst"] == pytest.approx(0.4)
    assert found["validation"]["accuracy"]["mean"] == pytest.approx(0.9)
    assert found["train"] == {"loss": 2}
    assert found["bytes"] == {"up": 100, "down": 80}
    assert found["wire_bytes"] == {"up": 110, "down": 84}
    assert found["bytes_evaluation"] == 14
    assert (found["flops"], found["seconds"], found["peak_memory_bytes"]) == (4e3, 2.0, 999)
    assert summarise([{**line, "flops": None} for line in lines], selected_round=2)["flops"] is None


class Counting(FedAvg):
    """Tells what the server knows of a round."""

    def report(self, server: Any, round: int) -> Mapping[str, float]:
        return {"twice": 2.0 * round, "mean": float(server["model"]["header"]["bias"].mean())} if round > 1 else {}


def test_numbers_that_a_server_tells_stand_in_the_rounds_event(table: Federation, tmp_path: Path) -> None:
    """Of the round that has just been aggregated; a server that tells nothing adds nothing."""
    drive(tmp_path / "run", f"{__file__}:Counting", table, Serial(), rounds=2, local_epochs=1)
    one, two = rounds_of(tmp_path / "run")
    assert "server" not in one["metrics"]
    checkpoints = Checkpoints(tmp_path / "run/checkpoint")
    mean = float(checkpoints.server(checkpoints.read())["model"]["header"]["bias"].mean())
    assert two["metrics"]["server"] == {"twice": 4.0, "mean": mean}


# What travels


@pytest.fixture(scope="module")
def recorded(unlike: Federation, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recording, PFedAFM]:
    """pFedAFM with six clients of five architectures for one round, and all that went to and fro."""
    folder, engine = tmp_path_factory.mktemp("recorded") / "run", Recording()
    prepared = api.prepare("pfedafm", unlike, rounds=1, local_epochs=1)
    runs.create(folder, prepared)
    loop.run(prepared.plan(folder), engine)
    runs.finish(folder, prepared)
    engine.close()
    assert isinstance(prepared.algorithm, PFedAFM)
    return folder, engine, prepared.algorithm


def test_every_client_sends_theta_and_nothing_else(recorded: tuple[Path, Recording, PFedAFM]) -> None:
    """Five architectures, one size of message: that of the shared extractor."""
    folder, engine, method = recorded
    theta = models.initial(method.shared, Key.root(0))["extractor"]
    names = {f"theta/{name}" for name in tree.flatten(theta)}
    updates = [m for m in map(Message.decode, engine.replies) if "weight" in m.head]
    assert {message.head["client"] for message in updates} == set(range(6))
    for message in updates:
        assert set(tree.flatten(message.tree)) == names
        assert tree.nbytes(message.tree) == tree.nbytes(theta)
    assert len({len(message.body) for message in updates}) == 1
    summary, (told,) = api.Result(folder).summary, rounds_of(folder)
    assert told["bytes_up"] == told["bytes_down"] == 6 * tree.nbytes(theta)
    assert summary["bytes"] == {"up": told["bytes_up"], "down": told["bytes_down"]}
    assert told["bytes_evaluation"] == 6 * tree.nbytes(theta)
    assert told["wire_bytes_up"] == sum(len(f) for f in engine.replies if "weight" in Message.decode(f).head)
    assert told["wire_bytes_down"] == sum(len(f) for f in engine.requests if Message.decode(f).head["kind"] == "update")


def test_no_message_holds_anything_of_a_state_or_of_the_data(
    recorded: tuple[Path, Recording, PFedAFM], unlike: Federation
) -> None:
    """The heads are a fixed set of numbers and texts; no tensor that a client keeps, and no row, is in any frame."""
    folder, engine, _ = recorded
    for frame in engine.requests:
        assert set(Message.decode(frame).head) == REQUEST
    for message in map(Message.decode, engine.replies):
        assert set(message.head) in (REPLY, SCORES)
        if set(message.head) == SCORES:
            assert message.body == b""
            assert all(isinstance(v, float) for s in message.head["scores"].values() for v in s.values())
        else:
            plain = {k: v for k, v in message.head.items() if k != "metrics"}
            assert all(isinstance(v, int | float | str) for v in plain.values())
            assert set(message.head["metrics"]) == {"loss", "alpha_mean"}
    wire = b"".join([*engine.requests, *engine.replies])
    index, private = Checkpoints(folder / "checkpoint").read(), 0
    assert len(index.versions) == 6
    for client, (version, _) in index.versions.items():
        state = tree.from_bytes((folder / f"checkpoint/clients/{client}/{version}.safetensors").read_bytes())
        for name, leaf in tree.flatten({"model": state["model"], "alpha": state["alpha"]}).items():
            assert leaf.numpy().tobytes() not in wire, f"client {client} sent {name}"
            private += 1
        for x in unlike.data(client, "train")["x"][:3]:
            assert x.numpy().tobytes() not in wire
    assert private == 6 * 11
    assert tree.flatten(state["theta"])[next(iter(tree.flatten(state["theta"])))].numpy().tobytes() in wire


def test_a_key_in_a_ticket_is_its_clients_alone(recorded: tuple[Path, Recording, PFedAFM]) -> None:
    _, engine, _ = recorded
    keys = [Message.decode(frame).head["key"] for frame in engine.requests]
    assert len(set(keys)) == len(keys) == 12
    root = Key.root(0)
    assert keys[0] == (root / "round" / 1 / "client" / Message.decode(engine.requests[0]).head["client"]).digest.hex()


class Separate(FedAvg):
    """Sends every client tensors of its own."""

    def broadcast(self, server: Any, info: ClientInfo, round: int) -> Any:
        return {"model": tree.clone(server["model"])}


@pytest.mark.parametrize(("name", "encodings"), [("fedavg", 1), ("pfedafm", 1), ("separate", 6)])
def test_a_broadcast_of_the_same_tensors_is_encoded_once(
    unlike: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, encodings: int
) -> None:
    """Once to train and once to evaluate in a round."""
    packed, real = [0], loop.pack

    def pack(value: Any) -> bytes:
        packed[0] += 1
        return real(value)

    monkeypatch.setattr(loop, "pack", pack)
    method = f"{__file__}:Separate" if name == "separate" else name
    summary = drive(tmp_path / "run", method, unlike, Scripted(), rounds=2)
    assert packed[0] == 2 * 2 * encodings
    assert summary["bytes"]["up"] == summary["bytes"]["down"] > 0


# How much is in flight


@pytest.mark.parametrize("workers", [1, 3])
def test_the_window_of_requests_in_flight_is_bounded(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly replies are taken, and whichever comes first; and they come in order."""
    taken, given = 0, 0

    def requests() -> Iterator[bytes]:
        nonlocal taken
        for i in range(40):
            taken += 1
            assert taken - given <= 2 * workers
            yield str(i).encode()

    def answer(self: Processes, request: bytes) -> bytes:
        time.sleep(0.002 if int(request) % 3 else 0.006)
        return request

    monkeypatch.setattr(Processes, "_answer", answer)
    with Processes(workers) as engine:
        for i, reply in enumerate(engine.map(requests())):
            given += 1
            assert reply == str(i).encode()
    assert given == taken == 40


def test_the_serial_engine_holds_one_request_at_a_time() -> None:
    made: list[int] = []
    engine = Serial()
    engine._site = type("Site", (), {"answer": staticmethod(lambda frame: frame)})()  # type: ignore[assignment]
    for i, _ in enumerate(engine.map(made.append(n) or b"" for n in range(5))):  # type: ignore[func-returns-value]
        assert made == list(range(i + 1))


# What is kept


def test_only_clients_that_were_visited_have_a_state(tmp_path: Path) -> None:
    """Sixty clients, three a round: six files at most, and in memory no more than the budget."""
    many = federation("digits", clients=60, partition="iid", models=["cnn-5"], min_per_client=10)
    engine = Recording()
    method = Standalone(rounds=2, fraction=0.05, local_epochs=1)
    prepared = api.prepare(method, many, eval_clients=2, store_budget=5)
    runs.create(tmp_path / "run", prepared)
    index = loop.run(prepared.plan(tmp_path / "run"), engine)
    engine.close()
    touched = {client for event in rounds_of(tmp_path / "run") for client in event["clients"]}
    assert 3 <= len(touched) <= 6
    assert set(index.versions) == touched
    assert {int(p.name) for p in (tmp_path / "run/checkpoint/clients").iterdir()} == touched
    store = engine._site.store
    size = tree.nbytes(next(iter(store._hot.values()))[2])
    assert store.budget == 5 * 2**20
    assert 2 * size < store.budget < len(touched) * size
    assert store.budget - size < sum(tree.nbytes(kept) for _, _, kept in store._hot.values()) <= store.budget


def test_a_method_that_keeps_nothing_leaves_no_state(table: Federation, tmp_path: Path) -> None:
    summary = drive(tmp_path / "run", "fedavg", table, Serial(), rounds=1, local_epochs=1)
    assert list((tmp_path / "run/checkpoint/clients").iterdir()) == []
    index = Checkpoints(tmp_path / "run/checkpoint").read()
    assert index.versions == {}
    assert summary["state_sha256"] == index.state_sha256() != Index(1).state_sha256()


# What stops a run


@pytest.mark.parametrize("name", ["fedavg", "pfedafm", "standalone"])
@pytest.mark.parametrize("lr", [1e17, 1e37])
def test_a_run_that_diverges_names_round_client_and_remedy(
    table: Federation, tmp_path: Path, name: str, lr: float
) -> None:
    with pytest.raises(RunError, match=r"round 1, client \d: .*(inf|nan|not finite).*: lower --lr") as caught:
        drive(tmp_path / "run", name, table, Serial(), rounds=2, local_epochs=1, lr=lr)
    assert "\n" not in str(caught.value)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Faulty(Algorithm[Any, Any, Any]):
    """A method that goes wrong at one place, in round 2, at client 1."""

    fault: str = ""

    def init_server(self, key: Key) -> Any:
        return {"w": torch.zeros(3)}

    def init_client(self, info: ClientInfo, key: Key) -> Any:
        return {"v": torch.zeros(2)}

    def broadcast(self, server: Any, info: ClientInfo, round: int) -> Any:
        return {"w": server["w"]}

    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        nan, fault = torch.tensor([float("nan")] * 3), self.fault if job.info.id == 1 and job.round == 2 else ""
        up = {"up": {"w": nan}, "names": {"x": job.down["w"] + 1}}.get(fault, {"w": job.down["w"] + 1})
        state = {"v": nan[:2] if fault == "state" else job.state["v"] + 1}
        if fault == "error":
            raise KeyError("header")
        weight = {"weight": -1.0, "nan weight": float("nan")}.get(fault, 1.0)
        return Update(up, state, weight, {"loss": float("inf") if fault == "loss" else 0.5})

    def aggregate(self, server: Any, arrivals: Any, round: int, key: Key) -> Any:
        return {"w": tree.weighted_mean([a.up for a in arrivals], [a.weight for a in arrivals])["w"]}

    def predict(self, ready: Any, batch: Any) -> torch.Tensor:
        broken = self.fault == "predict" and ready["info"].id == 1 and float(ready["down"]["w"][0]) == 2
        return torch.full((len(batch["x"]), self.task.classes), float("nan") if broken else 0.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("up", "up/w is not finite after training: lower --lr"),
        ("state", "state/v is not finite after training: lower --lr"),
        ("loss", "loss is inf after training: lower --lr"),
        ("predict", "loss is nan on validation: lower --lr"),
        ("error", "KeyError: 'header'"),
        ("weight", r"sent the weight -1.0; it must be >= 0"),
        ("nan weight", r"sent the weight nan; it must be >= 0"),
        ("names", "did not send|sent x"),
    ],
)
def test_a_fault_ends_the_run_after_the_last_good_round(
    table: Federation, tmp_path: Path, fault: str, words: str
) -> None:
    """Round and client stand in the message, round 1 stays committed, and nothing of round 2 is told."""
    with pytest.raises(RunError, match=words) as caught:
        drive(tmp_path / "run", f"{__file__}:Faulty", table, Serial(), rounds=3, fault=fault)
    if fault != "names":
        assert "round 2" in str(caught.value)
        assert "client 1" in str(caught.value)
    assert Checkpoints(tmp_path / "run/checkpoint").read().round == 1
    assert [event["round"] for event in rounds_of(tmp_path / "run")] == [1]


def test_a_worker_that_dies_is_one_line_with_a_remedy(table: Federation, tmp_path: Path) -> None:
    prepared = api.prepare("standalone", table, rounds=2, local_epochs=1)
    runs.create(tmp_path / "run", prepared)
    with Processes(1) as engine:
        plan = dataclasses.replace(
            prepared.plan(tmp_path / "run"), listeners=[lambda event: engine._pool[0].process.kill()]
        )
        with pytest.raises(RunError, match=r"a worker process ended with code -9, .*memory.*: use fewer --workers"):
            loop.run(plan, engine)


def test_a_worker_ends_when_nobody_can_ask_it_any_more() -> None:
    """It waits for requests when its parent dies."""
    worker = Worker()
    try:
        worker._requests.close()
        assert worker.process.wait(60) == 0
    finally:
        worker.close()


def test_events_are_one_json_object_a_line(recorded: tuple[Path, Recording, PFedAFM]) -> None:
    """With the fields that reports rely on; a finished run's summary has all of DESIGN section 6."""
    folder, _, _ = recorded
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [line["event"] for line in lines] == ["start", "round", "end"]
    assert {"round", "clients", "metrics", "bytes_up", "bytes_down", "seconds"} <= set(lines[1])
    summary = json.loads((folder / "summary.json").read_text())
    blocks = {"accuracy", "balanced_accuracy"}
    plain = {"algorithm", "data", "seed", "rounds", "clients", "last", "selected_round", "bytes", "wire_bytes"}
    plain |= {"flops", "seconds", "peak_memory_bytes", "state_sha256"}
    assert blocks | plain <= set(summary)
    for block in [*(summary[name] for name in blocks), *(summary["last"][name] for name in blocks)]:
        assert {"mean", "std", "worst", "worst_decile", "per_client"} <= set(block)
        assert set(block["per_client"]) == {str(client) for client in range(6)}
    assert summary["algorithm"] == "pfedafm"
    assert (summary["data"], summary["seed"], summary["rounds"], summary["clients"]) == ("digits", 0, 1, 6)
    assert set(summary["bytes"]) == set(summary["wire_bytes"]) == {"up", "down"}
    assert summary["wire_bytes"]["up"] > summary["bytes"]["up"]


def test_peak_memory_is_a_runs_own() -> None:
    """A comparison's runs share their process: what one has used is not the next one's."""
    if not Path("/proc/self/clear_refs").exists():
        return
    before = bytearray(300 * 2**20)
    high = peak_memory()
    assert high > 300 * 2**20
    del before
    forget_peak_memory()
    assert peak_memory() < high - 200 * 2**20


def test_the_server_computes_with_as_many_threads_as_a_client(tmp_path: Path) -> None:
    """Sums of matrix products depend on their number; afterwards torch has its own again."""
    seen: list[int] = []
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        keys = {"data": "wine", "clients": 2, "models": ["mlp-5"], "rounds": 1, "engine": "processes", "workers": 1}
        listeners = [lambda _: seen.append(torch.get_num_threads())]
        api.run("fedavg", out=tmp_path / "r", report=False, listeners=listeners, **keys)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}


def test_operations_are_counted_by_a_clients_own_length_of_texts(tiny_lm: Path, tmp_path: Path) -> None:
    """Two clients cost the same whichever is visited, and counted, first."""
    brief, wordy = "how is the kite ?", "what about the sunrise people , how is the kite of the dawn ones ?"

    def operations(first: str, second: str) -> float:
        folder = tmp_path / str(len(first))
        folder.mkdir()
        for name, asked in (("a", first), ("b", second)):
            rows = [{"instruction": asked, "output": "calm", "task": name, "category": "c"}] * 12
            (folder / f"{name}.json").write_text(json.dumps(rows))
        given = federation(str(folder), partition="site", models=[f"lm:{tiny_lm}(r=2)"])
        found = api.run(
            "fedit",
            given,
            rounds=1,
            local_epochs=1,
            max_new_tokens=1,
            engine="serial",
            report=False,
            out=folder / "run",
        )
        return float(found.summary["flops"])

    assert operations(brief, wordy) == operations(wordy, brief) > 0
