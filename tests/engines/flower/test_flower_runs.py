"""Whole runs through Flower's messages: what they evaluate, choose, count and resume is what the serial engine does."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from messages import Recorder, rounds_of, train

from unalike import api, tree
from unalike.algorithms.pfedafm import PFedAFM
from unalike.data.federation import Federation, federation
from unalike.engines.checkpoint import Checkpoints
from unalike.engines.flower.in_process import InProcess
from unalike.engines.serial import Serial
from unalike.engines.site import peak_memory
from unalike.protocol import ClientInfo
from unalike.telemetry import events

SAME = ("round", "clients", "metrics", "updates", "bytes_up", "bytes_down", "flops")
"""Of a round's event, what does not depend on the engine; and its evaluation."""


class Separate(PFedAFM):
    """Sends tensors of its own every time, so that no evaluation goes with a job."""

    def broadcast(self, server: Any, info: ClientInfo, round: int) -> Any:
        return {"theta": tree.clone(server["theta"])}


SEPARATE = f"{__file__}:Separate"


@pytest.fixture(scope="module")
def table() -> Federation:
    """Four clients of two architectures on the wines."""
    return federation("wine", clients=4, models=["mlp-5", "mlp-4"], min_per_client=20)


def facts(folder: Path) -> list[Any]:
    """Of each round what every engine tells. Pooled scores it does not: sites count no labels for others."""
    found = [({name: e[name] for name in SAME}, e.get("evaluation")) for e in rounds_of(folder)]
    return [({**told, "metrics": unpooled(told["metrics"])}, scores) for told, scores in found]


def same_summary(a: Path, b: Path) -> None:
    one, other = (api.Result(folder).summary for folder in (a, b))
    for name in ("state_sha256", "selected_round", "accuracy", "balanced_accuracy", "last", "validation", "bytes"):
        assert unpooled(one[name]) == unpooled(other[name]), name


def unpooled(value: Any) -> Any:
    return {k: v for k, v in value.items() if k != "pooled"} if isinstance(value, dict) else value


CASES = {
    "every round": {},
    "every second": {"eval_every": 2},
    "every third, of five": {"eval_every": 3},
    "two clients": {"eval_clients": 2},
    "half the clients": {"fraction": 0.5},
    "one client, two scored, every second": {"fraction": 0.25, "eval_clients": 2, "eval_every": 2},
}


@pytest.mark.parametrize("method", ["pfedafm", "fedproto", "separate"])
@pytest.mark.parametrize("keys", CASES.values(), ids=CASES)
def test_rounds_scores_and_choice_are_those_of_the_serial_engine(
    table: Federation, tmp_path: Path, method: str, keys: dict[str, Any]
) -> None:
    named = SEPARATE if method == "separate" else method
    for name, engine in (("serial", Serial()), ("flower", InProcess())):
        train(tmp_path / name, named, table, engine, rounds=5, **keys)
        engine.close()
    found = facts(tmp_path / "flower")
    assert found == facts(tmp_path / "serial")
    every = keys.get("eval_every", 1)
    due = [r for r in range(1, 6) if r % every == 0 or r == 5]
    assert [said["round"] for said, evaluation in found if evaluation] == due
    same_summary(tmp_path / "flower", tmp_path / "serial")


def test_evaluation_costs_a_message_only_where_a_job_cannot_take_it_along(table: Federation, tmp_path: Path) -> None:
    """Tensors in messages of their own are counted as those of evaluation; all clients' at the end, as no job follows.

    Where the broadcast is another each time all are of their own, as they are on the serial engine.
    """
    costs = dict[str, list[int]]()
    for method, kind in itertools.product(["pfedafm", SEPARATE], [Serial, InProcess]):
        folder, engine = tmp_path / f"{method[-8:]}-{kind.__name__}", kind()
        train(folder, method, table, engine, rounds=3)
        engine.close()
        costs[f"{method[-8:]} {kind.__name__}"] = [e["bytes_evaluation"] for e in rounds_of(folder)]
    once = costs["pfedafm Serial"][0]
    assert once > 0
    assert costs["pfedafm Serial"] == costs["Separate Serial"] == costs["Separate InProcess"] == [once] * 3
    assert costs["pfedafm InProcess"] == [0, 0, once]


@pytest.mark.parametrize("method", ["pfedafm", "separate"])
def test_bytes_with_their_envelope_are_those_that_passed_the_grid(
    table: Federation, tmp_path: Path, method: str
) -> None:
    """A round's are its jobs and what it asks of the scores of the round before; greetings belong to no round."""
    seen = Recorder()
    train(tmp_path / "r", SEPARATE if method == "separate" else method, table, InProcess(seen), rounds=3, fraction=0.5)
    for event in rounds_of(tmp_path / "r"):
        r = event["round"]
        sizes = [
            (size, is_up)
            for head, is_up, size in seen.sizes
            if (head["kind"], head.get("round")) in (("update", r), ("evaluate", r - 1))
        ]
        assert event["wire_bytes_down"] == sum(size for size, is_up in sizes if not is_up) > event["bytes_down"] > 0
        assert event["wire_bytes_up"] == sum(size for size, is_up in sizes if is_up) > event["bytes_up"] > 0


def test_memory_of_sites_that_are_this_process_is_counted_once(table: Federation, tmp_path: Path) -> None:
    train(tmp_path / "r", "pfedafm", table, InProcess(), rounds=1)
    assert 0 < rounds_of(tmp_path / "r")[0]["peak_memory_bytes"] <= peak_memory()


class Stopped(Exception):  # noqa: N818
    """Interrupts a run."""


def stop_after(round: int) -> Any:
    def stop(event: Mapping[str, Any]) -> None:
        if event["event"] == "round" and event["round"] == round:
            raise Stopped

    return stop


def stop_at(kind: str, round: int, number: int) -> Any:
    """Ends the run at the number-th reply of a round to messages of a kind."""
    left = [number]

    def record(sent: Any) -> None:
        seen = Recorder()
        seen(sent)
        for said in seen.up:
            left[0] -= (said.head["kind"], said.head.get("round")) == (kind, round)
        if left[0] == 0:
            left[0] = -1
            raise Stopped

    return record


@pytest.mark.parametrize("method", ["pfedafm", "separate"])
@pytest.mark.parametrize(
    "where",
    [
        ("after", 1),
        ("after", 2),
        ("after", 3),
        ("update", 2, 1),
        ("update", 3, 3),
        ("update", 4, 2),
        ("evaluate", 4, 2),
    ],
    ids=str,
)
def test_a_resumed_run_has_the_same_hash_scores_and_choice(
    table: Federation, tmp_path: Path, method: str, where: tuple[Any, ...]
) -> None:
    """Also when it is interrupted between a round and its evaluation, or while the next round asks for it."""
    named = SEPARATE if method == "separate" else method
    train(tmp_path / "whole", named, table, InProcess(), rounds=4)
    record, listeners = (None, [stop_after(where[1])]) if where[0] == "after" else (stop_at(*where), [])
    with pytest.raises(Stopped):
        train(tmp_path / "parts", named, table, InProcess(record), listeners, rounds=4)
    train(tmp_path / "parts", named, table, InProcess(), rounds=4)
    assert facts(tmp_path / "parts") == facts(tmp_path / "whole")
    same_summary(tmp_path / "parts", tmp_path / "whole")
    assert [e["event"] for e in api.Result(tmp_path / "parts").events()].count("evaluation") == 0


def test_a_state_that_was_just_trained_outlives_the_evaluation_of_the_round_before(
    table: Federation, tmp_path: Path
) -> None:
    """That one comes after the job, in a message of its own, and starts from the older state."""
    train(tmp_path / "r", SEPARATE, table, InProcess(), rounds=4)
    kept = Checkpoints(tmp_path / "r" / "checkpoint")
    for round in (3, 4):
        for client, (version, _) in kept.read(round).versions.items():
            assert kept.clients.joinpath(str(client), f"{version}.safetensors").exists()


def test_every_generation_that_is_kept_has_all_its_states(table: Federation, tmp_path: Path) -> None:
    """At every commit, also the one best on validation."""
    folder, seen = tmp_path / "r", [0, 0]

    def look(event: Mapping[str, Any]) -> None:
        if event["event"] != "round":
            return
        kept = Checkpoints(folder / "checkpoint")
        indexes = {index.round: index for index in kept._indexes()}
        last = indexes[max(indexes)]
        assert last.best_round in {0, *indexes}
        seen[0] += last.best_round not in {0, last.round, last.round - 1}
        for index in indexes.values():
            for client, (version, digest) in index.versions.items():
                path = kept.clients / str(client) / f"{version}.safetensors"
                assert tree.sha256(tree.from_bytes(path.read_bytes())) == digest
                seen[1] += 1

    train(folder, "pfedafm", table, InProcess(), [look], rounds=10, fraction=0.5, lr=0.3)
    assert seen[0] > 0, "the best generation was always among the last two: nothing was shown"
    assert seen[1] > 20


# The lines of events.jsonl


def write(path: Path, *lines: Mapping[str, Any]) -> list[dict[str, Any]]:
    import json

    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return list(events.read(path))


START, END = {"event": "start", "round": 0}, {"event": "end", "round": 2}


def a_round(round: int) -> dict[str, Any]:
    return {"event": "round", "round": round, "metrics": {"train": {"loss": 1.0}}}


def scored(round: int) -> dict[str, Any]:
    evaluation = {"test": {"0": {"accuracy": 0.5}}}
    return {"event": "evaluation", "round": round, "metrics": {"validation": {"loss": 2.0}}, "evaluation": evaluation}


def both(round: int) -> dict[str, Any]:
    said = scored(round)
    return {**a_round(round), "metrics": a_round(round)["metrics"] | said["metrics"], "evaluation": said["evaluation"]}


def test_a_late_evaluation_belongs_to_its_round(tmp_path: Path) -> None:
    found = write(tmp_path / "e", START, a_round(1), scored(1), a_round(2), END)
    assert found == [START, both(1), a_round(2), END]


def test_a_late_evaluation_belongs_to_its_round_across_a_resume(tmp_path: Path) -> None:
    """The resumed run says that it starts, with the number of the same round, before it scores it."""
    again = {"event": "start", "round": 1, "resumed": True}
    found = write(tmp_path / "e", START, a_round(1), again, again, scored(1), a_round(2), END)
    assert found == [START, both(1), again, again, a_round(2), END]


def test_other_lines_stay_as_they_are(tmp_path: Path) -> None:
    assert write(tmp_path / "e") == []
    assert write(tmp_path / "e", START) == [START]
    assert write(tmp_path / "e", START, a_round(1)) == [START, a_round(1)]
    assert write(tmp_path / "e", START, scored(1), a_round(2)) == [START, scored(1), a_round(2)]
