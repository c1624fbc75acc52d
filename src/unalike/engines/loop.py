"""The round loop. It knows the contract and an ordered map, no method and no engine in particular."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch

from .. import tree
from ..data.federation import Federation
from ..errors import RunError
from ..protocol import Algorithm, Arrival, ClientInfo, Ticket
from ..rng import Key
from ..telemetry.events import EventLog, Listener, total
from .checkpoint import Checkpoints, Index
from .site import Setup, forget_peak_memory, peak_memory
from .store import DEFAULT_BUDGET
from .wire import Message, pack


class Engine(Protocol):
    """An ordered map from requests to replies, and where its sites keep their stores."""

    name: str
    workers: int

    def open(self, setup: Setup, federation: Federation) -> None: ...

    def map(self, requests: Iterator[bytes]) -> Generator[bytes, None, None]: ...

    def close(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be run: everything the loop needs beside the engine."""

    algorithm: Algorithm[Any, Any, Any]
    method: str
    parameters: Mapping[str, Any]
    federation: Federation
    folder: Path
    seed: int = 0
    eval_every: int = 1
    eval_clients: int | None = None
    device: str = "cpu"
    store_budget: int = DEFAULT_BUDGET
    listeners: Sequence[Listener] = ()


@dataclass(slots=True)
class _Traffic:
    """Bytes of tensors, and bytes with their envelope."""

    tensors: int = 0
    wire: int = 0

    def add(self, body: int, frame: int) -> None:
        self.tensors += body
        self.wire += frame


@dataclass(slots=True)
class _Reply:
    head: Mapping[str, Any]
    arrival: Arrival[Any]


def run(plan: Plan, engine: Engine) -> Index:
    """Train until the method is done, from the last committed round on; the last committed round is returned.

    Raises:
        RunError: a client or the engine failed. What was committed stays, and the run can be resumed.
    """
    scratch = plan.folder.resolve() / ".scratch"  # of a run that was killed, the next one to resume it clears it away
    shutil.rmtree(scratch, ignore_errors=True)
    loop = _Loop(plan, engine, scratch)
    try:
        with _threads(1):
            return loop.run()
    finally:
        loop.log.close()
        shutil.rmtree(scratch, ignore_errors=True)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """The sums of a matrix product depend on the number of threads: at the server they are as many as at a client."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass
class _Loop:
    plan: Plan
    engine: Engine
    scratch: Path
    root: Key = field(init=False)
    checkpoints: Checkpoints = field(init=False)
    index: Index = field(init=False)
    log: EventLog = field(init=False)

    def __post_init__(self) -> None:
        self.root = Key.root(self.plan.seed)
        self.checkpoints = Checkpoints(self.plan.folder / "checkpoint")
        self.index = self.checkpoints.open()
        self.log = EventLog(self.plan.folder / "events.jsonl", self.index.events)

    def run(self) -> Index:
        plan, algorithm = self.plan, self.plan.algorithm
        forget_peak_memory()
        self.engine.open(self._setup(), plan.federation)
        resumed = self.index.round > 0
        server = self.checkpoints.server(self.index) if resumed else algorithm.init_server(self.root / "init")
        self._say({"event": "start", "round": self.index.round, "method": plan.method, "resumed": resumed})
        while not algorithm.done(server, self.index.round):
            server = self._round(server, self.index.round + 1)
        self._say({"event": "end", "round": self.index.round, "selected_round": self.index.best_round})
        return self.index

    def _setup(self) -> Setup:
        return Setup(
            method=self.plan.method,
            parameters=self.plan.parameters,
            federation=str(self.scratch),
            store=str(self.checkpoints.clients),
            init_key=(self.root / "init").digest.hex(),
            device=self.plan.device,
            budget=self.plan.store_budget,
        )

    def _round(self, server: Any, round: int) -> Any:
        algorithm, clients, started = self.plan.algorithm, self.plan.federation.clients, time.perf_counter()
        key = self.root / "round" / round
        chosen = algorithm.select(server, clients, round, key / "select")
        down, up = _Traffic(), _Traffic()
        replies = self._train(server, chosen, round, key, down, up)
        arrivals = [replies[info.id].arrival for info in chosen]
        try:
            server = algorithm.aggregate(server, arrivals, round, key / "aggregate")
        except RunError as error:
            raise RunError(f"round {round}: {error}") from error
        versions = dict(self.index.versions) | {
            info.id: (head["version"], head["sha256"]) for info in chosen if (head := replies[info.id].head)["version"]
        }
        self.index = replace(self.index, round=round, versions=versions)
        event: dict[str, Any] = {
            "event": "round",
            "round": round,
            "clients": [info.id for info in chosen],
            "metrics": {"train": _means(arrivals)},
            "updates": {str(a.info.id): dict(a.metrics) for a in arrivals},
            "bytes_up": up.tensors,
            "bytes_down": down.tensors,
            "wire_bytes_up": up.wire,
            "wire_bytes_down": down.wire,
            "flops": total(replies[info.id].head["flops"] for info in chosen),
        }
        peak = max((replies[i.id].head["peak_memory_bytes"] for i in chosen), default=0)
        if round % self.plan.eval_every == 0 or algorithm.done(server, round):
            event |= self._evaluate(server, round, key / "evaluate", event["metrics"])
        event["peak_memory_bytes"] = peak_memory() + (0 if self.engine.name == "serial" else peak * self.engine.workers)
        event["seconds"] = time.perf_counter() - started
        self._commit(server, event)
        return server

    def _train(
        self, server: Any, chosen: Sequence[ClientInfo], round: int, key: Key, down: _Traffic, up: _Traffic
    ) -> dict[int, _Reply]:
        """Ask the chosen clients, those with most data first, and return their replies by client."""
        order = sorted(chosen, key=lambda info: -info.n)
        replies: dict[int, _Reply] = {}
        requests = self._requests("update", server, order, round, key / "client", down)
        with contextlib.closing(self.engine.map(requests)) as answers:
            for info, frame in zip(order, answers, strict=True):
                message = _checked(frame)
                head, body = message.head, message.tree
                up.add(tree.nbytes(body), len(frame))
                if not head["weight"] >= 0:
                    raise RunError(f"round {round}: client {info.id} sent the weight {head['weight']}; it must be >= 0")
                replies[info.id] = _Reply(head, Arrival(info, body, float(head["weight"]), head["metrics"]))
        return replies

    def _requests(
        self, kind: str, server: Any, clients: Sequence[ClientInfo], round: int, key: Key, traffic: _Traffic
    ) -> Iterator[bytes]:
        """Messages made when the engine asks for them; a broadcast of the same tensors is encoded once."""
        sent, body, size = tree.flatten({}), b"", 0
        for info in clients:
            ticket = Ticket(info.id, round, self.plan.algorithm.broadcast(server, info, round), key / info.id)
            leaves = tree.flatten(ticket.down)
            if leaves.keys() != sent.keys() or any(leaf is not sent[name] for name, leaf in leaves.items()):
                sent, body, size = leaves, pack(ticket.down), tree.nbytes(ticket.down)
            version, digest = self.index.state(info.id)
            head = {"kind": kind, "client": info.id, "round": round, "key": ticket.key.digest.hex()}
            frame = Message({**head, "version": version, "sha256": digest}, body).encode()
            traffic.add(size, len(frame))
            yield frame

    def _evaluate(self, server: Any, round: int, key: Key, metrics: dict[str, Any]) -> dict[str, Any]:
        """Score all clients, or a fixed sample of them, with the current broadcast and their stored states."""
        clients: Sequence[ClientInfo] = self.plan.federation.clients
        if self.plan.eval_clients is not None and self.plan.eval_clients < len(clients):
            drawn = (self.root / "evaluated").numpy().choice(len(clients), self.plan.eval_clients, replace=False)
            clients = [clients[int(i)] for i in sorted(drawn)]
        traffic = _Traffic()
        evaluation: dict[str, dict[str, Any]] = {"validation": {}, "test": {}}
        requests = self._requests("evaluate", server, clients, round, key, traffic)
        with contextlib.closing(self.engine.map(requests)) as answers:
            for frame in answers:
                head = _checked(frame).head
                for part, found in head["scores"].items():
                    evaluation[part][str(head["client"])] = found
        scores = list(evaluation["validation"].values())
        metric = self.plan.algorithm.task.metric
        metrics["validation"] = {name: sum(s[name] for s in scores) / len(scores) for name in (metric, "loss")}
        metrics["validation"]["worst"] = min(s[metric] for s in scores)
        if metrics["validation"][metric] > self.index.best_score:
            self.index = replace(self.index, best_round=round, best_score=metrics["validation"][metric])
        return {"evaluation": evaluation, "bytes_evaluation": traffic.tensors}

    def _commit(self, server: Any, event: Mapping[str, Any]) -> None:
        length = self.log.append(event)
        self.index = self.checkpoints.commit(replace(self.index, events=length), server)
        self._tell(event)

    def _say(self, event: Mapping[str, Any]) -> None:
        self.log.append(event)
        self._tell(event)

    def _tell(self, event: Mapping[str, Any]) -> None:
        for listener in self.plan.listeners:
            listener(event)


def _checked(frame: bytes) -> Message:
    message = Message.decode(frame)
    if "error" in message.head:
        error = RunError(message.head["error"])
        error.add_note(message.head["trace"])
        raise error
    return message


def _means(arrivals: Sequence[Arrival[Any]]) -> dict[str, float]:
    """Mean over the round's clients of every metric that all of them sent."""
    names = set.intersection(*(set(a.metrics) for a in arrivals)) if arrivals else set()
    return {name: sum(a.metrics[name] for a in arrivals) / len(arrivals) for name in sorted(names)}
