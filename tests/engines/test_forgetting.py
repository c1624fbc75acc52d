"""Forgetting and scores over all rows together: by hand, on a method that destroys its model, and on every engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import api, models, tree
from unalike.algorithms.fedavg import FedAvg
from unalike.data.federation import Federation, federation
from unalike.engines import forgetting, loop
from unalike.engines.checkpoint import Checkpoints
from unalike.engines.serial import Serial
from unalike.engines.site import Setup, Site
from unalike.engines.wire import Message, pack
from unalike.errors import InputError, RunError
from unalike.protocol import Arrival, ClientInfo, Job, Update
from unalike.rng import Key
from unalike.tasks import Classification

PARTS = ("validation", "test")
CLOCK = ("seconds", "client_seconds", "server_seconds", "peak_memory_bytes", "wire_bytes_up")


@pytest.fixture(scope="module")
def table() -> Federation:
    """Four clients with one small model on the wines."""
    return federation("wine", clients=4, models=["mlp-5"], min_per_client=20)


def rounds_of(result: api.Result) -> list[dict[str, Any]]:
    return [event for event in result.events() if event["event"] == "round"]


def arrival(client: int, up: Mapping[str, Any]) -> Arrival[Any]:
    return Arrival(ClientInfo(client, "mlp-5", 1), up, 1.0, {})


def counts(hits: list[int], rows: list[int]) -> dict[str, Any]:
    return {"hits": hits, "rows": rows, "loss": 0.0}


def reply(test: dict[str, Any]) -> Message:
    """Everything is right on validation."""
    return Message({"counts": {"validation": {**test, "hits": test["rows"]}, "test": test}})


# By hand


def test_forgetting_by_hand() -> None:
    """Clients 0, 1, 2 have 10, 30 and 60 rows, of which w has 5, 15 and 60 right.

    Client 1 trains: without it w has (5 + 60) / 70 right and w_1 (1 + 34) / 70: F_1 = 30/70. Client 2: w (5 + 15) / 40,
    w_2 (10 + 20) / 40: others gain by it, F_2 = −10/40. Rows count once each, not clients: a mean of the two clients'
    accuracies would make F_1 (0.5 + 1)/2 − (0.1 + 34/60)/2 = 0.417.
    """
    before, w_1, w_2 = ({"model": {"w": torch.full((3,), float(k))}} for k in range(3))
    found = forgetting.trials("model", before, [arrival(1, w_1), arrival(2, w_2)], [0, 1, 2])
    assert [(trial.by, list(trial.judges)) for trial in found] == [(None, [0, 1, 2]), (1, [0, 2]), (2, [0, 1])]
    assert [trial.bytes for trial in found] == [36, 24, 24]
    told = [
        *(counts([5, 0], [5, 5]), counts([10, 5], [20, 10]), counts([60, 0], [60, 0])),
        *(counts([1, 0], [5, 5]), counts([34, 0], [60, 0])),
        *(counts([5, 5], [5, 5]), counts([10, 10], [20, 10])),
    ]
    result = forgetting.forgotten(Classification(2), found, map(reply, told))
    assert result["test"] == {"1": pytest.approx(30 / 70), "2": pytest.approx(-10 / 40)}
    assert result["validation"] == {"1": 0.0, "2": 0.0}


def test_each_message_holds_the_model_that_it_asks_about() -> None:
    before, sent = {"model": {"w": torch.zeros(2)}, "control": {"c": torch.ones(9)}}, {"model": {"w": torch.ones(2)}}
    frames = list(
        map(Message.decode, forgetting.requests(forgetting.trials("model", before, [arrival(1, sent)], [0, 1, 2]), 7))
    )
    assert [(f.head["kind"], f.head["client"], f.head["round"], float(f.tree["w"][0])) for f in frames] == [
        ("common", 0, 7, 0.0),
        ("common", 2, 7, 0.0),
        ("common", 0, 7, 1.0),
        ("common", 2, 7, 1.0),
    ]


def test_where_nobody_can_forget_nothing_is_asked() -> None:
    model = {"model": {"w": torch.zeros(2)}}
    assert forgetting.trials("model", model, [arrival(0, model)], [0]) == []
    assert forgetting.trials("model", model, [], [0, 1]) == []
    with pytest.raises(RunError, match="what client 0 sent has no 'model'"):
        forgetting.trials("model", model, [arrival(0, {"other": {}})], [0, 1])


# A client that destroys the model


@dataclass(frozen=True, kw_only=True)
class Destroying(FedAvg):
    """Client 0 sends a model that answers class 2 to everything; the others send what they got."""

    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        model = tree.clone(job.down["model"])
        if job.info.id == 0:
            model["header"]["weight"].zero_()
            model["header"]["bias"] = torch.tensor([0.0, 0.0, 9.0])
        return Update({"model": model}, {}, job.info.n, {"loss": 0.0})

    def aggregate(self, server: Any, arrivals: Any, round: int, key: Key) -> Any:
        return server


def share_right(method: FedAvg, weights: Any, found: Federation, clients: Iterable[int], part: str) -> float:
    """Over the rows of some clients, all at once."""
    rows = [found.data(client, part) for client in clients]
    x, y = (torch.cat([each[name] for each in rows]) for name in ("x", "y"))
    return float((models.logits(method.shared, weights, x).argmax(1) == y).double().mean())


def test_who_destroys_the_model_makes_the_others_forget_and_nobody_else_does(table: Federation, tmp_path: Path) -> None:
    prepared = api.prepare(f"{__file__}:Destroying", table, rounds=2, forgetting=True, engine="serial")
    result = api.run(prepared, report=False, out=tmp_path / "run")
    method: Any = prepared.algorithm
    kept = Checkpoints(tmp_path / "run/checkpoint")
    w = kept.server(kept.read())["model"]
    for event in rounds_of(result):
        for part in PARTS:
            told = event["forgetting"][part]
            assert {client: told[client] for client in "123"} == {"1": 0.0, "2": 0.0, "3": 0.0}
            second = torch.cat([table.data(client, part)["y"] for client in (1, 2, 3)]) == 2
            before = share_right(method, w, table, (1, 2, 3), part)
            assert told["0"] == pytest.approx(before - float(second.double().mean()))
            assert told["0"] != 0
    test = rounds_of(result)[-1]["forgetting"]["test"]["0"]
    found = result.summary["forgetting"]
    assert found["mean"] == pytest.approx(test / 4)
    assert found["per_client"] == {"0": pytest.approx(test), "1": 0.0, "2": 0.0, "3": 0.0}
    assert found["rounds"] == [2]


def test_it_is_the_common_model_that_forgets_also_where_clients_predict_with_their_own(
    table: Federation, tmp_path: Path
) -> None:
    result = api.run(
        "ditto", table, rounds=1, local_epochs=3, forgetting=True, engine="serial", report=False, out=tmp_path / "run"
    )
    assert any(result.summary["forgetting"]["per_client"].values())


# Training is not touched


def same(event: Mapping[str, Any], *but: str) -> dict[str, Any]:
    """What does not depend on the clock, as the length of an envelope does that says the seconds."""
    return {k: v for k, v in event.items() if k not in (*CLOCK, *but)}


def test_measuring_changes_no_bit_and_its_bytes_are_evaluations(table: Federation, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"rounds": 3, "local_epochs": 1, "fraction": 0.5, "engine": "serial", "eval_every": 2}
    plain = api.run("scaffold", table, **keys, report=False, out=tmp_path / "plain")
    measured = api.run("scaffold", table, **keys, forgetting=True, report=False, out=tmp_path / "measured")
    assert measured.summary["state_sha256"] == plain.summary["state_sha256"]
    changed = ("forgetting", "bytes_evaluation")
    for one, other in zip(rounds_of(plain), rounds_of(measured), strict=True):
        assert same(one, *changed) == same(other, *changed)
    model = tree.nbytes(models.initial(next(iter(table.models.values())), Key.root(0)))
    pairs = zip(rounds_of(plain), rounds_of(measured), strict=True)
    extra = [with_it.get("bytes_evaluation", 0) - without.get("bytes_evaluation", 0) for without, with_it in pairs]
    assert extra == [0, (4 + 2 * 3) * model, (4 + 2 * 3) * model]  # w at all four, what two sent at three each
    assert [sorted(event.get("forgetting", {}).get("test", {})) for event in rounds_of(measured)] == [
        [],
        *([str(c) for c in event["clients"]] for event in rounds_of(measured)[1:]),
    ]
    assert "forgetting" not in plain.summary


def test_a_sample_of_clients_judges(table: Federation, tmp_path: Path) -> None:
    """Two of four judge; what each of them sent is scored by the other alone."""
    asked: list[tuple[str, int]] = []

    class Noting(Serial):
        def map(self, requests: Iterable[bytes]) -> Iterator[bytes]:
            def noted() -> Iterator[bytes]:
                for frame in requests:
                    head = Message.decode(frame).head
                    asked.append((head["kind"], head["client"]))
                    yield frame

            yield from super().map(noted())

    prepared = api.prepare("fedavg", table, rounds=1, local_epochs=1, forgetting=True, eval_clients=2)
    (tmp_path / "run").mkdir()
    loop.run(prepared.plan(tmp_path / "run"), Noting())
    a, b = [client for kind, client in asked if kind == "evaluate"]
    judged = [client for kind, client in asked if kind == "common"]
    assert judged[:2] == [a, b]
    assert sorted(judged[2:]) == sorted([a] * 3 + [b] * 3)


def stop(event: Mapping[str, Any]) -> None:
    if event["event"] == "round":
        raise KeyboardInterrupt


def test_in_processes_and_resumed_it_is_the_same(table: Federation, tmp_path: Path) -> None:
    keys: dict[str, Any] = {"rounds": 2, "local_epochs": 1, "forgetting": True}
    serial = api.run("fedprox", table, **keys, engine="serial", report=False, out=tmp_path / "serial")
    pooled = api.run("fedprox", table, **keys, engine="processes", workers=2, report=False, out=tmp_path / "processes")
    with pytest.raises(KeyboardInterrupt):
        api.run("fedprox", table, **keys, engine="serial", listeners=[stop], report=False, out=tmp_path / "resumed")
    resumed = api.resume(tmp_path / "resumed", table, report=False)
    told = [[same(event) for event in rounds_of(result)] for result in (serial, pooled, resumed)]
    assert told[0] == told[1] == told[2]
    assert [len(event["forgetting"]["test"]) for event in told[0]] == [4, 4]
    for name in ("forgetting", "pooled", "state_sha256"):
        assert serial.summary[name] == pooled.summary[name] == resumed.summary[name]


# All rows together


def test_scores_over_all_rows_together(table: Federation, tmp_path: Path) -> None:
    """Of FedAvg all predict with one model: its accuracy and recalls on the rows of all clients at once."""
    prepared = api.prepare("fedavg", table, rounds=2, local_epochs=2, engine="serial")
    result, method = api.run(prepared, report=False, out=tmp_path / "run"), prepared.algorithm
    kept = Checkpoints(tmp_path / "run/checkpoint")
    w = kept.server(kept.read())["model"]
    for part in PARTS:
        rows = [table.data(client, part) for client in range(4)]
        y = torch.cat([each["y"] for each in rows])
        right = models.logits(method.shared, w, torch.cat([each["x"] for each in rows])).argmax(1) == y
        recall = [float(right[y == c].double().mean()) for c in range(3)]
        told = rounds_of(result)[-1]["metrics"]["pooled"][part]
        assert told["recall"] == pytest.approx(recall)
        assert told["accuracy"] == pytest.approx(float(right.double().mean()))
        assert told["balanced_accuracy"] == pytest.approx(sum(recall) / 3)
        assert told["n"] == len(y)
    recall = rounds_of(result)[-1]["metrics"]["pooled"]["test"]["recall"]
    assert result.summary["last"]["pooled"]["recall"] == {str(c): value for c, value in enumerate(recall)}
    chosen = rounds_of(result)[result.summary["selected_round"] - 1]["metrics"]["pooled"]
    assert result.summary["pooled"]["balanced_accuracy"] == chosen["test"]["balanced_accuracy"]
    assert result.summary["validation"]["pooled"]["accuracy"] == chosen["validation"]["accuracy"]


# What is refused


@pytest.mark.parametrize(
    ("method", "keys", "message"),
    [
        ("fedbn", {"data": "digits", "models": ["cnn-5(norm=True)"]}, "fedbn has no global model that is whole"),
        ("pfedafm", {}, "pfedafm has no global model that is whole"),
        ("fedavg", {"engine": "flower"}, "over Flower's network it is not measured"),
        ("fedavg", {"clients": 1}, "a single client has no others"),
    ],
)
def test_where_it_cannot_be_measured_it_is_refused(method: str, keys: dict[str, Any], message: str) -> None:
    given = {"data": "wine", "models": ["mlp-5"], "clients": 3, **keys}
    with pytest.raises(InputError, match=message) as refused:
        api.prepare(method, **given, forgetting=True)
    assert "\n" not in str(refused.value)
    api.prepare(method, **given)


def test_an_engine_whose_sites_lie_elsewhere_is_refused(table: Federation, tmp_path: Path) -> None:
    class Remote(Serial):
        sent = received = 0

        def present(self, clients: Any) -> Any:
            return clients

    plan = dataclasses.replace(api.prepare("fedavg", table).plan(tmp_path), forgetting=True)
    with pytest.raises(InputError, match="measured on one machine only"):
        loop.run(plan, Remote())


def test_a_site_elsewhere_tells_no_counts_whoever_asks(table: Federation, tmp_path: Path) -> None:
    method = api.prepare("fedavg", table)
    setup = Setup("fedavg", method.parameters, "", str(tmp_path), Key.root(0).digest.hex())
    body = pack(models.initial(next(iter(table.models.values())), Key.root(0)))
    common = Message({"kind": "common", "client": 1, "round": 1}, body)
    assert "error" in Site(setup, table).reply(common).head
    assert "error" not in Site(dataclasses.replace(setup, counts=True), table).reply(common).head
    down = pack(method.algorithm.init_server(Key.root(0)))
    head = {"kind": "evaluate", "client": 1, "round": 1, "key": Key.root(0).digest.hex(), "version": 0, "sha256": ""}
    assert "counts" not in Site(setup, table).reply(Message(head, down)).head
