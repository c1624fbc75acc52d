"""The round loop. It knows the contract and an ordered map, no method and no engine in particular."""

from __future__ import annotations

import contextlib
import itertools
import shutil
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from .. import tree
from ..data.federation import Federation, Scope
from ..errors import InputError, RunError
from ..protocol import Algorithm, Arrival, ClientInfo, Ticket
from ..rng import Key
from ..telemetry.events import EventLog, Listener, total
from . import forgetting
from .budget import Visits
from .checkpoint import Checkpoints, Index
from .keepsakes import keep
from .scoring import by_part, means, together
from .site import Setup, forget_peak_memory, peak_memory
from .store import DEFAULT_BUDGET
from .wire import Message, answered, pack


class Engine(Protocol):
    """An ordered map from requests to replies, and where its sites keep their stores."""

    name: str

    @property
    def workers(self) -> int: ...

    def open(self, setup: Setup, federation: Federation) -> None: ...

    def map(self, requests: Iterator[bytes]) -> Generator[bytes, None, None]: ...

    def close(self) -> None: ...


@runtime_checkable
class RemoteEngine(Engine, Protocol):
    """An engine whose sites lie elsewhere. They come and go, keep their own stores, and a message to them is costly.

    So a round asks those who are there, tells each which versions of its state are still needed, and scores the
    clients it asks when it asks them next: evaluation is part of the following round's message.
    """

    @property
    def sent(self) -> int:
        """Bytes of all messages to sites so far, with their envelope."""

    @property
    def received(self) -> int:
        """Bytes of all messages from sites so far."""

    def present(self, clients: Sequence[ClientInfo]) -> Sequence[ClientInfo]:
        """Those of `clients` that can be asked now, in order, as they have described themselves."""


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
    forgetting: bool = False
    scopes: Sequence[Scope] = ()
    device: str = "cpu"
    store_budget: int = DEFAULT_BUDGET
    check_memory: bool = True
    listeners: Sequence[Listener] = ()


@dataclass(slots=True)
class _Traffic:
    """Bytes of tensors both ways, and bytes with their envelope."""

    down: int = 0
    up: int = 0
    wire_down: int = 0
    wire_up: int = 0


@dataclass(frozen=True, slots=True)
class _Overdue:
    """The evaluation of a committed round that goes with the next round's messages."""

    round: int
    key: Key
    left: dict[int, ClientInfo]
    """The clients that have not been asked yet."""

    def rest(self) -> Iterator[ClientInfo]:
        """Those whom no other message has taken along; to be asked for when all others are sent."""
        yield from self.left.values()


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
    remote: RemoteEngine | None = None
    visits: Visits = field(default_factory=Visits)
    """Of the round at hand."""

    def __post_init__(self) -> None:
        self.root = Key.root(self.plan.seed)
        self.checkpoints = Checkpoints(self.plan.folder / "checkpoint")
        self.index = self.checkpoints.open()
        self.log = EventLog(self.plan.folder / "events.jsonl", self.index.events)

    def run(self) -> Index:
        plan, algorithm = self.plan, self.plan.algorithm
        forget_peak_memory()
        self.engine.open(self._setup(), plan.federation)
        self.remote = self.engine if isinstance(self.engine, RemoteEngine) else None
        if (plan.forgetting or plan.scopes) and self.remote:
            raise InputError("forgetting and others' rows are measured on one machine only: they stay at sites")
        resumed = self.index.round > 0
        server = self.checkpoints.server(self.index) if resumed else algorithm.init_server(self.root / "init")
        begun = {"event": "start", "round": self.index.round, "method": plan.method, "resumed": resumed}
        self._say(begun | plan.federation.simulated)
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
            check_memory=self.plan.check_memory,
            counts=True,  # which sites that lie elsewhere do not heed
            scopes=self.plan.scopes,
        )

    def _round(self, server: Any, round: int) -> Any:
        algorithm, started = self.plan.algorithm, time.perf_counter()
        clients, key = self._present(), self.root / "round" / round
        chosen = algorithm.select(server, clients, round, key / "select")
        traffic, self.visits = _Traffic(), Visits()
        heads, arrivals = self._train(server, chosen, round, self._overdue(clients), traffic)
        began, arrived = server, time.perf_counter()
        try:
            server = algorithm.aggregate(server, arrivals, round, key / "aggregate")
        except RunError as error:
            raise RunError(f"round {round}: {error}") from error
        server_seconds, told = time.perf_counter() - arrived, algorithm.report(server, round)
        kept = {info.id: (h["version"], h["sha256"]) for info, h in zip(chosen, heads, strict=True) if h["version"]}
        self.index = replace(self.index, round=round, versions={**self.index.versions, **kept})
        event: dict[str, Any] = {
            "event": "round",
            "round": round,
            "clients": [info.id for info in chosen],
            "metrics": {"train": means(arrivals), **({"server": dict(told)} if told else {})},
            "updates": {str(a.info.id): dict(a.metrics) for a in arrivals},
            "bytes_up": traffic.up,
            "bytes_down": traffic.down,
            "wire_bytes_up": traffic.wire_up,
            "wire_bytes_down": traffic.wire_down,
            "flops": total(head["flops"] for head in heads),
            "client_seconds": total(head.get("seconds") for head in heads),
            "server_seconds": server_seconds,
        }
        last = algorithm.done(server, round)
        if last or (self.remote is None and self._is_due(round)):
            event |= self._evaluate(server, round, event["metrics"])
            event |= self._forgotten(began, arrivals, round, event["bytes_evaluation"])
        if last or self._is_due(round):
            keep(self.plan.folder, round, algorithm.keepsakes(server, round))
        event |= self.visits.event()
        event["peak_memory_bytes"] = self._peak(heads)
        event["seconds"] = time.perf_counter() - started
        self._commit(server, event)
        return server

    def _peak(self, heads: Sequence[Mapping[str, Any]]) -> int:
        """Peak memory of a machine's processes together; of sites, which have each their own, the largest counts."""
        peak = max((head["peak_memory_bytes"] for head in heads), default=0)
        if self.engine.name == "processes":
            return peak_memory() + peak * self.engine.workers
        return max(peak_memory(), peak)

    def _present(self) -> Sequence[ClientInfo]:
        clients = self.plan.federation.clients
        return clients if self.remote is None else self.remote.present(clients)

    def _train(
        self, server: Any, chosen: Sequence[ClientInfo], round: int, overdue: _Overdue | None, traffic: _Traffic
    ) -> tuple[list[Mapping[str, Any]], list[Arrival[Any]]]:
        """Ask the chosen clients, those with most data first; heads and arrivals of their replies in order of choice.

        An overdue evaluation goes with it: with the job where a client has one, else in a message of its own.
        """
        order = sorted(chosen, key=lambda info: -info.n)
        requests, alone = self._requests("update", server, order, round, traffic, overdue), _Traffic()
        if overdue:
            rest = self._requests("evaluate", server, overdue.rest(), overdue.round, alone)
            requests = itertools.chain(requests, rest)
        heads, scores = dict[int, Mapping[str, Any]](), dict[int, Mapping[str, Any]]()
        arrived = dict[int, Arrival[Any]]()
        info_of = {info.id: info for info in chosen}
        for message in self._exchange(requests, traffic):
            head, client = message.head, message.head["client"]
            if "scores" in head:
                scores[client] = head["scores"]
            if "weight" in head:
                if not head["weight"] >= 0:
                    raise RunError(f"round {round}: client {client} sent the weight {head['weight']}; it must be >= 0")
                up = message.tree
                traffic.up += tree.nbytes(up)
                heads[client] = head
                arrived[client] = Arrival(info_of[client], up, float(head["weight"]), head["metrics"])
        if overdue:
            self._scored_late(overdue.round, scores, alone.down)
        return [heads[info.id] for info in chosen], [arrived[info.id] for info in chosen]

    def _exchange(self, requests: Iterator[bytes], traffic: _Traffic) -> Iterator[Message]:
        """Send requests and yield the replies in order, counting bytes; a remote engine knows what it has sent."""
        before = (self.remote.sent, self.remote.received) if self.remote else (0, 0)
        with contextlib.closing(self.engine.map(self._counted(requests, traffic))) as answers:
            for frame in answers:
                traffic.wire_up += len(frame)
                message = answered(frame)
                self.visits.note(message.head)
                yield message
        if self.remote:
            traffic.wire_down, traffic.wire_up = self.remote.sent - before[0], self.remote.received - before[1]

    @staticmethod
    def _counted(requests: Iterator[bytes], traffic: _Traffic) -> Iterator[bytes]:
        for frame in requests:
            traffic.wire_down += len(frame)
            yield frame

    def _requests(
        self,
        kind: str,
        server: Any,
        clients: Iterable[ClientInfo],
        round: int,
        traffic: _Traffic,
        overdue: _Overdue | None = None,
    ) -> Iterator[bytes]:
        """Messages made when the engine asks for them; a broadcast of the same tensors is encoded once.

        A client whose evaluation is overdue is asked for it beside, if what travels to it is the same for both.
        """
        sent, body, size = tree.flatten({}), b"", 0
        broadcast, keys = self.plan.algorithm.broadcast, self._keys(kind, round)
        for info in clients:
            ticket = Ticket(info.id, round, broadcast(server, info, round), keys / info.id)
            leaves = tree.flatten(ticket.down)
            if not _same_tensors(leaves, sent):
                sent, body, size = leaves, pack(ticket.down), tree.nbytes(ticket.down)
            version, digest = self.index.state(info.id)
            head = {"kind": kind, "client": info.id, "round": round, "key": ticket.key.digest.hex()}
            head |= {"version": version, "sha256": digest}
            if self.remote:
                head["keep"] = self.checkpoints.versions(info.id)
            late = overdue if overdue and info.id in overdue.left else None
            if late and _same_tensors(leaves, tree.flatten(broadcast(server, info, late.round))):
                del late.left[info.id]
                head["evaluate"] = {"round": late.round, "key": (late.key / info.id).digest.hex()}
            frame = Message(head, body).encode()
            traffic.down += size
            yield frame

    def _keys(self, kind: str, round: int) -> Key:
        """The key below which each client has its own, for training or evaluation in a round."""
        return self.root / "round" / round / ("client" if kind == "update" else "evaluate")

    def _is_due(self, round: int) -> bool:
        return round % self.plan.eval_every == 0

    def _overdue(self, clients: Sequence[ClientInfo]) -> _Overdue | None:
        """The evaluation that the last round of a remote engine has left to this one; its final round leaves none."""
        last = self.index.round
        if self.remote is None or last == 0 or not self._is_due(last):
            return None
        return _Overdue(last, self._keys("evaluate", last), {info.id: info for info in self._evaluated(clients)})

    def _evaluated(self, clients: Sequence[ClientInfo]) -> Sequence[ClientInfo]:
        """All clients, or a fixed sample of them."""
        if self.plan.eval_clients is None or self.plan.eval_clients >= len(clients):
            return clients
        drawn = (self.root / "evaluated").numpy().choice(len(clients), self.plan.eval_clients, replace=False)
        return [clients[int(i)] for i in sorted(drawn)]

    def _evaluate(self, server: Any, round: int, metrics: dict[str, Any]) -> dict[str, Any]:
        """Score clients with the current broadcast and their stored states, at once."""
        traffic = _Traffic()
        requests = self._requests("evaluate", server, self._evaluated(self._present()), round, traffic)
        heads = {message.head["client"]: message.head for message in self._exchange(requests, traffic)}
        scores = {client: head["scores"] for client, head in heads.items()}
        metrics["validation"] = self._validation(round, scores)
        metrics |= together(self.plan.algorithm.task, heads)
        return {"evaluation": by_part(scores), "bytes_evaluation": traffic.down}

    def _forgotten(self, began: Any, arrivals: Sequence[Arrival[Any]], round: int, sent: int) -> dict[str, Any]:
        """What each client's training cost the model that the round began with, where that is asked for."""
        algorithm, judges = self.plan.algorithm, [info.id for info in self._evaluated(self._present())]
        found = forgetting.trials(algorithm.global_model, began, arrivals, judges) if self.plan.forgetting else []
        if not found:
            return {}
        replies = self._exchange(forgetting.requests(found, round), _Traffic())
        told = forgetting.forgotten(algorithm.task, found, replies)
        return {"forgetting": told, "bytes_evaluation": sent + sum(trial.bytes for trial in found)}

    def _scored_late(self, round: int, scores: Mapping[int, Mapping[str, Any]], alone: int) -> None:
        """Tell the scores of a round that is committed already; they count with the commit of the next one.

        `alone`: bytes of tensors in messages that asked for scores only.
        """
        validation = self._validation(round, scores)
        evaluation = {"evaluation": by_part(scores), "bytes_evaluation": alone}
        self._say({"event": "evaluation", "round": round, "metrics": {"validation": validation}, **evaluation})

    def _validation(self, round: int, scores: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
        """Means over clients on validation, and the worst; the best round so far is noted."""
        metric = self.plan.algorithm.task.metric
        found = [scores[client]["validation"] for client in sorted(scores)]
        means = {
            name: sum(s[name] for s in found) / len(found) for name in (metric, "accuracy", "loss") if name in found[0]
        }
        if means[metric] > self.index.best_score:
            self.index = replace(self.index, best_round=round, best_score=means[metric])
        return means | {"worst": min(s[metric] for s in found)}

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


def _same_tensors(a: tree.Flat, b: tree.Flat) -> bool:
    return a.keys() == b.keys() and all(leaf is b[name] for name, leaf in a.items())
