"""`check_algorithm`: does a method keep the contract? Run it in the test of every method, yours included."""

from __future__ import annotations

import dataclasses
import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from . import api, runs, tree
from .algorithms import find
from .data.federation import Federation, federation
from .engines.checkpoint import Checkpoints
from .errors import UnalikeError
from .impressions.settings import Impressions
from .local import LocalTraining
from .memory import needs
from .protocol import Algorithm, Arrival, Job
from .rng import Key

ROUNDS = 3


def check_algorithm(
    algorithm: Algorithm[Any, Any, Any] | type[Algorithm[Any, Any, Any]] | str, given: Federation | None = None
) -> None:
    """Raise `AssertionError`, saying which promise is broken, unless the method keeps the contract.

    Checked on a small federation of unlike clients, with budgets where the method is `memory_aware` (or on `given`):
    inputs come back unmodified; the same job gives
    the same bits; `up` shares no storage with `down`, state or data; states and messages survive serialisation;
    clients that were not selected keep their state; predictions have one row a sample and no randomness; and a whole
    run ends in the same bits served serially, in processes, through Flower's messages (where the extra `flower` is
    installed), and resumed after an interruption.
    """
    made = _instance(algorithm)
    found = given or small_federation(alike=made.equal_architectures)
    if made.memory_aware and given is None and isinstance(made, LocalTraining):
        found = _with_budgets(made, found)
    prepared = api.prepare(made, found, rounds=ROUNDS, engine="serial")
    _check_one_round(prepared.algorithm, prepared.federation)
    _check_engines(prepared)


def small_federation(alike: bool = False) -> Federation:
    """Four clients on the digits: three architectures, or only the one that has BatchNorm and dropout."""
    names = ("cnn-5", "cnn-4", "cnn-5(norm=True, dropout=0.2)")[2 * alike :]
    return federation("digits", clients=4, partition="dirichlet:1.0", min_per_client=60, models=names, seed=11)


def _with_budgets(algorithm: LocalTraining, found: Federation) -> Federation:
    """The same clients: one unlimited, two that can train the whole model, the last one not."""
    spec = list(found.models.values())[-1]
    full = needs.whole(spec, found.task, algorithm.optimiser(), algorithm.batch_size)
    return found.with_budgets((None, 2 * full, 2 * full, full * 4 // 5))


def _instance(algorithm: Any) -> Algorithm[Any, Any, Any]:
    kind = find(algorithm) if isinstance(algorithm, str) else algorithm
    made: Algorithm[Any, Any, Any] = kind() if isinstance(kind, type) else kind
    changes: dict[str, Any] = {"fraction": 0.5} if made.fraction == 1.0 else {}
    if hasattr(made, "local_epochs"):
        changes["local_epochs"] = 1
    if isinstance(made, Impressions):
        changes |= {"images": min(made.images, 20), "admm": 1}
    return dataclasses.replace(made, **changes)


def _check_one_round(algorithm: Algorithm[Any, Any, Any], found: Federation) -> None:
    init, key = Key.root(0) / "init", Key.root(0) / "round" / 1
    server = algorithm.init_server(init)
    _same(server, algorithm.init_server(init), "init_server gives other bits for the same key")
    _serialisable(server, "the server's state")
    before = tree.clone(server)
    chosen = algorithm.select(server, found.clients, 1, key / "select")
    assert chosen == algorithm.select(server, found.clients, 1, key / "select"), "select is not deterministic"
    arrivals = []
    for info in chosen:
        down, state = algorithm.broadcast(server, info, 1), algorithm.init_client(info, init)
        _same(state, algorithm.init_client(info, init), "init_client gives other bits for the same key")
        rows, held_out = (found.data(info.id, part) for part in ("train", "validation"))
        job = Job(info, 1, down, state, rows, key / "client" / info.id, held_out)
        arrivals.append(_check_update(algorithm, job))
        _check_prediction(algorithm, job)
    sent = [tree.clone(a.up) for a in arrivals]
    after = algorithm.aggregate(server, arrivals, 1, key / "aggregate")
    _same(before, server, "aggregate changed the server's state it was given")
    for arrival, copy in zip(arrivals, sent, strict=True):
        _same(copy, arrival.up, f"aggregate changed what client {arrival.info.id} had sent")
    _same(after, algorithm.aggregate(server, arrivals, 1, key / "aggregate"), "aggregate is not deterministic")
    _serialisable(after, "the server's state after a round")
    copy = tree.clone(after)
    _serialisable(algorithm.keepsakes(after, 1), "what a method keeps for reports")
    _same(copy, after, "keepsakes changed the server's state it was given")
    assert algorithm.done(after, 10**6), "the run never ends: done(server, 1000000) is False"


def _check_update(algorithm: Algorithm[Any, Any, Any], job: Job[Any, Any]) -> Arrival[Any]:
    where = f"client_update of client {job.info.id}"
    before = {name: tree.clone(part) for name, part in _parts(job).items()}
    update = algorithm.client_update(job)
    _serialisable(update.up, "what a client sends")
    _serialisable(update.state, "a client's state")
    for name, part in _parts(job).items():
        _same(before[name], part, f"{where} changed the {name} it was given")
        assert not tree.shares_storage(update.up, part), f"{where}: up shares storage with {name}: send a copy"
        assert not tree.shares_storage(update.state, part) or name == "state", (
            f"{where}: the returned state shares storage with {name}: keep a copy"
        )
    assert not tree.shares_storage(update.up, update.state), f"{where}: up shares storage with the returned state"
    torch.rand(3)  # a method that draws from the global generator outside a key's scope now gives other bits
    again = algorithm.client_update(job)
    _same(update.up, again.up, f"{where} gives another up for the same job: draw from job.key only")
    _same(update.state, again.state, f"{where} gives another state for the same job: draw from job.key only")
    assert update.weight >= 0, f"{where}: the weight {update.weight} is negative"
    assert all(isinstance(v, float) for v in update.metrics.values()), f"{where}: metrics must be floats"
    return Arrival(job.info, update.up, update.weight, update.metrics)


def _check_prediction(algorithm: Algorithm[Any, Any, Any], job: Job[Any, Any]) -> None:
    before = {name: tree.clone(part) for name, part in _parts(job).items()}
    batch = {name: rows[:7] for name, rows in job.data.items()}
    with torch.no_grad():
        ready = algorithm.prepare(job.info, job.down, job.state, job.data, job.key)
        outputs, again = algorithm.predict(ready, batch), algorithm.predict(ready, batch)
        single = algorithm.predict(ready, {name: rows[:1] for name, rows in batch.items()})
    assert len(outputs) == 7, f"predict returned {len(outputs)} rows for 7 samples"
    _same({"o": outputs}, {"o": again}, "predict is not deterministic: evaluate with train=False")
    assert torch.allclose(single, outputs[:1], rtol=1e-3, atol=1e-4), "predict of a row depends on its batch"
    for name, part in _parts(job).items():
        _same(before[name], part, f"prepare or predict changed the {name} it was given")


def _check_engines(prepared: runs.Prepared) -> None:
    with tempfile.TemporaryDirectory(prefix="unalike-check-") as scratch:
        folder = Path(scratch)
        serial = api.run(prepared, out=folder / "serial", report=False).summary["state_sha256"]
        by_two = prepared.experiment.model_copy(update={"engine": "processes", "workers": 2})
        pooled = dataclasses.replace(prepared, experiment=by_two)
        found = api.run(pooled, out=folder / "processes", report=False).summary["state_sha256"]
        assert found == serial, "two processes end in other bits than one: something is kept outside state and key"
        if importlib.util.find_spec("flwr"):
            by_messages = prepared.experiment.model_copy(update={"engine": "flower"})
            sent = dataclasses.replace(prepared, experiment=by_messages)
            found = api.run(sent, out=folder / "flower", report=False).summary["state_sha256"]
            assert found == serial, "Flower's messages end in other bits: something does not pass through them"
        _interrupt(prepared, folder / "resumed")
        resumed = api.resume(folder / "resumed", prepared.federation, report=False).summary["state_sha256"]
        assert resumed == serial, "a resumed run ends in other bits: something is kept outside server, state and key"
        _check_unselected(prepared, folder / "serial")


class _StoppedError(Exception):
    """Raised by the listener that interrupts a run."""


def _interrupt(prepared: runs.Prepared, folder: Path) -> None:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "round":
            raise _StoppedError

    try:
        api.run(prepared, out=folder, listeners=[stop], report=False)
    except _StoppedError:
        return
    raise AssertionError("the run ended before its first round was committed")


def _check_unselected(prepared: runs.Prepared, folder: Path) -> None:
    trained = {c for event in api.Result(folder).events() if event["event"] == "round" for c in event["clients"]}
    kept = Checkpoints(folder / "checkpoint").read().versions.keys()
    assert set(kept) <= trained, f"clients {sorted(set(kept) - trained)} were never selected, yet their state changed"


def _parts(job: Job[Any, Any]) -> dict[str, Mapping[str, Any]]:
    return {"down": job.down, "state": job.state, "data": job.data, "held_out": job.held_out}


def _same(a: Mapping[str, Any], b: Mapping[str, Any], message: str) -> None:
    assert tree.equal(a, b), message


def _serialisable(value: Mapping[str, Any], what: str) -> None:
    try:
        back = tree.from_bytes(tree.to_bytes(value)) if tree.flatten(value) else {}
    except (UnalikeError, ValueError) as error:
        raise AssertionError(f"{what} cannot be written as safetensors: {error}") from error
    assert tree.equal(value, back), f"{what} is not the same after being written and read"
