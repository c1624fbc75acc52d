"""A client with a budget: what it takes is counted as predicted, no bit changes, and exceeding it stops the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import pytest
import torch

from unalike import api, runs
from unalike.algorithms.fedavg import FedAvg
from unalike.data.federation import Federation, federation
from unalike.engines import loop
from unalike.engines.budget import Visits, Watch
from unalike.engines.serial import Serial
from unalike.engines.wire import Message
from unalike.errors import RunError
from unalike.memory import needs
from unalike.protocol import ClientInfo, Job
from unalike.rng import Key

NORM = "cnn-5(norm=True, dropout=0.2)"
KEYS: dict[str, Any] = {"rounds": 2, "local_epochs": 1, "batch_size": 16, "fraction": 0.5}
LARGE = 10**9


@pytest.fixture(scope="module")
def given() -> Federation:
    return federation(
        "digits", clients=4, partition="dirichlet:1.0", min_per_client=60, models=[NORM], seed=11, rows=500
    )


def run(folder: Path, given: Federation, method: Any = "fedavg", **keys: Any) -> api.Result:
    return api.run(method, given, out=folder, report=False, **{**KEYS, "engine": "serial", **keys})


def test_counting_changes_no_bit_and_agrees_with_the_prediction(tmp_path: Path, given: Federation) -> None:
    budgeted = given.with_budgets((LARGE, None, LARGE, LARGE))
    plain = run(tmp_path / "plain", given).summary
    counted = run(tmp_path / "counted", budgeted).summary
    uncounted = run(tmp_path / "uncounted", budgeted, check_memory=False).summary
    assert counted["state_sha256"] == uncounted["state_sha256"] == plain["state_sha256"]
    assert counted["flops"] == plain["flops"]
    assert "memory" not in uncounted
    found = counted["memory"]
    visits = [c for e in api.Result(tmp_path / "counted").events() if e["event"] == "round" for c in e["clients"]]
    assert found["visits"] == sum(client != 1 for client in visits)
    assert (found["evaluations"], found["over"], found["took_part"]) == (2 * 3, 0, len(set(visits)))
    assert found["largest_share"] == found["largest_bytes"] / LARGE
    method = runs.reopen(tmp_path / "counted").algorithm
    predicted = needs.whole_peak(method.shared, method.task, method.optimiser(), 16)
    assert 0.99 * predicted < found["largest_bytes"] < 1.01 * predicted


@pytest.mark.parametrize("engine", ["processes", "flower"])
def test_every_engine_counts_the_same(tmp_path: Path, given: Federation, engine: str) -> None:
    pytest.importorskip("flwr")
    budgeted = given.with_budgets((LARGE, None, LARGE, LARGE))
    one, other = (run(tmp_path / e, budgeted, engine=e, rounds=1).summary for e in ("serial", engine))
    assert one["state_sha256"] == other["state_sha256"]
    assert one["memory"] == other["memory"]


def test_exceeding_a_budget_names_round_client_peak_budget_and_remedy(tmp_path: Path, given: Federation) -> None:
    budgeted = given.with_budgets((LARGE, LARGE, 2**20, LARGE))
    said = (
        r"round 1, client 2: training took [\d.]+ MiB of memory, its budget is 1.00 MiB: lower --batch-size, give it a "
        r"smaller model or a larger budget, or count no memory with --check-memory false"
    )
    with pytest.raises(RunError, match=f"^{said}"):
        run(tmp_path / "run", budgeted, fraction=1.0)
    assert run(tmp_path / "unchecked", budgeted, fraction=1.0, check_memory=False).summary["rounds"] == 2


def test_a_client_that_never_trains_is_held_to_its_budget_in_evaluation(tmp_path: Path, given: Federation) -> None:
    with pytest.raises(RunError, match="client 3: evaluation took"):
        run(tmp_path / "run", given.with_budgets((LARGE, LARGE, LARGE, 1000)), method=OnlyTheFirst())


@dataclass(frozen=True, kw_only=True)
class OnlyTheFirst(FedAvg):
    """Trains client 0 alone."""

    def select(self, server: Any, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        return clients[:1]


def job(given: Federation, memory: int | None) -> Job[Any, Any]:
    down = {"w": torch.zeros(1000)}
    info = dataclasses.replace(given.clients[0], memory=memory)
    return Job(info, 1, down, {"s": torch.zeros(10)}, given.data(0, "train"), Key.root(0))


def test_what_is_held_counts_and_stored_rows_do_not(given: Federation) -> None:
    held, watch = 4 * 1010, Watch(job(given, LARGE))
    with watch.over("work"):
        watch.job.data["x"][:10].view(-1)
    assert watch.bytes == held
    other = given.data(1, "test")
    with watch.over("work", other):
        other["x"][:10] + 1
    assert watch.bytes == held + 10 * 64 * 4
    assert watch.head() == {"memory_bytes": held + 10 * 64 * 4, "memory_budget": LARGE}


def test_without_a_budget_nothing_is_counted(given: Federation) -> None:
    for watch in (Watch(job(given, None)), Watch(job(given, 1), wanted=False)):
        with watch.over("work"):
            torch.zeros(10**6)
        assert watch.head() == {}


def test_an_error_of_the_method_is_not_hidden_by_one_of_memory(given: Federation) -> None:
    with pytest.raises(ValueError, match="its own"), Watch(job(given, 1)).over("work"):
        raise ValueError("its own")


def test_replies_add_up_to_an_event() -> None:
    visits = Visits()
    assert visits.event() == {}
    for head in ({"weight": 1.0}, {"weight": 1.0, "scores": {}, "memory_bytes": 50, "memory_budget": 100}):
        visits.note(head)
    visits.note({"scores": {}, "memory_bytes": 60, "memory_budget": 200})
    expected = {"visits": 1, "evaluations": 2, "over": 0, "largest_share": 0.5, "largest_bytes": 60}
    assert visits.event() == {"memory": expected}


def test_a_budget_bounds_the_rows_of_an_evaluation(
    given: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[int, int] = {}
    original = FedAvg.predict

    def predict(self: FedAvg, ready: Any, batch: Any) -> Any:
        k = ready["info"].id
        seen[k] = max(seen.get(k, 0), len(batch["x"]))
        return original(self, ready, batch)

    monkeypatch.setattr(FedAvg, "predict", predict)
    budgeted = given.with_budgets((LARGE, None, LARGE, LARGE))
    run(tmp_path / "run", budgeted, rounds=1)
    assert seen[1] == max(len(given.rows(1, part)) for part in ("validation", "test")) > 16
    assert all(seen[k] == 16 for k in (0, 2, 3))


# What is settled, and what is counted once


@dataclass(frozen=True, kw_only=True)
class Settling(FedAvg):
    """Takes the poorest client's budget as its batch size."""

    memory_aware: ClassVar[bool] = True
    poorest: int = 0
    """Bytes of the smallest budget; 0: to be settled."""

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        budgets = [info.memory for info in clients if info.memory is not None]
        return dataclasses.replace(self, poorest=self.poorest or min(budgets, default=0))

    def require(self, clients: Sequence[ClientInfo]) -> None:
        assert self.poorest

    def broadcast(self, server: Any, info: ClientInfo, round: int) -> Any:
        return {"model": server["model"], **({"more": {"w": torch.zeros(round)}} if round > 1 else {})}

    def client_update(self, job: Job[Any, Any]) -> Any:
        if job.round > 1:
            torch.ones(100, 100) @ torch.ones(100, 100)
        return super().client_update(job)


def test_what_a_method_settles_is_written_down_and_stays(tmp_path: Path, given: Federation) -> None:
    result = run(tmp_path / "run", given.with_budgets((LARGE, 2 * LARGE, None, LARGE)), method=Settling())
    assert result.summary["parameters"]["poorest"] == LARGE
    assert f"poorest = {LARGE}\n" in (tmp_path / "run" / runs.EXPERIMENT).read_text()
    again = runs.reopen(tmp_path / "run", given.with_budgets((5, 5, 5, 5)))
    assert again.parameters["poorest"] == again.algorithm.poorest == LARGE


def test_work_that_changes_is_counted_anew(tmp_path: Path, given: Federation) -> None:
    found = run(tmp_path / "run", given.with_budgets((LARGE,) * 4), method=Settling(), fraction=1.0)
    first, second = (event["flops"] for event in found.events() if event["event"] == "round")
    rows = sum(info.n for info in given.clients)
    assert second - first == pytest.approx(rows * 2 * 100**3 / 8)


def test_a_serial_engines_reply_says_what_was_taken(given: Federation, tmp_path: Path) -> None:
    class Kept(Serial):
        heads: ClassVar[list[Any]] = []

        def map(self, requests: Any) -> Any:
            for frame in super().map(requests):
                self.heads.append(Message.decode(frame).head)
                yield frame

    prepared = api.prepare(
        "fedavg", given.with_budgets((LARGE, None, None, None)), **{**KEYS, "rounds": 1, "fraction": 1.0}
    )
    runs.create(tmp_path / "run", prepared)
    loop.run(prepared.plan(tmp_path / "run"), Kept())
    assert {h["client"] for h in Kept.heads if "memory_bytes" in h} == {0}
    assert all(h["memory_budget"] == LARGE for h in Kept.heads if "memory_bytes" in h)
