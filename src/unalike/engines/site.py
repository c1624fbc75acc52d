"""One side of every engine: what answers a ticket, beside the client's data and state."""

from __future__ import annotations

import contextlib
import functools
import math
import resource
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from .. import local, models, tree
from ..algorithms import build
from ..answering import Viewed
from ..data.federation import WITHOUT, Federation, Scope
from ..errors import RunError, UnalikeError
from ..plugins import FOUNDATIONS
from ..protocol import Algorithm, Batch, Job
from ..rng import Key
from .budget import Watch
from .scoring import HELD_OUT, mean
from .store import DEFAULT_BUDGET, Store
from .wire import Message, pack


@dataclass(frozen=True, slots=True)
class Setup:
    """What a site needs to know of a run, as JSON values: it can be built in another process, or at another place."""

    method: str
    parameters: Mapping[str, Any]
    federation: str
    store: str
    init_key: str
    device: str = "cpu"
    budget: int = DEFAULT_BUDGET
    threads: int = 1
    check_memory: bool = True
    counts: bool = False
    """Whether replies have the counts, class by class, that scores are made of: of rows that all lie on this machine
    anyway, so that scores over all clients together are exact. Of a site elsewhere nobody can ask for them."""
    scopes: Sequence[Scope] = ()
    """On which test rows models are scored beside their own client's as they are; a site elsewhere has none of them."""


class Site:
    """Serves clients from one store: trains ("update") and scores ("evaluate") on request.

    Where it may tell counts, it also scores any weights of the common model, as they are sent ("common").
    """

    def __init__(self, setup: Setup, federation: Federation | None = None) -> None:
        self.federation = federation or Federation.load(Path(setup.federation))
        found = {"models": self.federation.models, "task": self.federation.task}
        self.algorithm: Algorithm[Any, Any, Any] = build(setup.method, setup.parameters, **found)
        self.device = torch.device(setup.device)
        self.store = Store(Path(setup.store), setup.budget)
        self.init_key = Key(bytes.fromhex(setup.init_key))
        self.check_memory, self.counts, self.scopes = setup.check_memory, setup.counts, setup.scopes
        self._flops_per_row: dict[Any, float | None] = {}
        forget_peak_memory()  # of the run that this process served before
        if self.device.type == "cuda":
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def answer(self, frame: bytes) -> bytes:
        """The reply to a request, both as bytes."""
        return self.reply(Message.decode(frame)).encode()

    def reply(self, request: Message) -> Message:
        """The reply to a request; an error becomes a reply that says so in one line."""
        kind, client, round = (request.head[k] for k in ("kind", "client", "round"))
        try:
            common = {"common": self._common} if self.counts else {}
            reply = {"update": self._update, "evaluate": self._evaluate, **common}[kind](request)
            return Message({**reply.head, "peak_memory_bytes": peak_memory()}, reply.body)
        except Exception as error:
            said = str(error) if isinstance(error, UnalikeError) else f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                place = error.filename or self.store.folder
                said = f"{error.strerror or error} ({place}): mend this, then unalike resume (a deployment: deploy run)"
            line = " ".join(f"round {round}, client {client}: {said}".split())
            return Message({"client": client, "error": line, "trace": traceback.format_exc()})

    def state(self, client: int, version: int, digest: str) -> dict[str, Any]:
        """A client's private state, on the CPU; version 0 is the one it starts with."""
        if version:
            return self.store.load(client, version, digest)
        return dict(self.algorithm.init_client(self.federation.clients[client], self.init_key))

    def _state(self, head: Mapping[str, Any]) -> dict[str, Any]:
        return tree.to(self.state(head["client"], head["version"], head["sha256"]), self.device)

    def data(self, client: int, part: str, by: int | None = None, without: str = "") -> Batch:
        return {name: rows.to(self.device) for name, rows in self.federation.data(client, part, by, without).items()}

    def _update(self, request: Message) -> Message:
        head = request.head
        job = self._job(request)
        client, round, info, watch = job.info.id, job.round, job.info, Watch(job, self.check_memory)
        scores = self._scores(job, head["evaluate"]["key"], watch) if "evaluate" in head else {}
        started = time.perf_counter()
        with watch.over("training"):
            update = self.algorithm.client_update(job)
        for name in tree.non_finite({"up": update.up, "state": update.state}):
            raise RunError(f"{name} is not finite after training: lower --lr, or look for outliers in its data")
        _require_finite("after training", update.metrics)
        seconds, version, digest = time.perf_counter() - started, 0, ""
        if tree.flatten(update.state):
            version, digest = round, self.store.save(client, round, tree.to(update.state, torch.device("cpu")))
        reply = {"client": client, "weight": update.weight, "metrics": dict(update.metrics), "rows": info.n}
        kept = {"version": version, "sha256": digest, "flops": self._flops(job), "seconds": seconds}
        return Message({**reply, **kept, **scores, **watch.head()}, pack(update.up))

    def _evaluate(self, request: Message) -> Message:
        job = self._job(request)
        watch = Watch(job, self.check_memory)
        return Message({"client": job.info.id, **self._scores(job, request.head["key"], watch), **watch.head()})

    def _common(self, request: Message) -> Message:
        """Counts over the client's held-out rows of the common model that was sent. No budget is asked: this is
        measured, the client does not do it."""
        client, weights = int(request.head["client"]), tree.to(request.tree, self.device)

        def predict(batch: Batch) -> torch.Tensor:
            return models.logits(self.algorithm.shared, weights, batch["x"])

        parts = ((part, self.data(client, part)) for part in HELD_OUT)
        tallies = {part: local.tally(self.algorithm.task, predict, rows) for part, rows in parts}
        return Message({"client": client, "counts": _as_lists(tallies)})

    def _elsewhere(
        self, client: int, tally: Callable[[Batch], Mapping[str, torch.Tensor]]
    ) -> dict[str, dict[str, float]]:
        """The client's model on test rows of other clients, by scope: the mean over those, each counting once; and on
        its own without a modality.

        No budget is asked: this is measured, the client does not do it.
        """

        @functools.cache
        def on(other: int, without: str) -> dict[str, float]:
            return self.algorithm.task.scores(tally(self.data(other, "test", client, without)))

        def over(scope: Scope) -> dict[str, float]:
            return mean([on(other, WITHOUT.get(scope, "")) for other in self.federation.within(scope, client)])

        return {scope: over(scope) for scope in self.scopes}

    def _views(self, ready: Any, test: Batch, size: int) -> dict[str, dict[str, float]]:
        """The scores on the client's test rows of each way in which the method lets its model be seen, by its name.

        No budget is asked: this is measured, the client does not predict with it.
        """
        algorithm = self.algorithm
        if not isinstance(algorithm, Viewed):
            return {}
        ways = ((name, functools.partial(algorithm.view, name, ready)) for name in algorithm.views)
        return {name: algorithm.task.scores(local.tally(algorithm.task, way, test, size)) for name, way in ways}

    def _job(self, request: Message) -> Job[Any, Any]:
        """The ticket with what this site has beside it."""
        head, client = request.head, int(request.head["client"])
        info, data = self.federation.clients[client], self.data(client, "train")
        down, state = tree.to(request.tree, self.device), self._state(head)
        key, held_out = Key(bytes.fromhex(head["key"])), self.data(client, "validation")
        return Job(info, int(head["round"]), down, state, data, key, held_out)

    def _scores(self, job: Job[Any, Any], key: str, watch: Watch) -> dict[str, Any]:
        """The scores on validation and test, with what has been sent and the state as it is before any training.

        A client with a budget sees at most as many rows at once as in training.
        """
        size = min(512, getattr(self.algorithm, "batch_size", 512)) if job.info.memory else 512
        rows, task = {"validation": job.held_out, "test": self.data(job.info.id, "test")}, self.algorithm.task
        with watch.over("evaluation", *rows.values()):
            ready = self.algorithm.prepare(job.info, job.down, job.state, job.data, Key(bytes.fromhex(key)))
            predict = functools.partial(self.algorithm.predict, ready)
            tallies = {part: local.tally(task, predict, found, size) for part, found in rows.items()}
        scores = {part: task.scores(found) for part, found in tallies.items()}
        scores |= self._views(ready, rows["test"], size)
        scores |= self._elsewhere(job.info.id, functools.partial(local.tally, task, predict, size=size))
        for part, found in scores.items():
            _require_finite(f"on {part}", found)
        return {"scores": scores, **({"counts": _as_lists(tallies)} if self.counts else {})}

    def _flops(self, job: Job[Any, Any]) -> float | None:
        """Floating-point operations of a job, from a count on a few rows: they are proportional to rows.

        There is one count a tier, a client where rows are texts, whose lengths differ, and a set of branches that is
        sent; for methods whose work changes with budget or phase one for each kind of what was sent and kept.
        """
        texts = self.federation.models[job.info.tier].name.startswith(FOUNDATIONS)
        work: Any = (job.info.id if texts else job.info.tier, *sorted(job.down))
        if self.algorithm.memory_aware:
            leaves = tree.flatten({"down": job.down, "state": job.state})
            work = (work, *((name, tuple(leaf.shape)) for name, leaf in leaves.items()))
        if work not in self._flops_per_row:
            few, held_out = ({n: rows[:8] for n, rows in part.items()} for part in (job.data, job.held_out))
            n = min(8, job.info.n)
            try:
                with FlopCounterMode(display=False) as counter:
                    info = replace(job.info, n=n)
                    self.algorithm.client_update(replace(job, info=info, data=few, held_out=held_out))
                self._flops_per_row[work] = counter.get_total_flops() / n
            except Exception:  # a method may need more rows than these: then its operations are not known
                self._flops_per_row[work] = None
        per_row = self._flops_per_row[work]
        return None if per_row is None else per_row * job.info.n


def _as_lists(tallies: Mapping[str, Mapping[str, torch.Tensor]]) -> dict[str, dict[str, Any]]:
    return {part: {name: count.tolist() for name, count in found.items()} for part, found in tallies.items()}


def _require_finite(when: str, values: Mapping[str, float]) -> None:
    for name, value in values.items():
        if not math.isfinite(value):
            raise RunError(f"{name} is {value} {when}: lower --lr, or look for outliers in its data")


def forget_peak_memory() -> None:
    """Let `peak_memory` count from now on, where the system can: on Linux. Elsewhere it goes on from before."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Largest resident set of this process in bytes, since `forget_peak_memory` or its start."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
