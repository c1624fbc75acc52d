"""`check_algorithm` lets the methods pass, and names the promise that a broken one breaks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from catalogue import ANSWERING, NETWORKS, SPEAKING
from unalike import models, tree
from unalike.algorithms import ALGORITHMS
from unalike.algorithms.fedavg import FedAvg
from unalike.algorithms.standalone import Standalone
from unalike.check import check_algorithm
from unalike.data.federation import Federation, federation
from unalike.protocol import Arrival, ClientInfo, Job, Update
from unalike.rng import Key

VISITS: list[int] = []
"""What `CountsVisits` wrongly remembers."""


@pytest.fixture(scope="module")
def table() -> Federation:
    """Three clients with dropout on the wines: quick, and enough to break a promise on."""
    return federation("wine", clients=3, models=["mlp-5(dropout=0.3)"], min_per_client=30)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_methods_keep_the_contract(name: str) -> None:
    check_algorithm(name)


@pytest.mark.parametrize("name", SPEAKING)
def test_the_methods_for_texts_keep_the_contract(name: str, asked: Federation) -> None:
    check_algorithm(ALGORITHMS[name](max_new_tokens=2), asked)


@pytest.mark.parametrize("name", ANSWERING)
def test_the_methods_for_questions_about_images_keep_the_contract(name: str, pictured: Federation) -> None:
    check_algorithm(ALGORITHMS[name](batch_size=8), pictured)


# What a client does


def shifted(weights: Mapping[str, Any], by: float) -> dict[str, Any]:
    return tree.map_leaves(lambda leaf: leaf + by, weights)


class SendsDownBack(FedAvg):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({"model": job.down["model"]}, {}, 1.0)


class SendsViewOfDown(FedAvg):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({"model": tree.map_leaves(lambda leaf: leaf.view(-1), job.down["model"])}, {}, 1.0)


class SendsItsState(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({"model": job.state["model"]}, {"model": tree.clone(job.state["model"])}, 1.0)


class SendsItsNewState(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        tuned = shifted(job.state["model"], 1.0)
        return Update({"header": tuned["header"]}, {"model": tuned}, 1.0)


class KeepsDown(FedAvg):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({"model": shifted(job.down["model"], 1.0)}, {"model": job.down["model"]}, 1.0)


class ChangesState(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        tree.map_leaves(lambda leaf: leaf.add_(1.0), job.state["model"])
        return Update({}, {"model": tree.clone(job.state["model"])}, 1.0)


class ChangesDown(FedAvg):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        tree.map_leaves(lambda leaf: leaf.add_(1.0), job.down["model"])
        return Update({"model": tree.clone(job.down["model"])}, {}, 1.0)


class ChangesData(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        job.data["x"].mul_(2.0)
        return super().client_update(job)


class DrawsGlobally(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({}, {"model": shifted(job.state["model"], float(torch.rand(())))}, 1.0)


class SendsGlobalNoise(FedAvg):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({"model": shifted(job.down["model"], float(torch.randn(())))}, {}, 1.0)


class KeepsNumbers(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({}, {**super().client_update(job).state, "visits": 1}, 1.0)


class WeighsNegatively(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({}, {}, -1.0)


class MeasuresTensors(Standalone):
    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        return Update({}, {}, 1.0, {"loss": torch.tensor(1.0)})  # type: ignore[dict-item]


# What the server does


class StartsAnyhow(FedAvg):
    def init_server(self, key: Key) -> Any:
        return {"model": shifted(super().init_server(key)["model"], float(torch.rand(())))}


class StartsClientsAnyhow(Standalone):
    def init_client(self, info: ClientInfo, key: Key) -> Any:
        return {"model": shifted(super().init_client(info, key)["model"], float(torch.rand(())))}


class SelectsAnyhow(Standalone):
    def select(self, server: Any, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        VISITS.append(0)
        return [clients[len(VISITS) % len(clients)]]


class ChangesServer(FedAvg):
    def aggregate(self, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        return {"model": tree.map_leaves(lambda leaf: leaf.add_(1.0), server["model"])}


class ChangesArrivals(FedAvg):
    def aggregate(self, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        return {"model": tree.clone(tree.map_leaves(lambda leaf: leaf.mul_(2.0), arrivals[0].up["model"]))}


class NeverEnds(Standalone):
    def done(self, server: Any, round: int) -> bool:
        return False


# What is predicted


class PredictsWithDropout(Standalone):
    def predict(self, ready: Any, batch: Any) -> torch.Tensor:
        return models.logits(self.models[ready["info"].tier], ready["state"]["model"], batch["x"], train=True)


class PredictsFromTheBatch(Standalone):
    def predict(self, ready: Any, batch: Any) -> torch.Tensor:
        outputs = super().predict(ready, batch)
        return outputs - outputs.mean(0)


class PredictsTheMean(Standalone):
    def predict(self, ready: Any, batch: Any) -> torch.Tensor:
        return super().predict(ready, batch).mean(0, keepdim=True)


class TrainsWhilePredicting(Standalone):
    def prepare(self, info: ClientInfo, down: Any, state: Any, data: Any, key: Key) -> Any:
        tree.map_leaves(lambda leaf: leaf.add_(1.0), state["model"])
        return super().prepare(info, down, state, data, key)


# What is remembered elsewhere


class CountsVisits(Standalone):
    """Counts in the process, which the next job may not be served in."""

    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        VISITS.append(job.info.id)
        by = float(len(VISITS)) if job.round > 1 else 1.0
        return Update({}, {"model": shifted(job.state["model"], by)}, 1.0)


@dataclass(frozen=True, kw_only=True)
class RemembersRounds(FedAvg):
    """Keeps what belongs into the server's state on itself, where a resumed run does not find it."""

    def init_server(self, key: Key) -> Any:
        object.__setattr__(self, "seen", set())
        return super().init_server(key)

    def aggregate(self, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        seen: set[int] = self.__dict__.setdefault("seen", set())
        seen.add(round)
        return {"model": shifted(server["model"], float(len(seen)))}


BROKEN: list[tuple[Any, str]] = [
    (SendsDownBack, "up shares storage with down: send a copy"),
    (SendsViewOfDown, "up shares storage with down: send a copy"),
    (SendsItsState, "up shares storage with state: send a copy"),
    (SendsItsNewState, "up shares storage with the returned state"),
    (KeepsDown, "the returned state shares storage with down: keep a copy"),
    (ChangesState, "changed the state it was given"),
    (ChangesDown, "changed the down it was given"),
    (ChangesData, "changed the data it was given"),
    (DrawsGlobally, "gives another state for the same job: draw from job.key only"),
    (SendsGlobalNoise, "gives another up for the same job: draw from job.key only"),
    (KeepsNumbers, "a client's state cannot be written as safetensors: visits is a int"),
    (WeighsNegatively, "the weight -1.0 is negative"),
    (MeasuresTensors, "metrics must be floats"),
    (StartsAnyhow, "init_server gives other bits for the same key"),
    (StartsClientsAnyhow, "init_client gives other bits for the same key"),
    (SelectsAnyhow, "select is not deterministic"),
    (ChangesServer, "aggregate changed the server's state it was given"),
    (ChangesArrivals, "aggregate changed what client"),
    (NeverEnds, "the run never ends"),
    (PredictsWithDropout, "predict is not deterministic: evaluate with train=False"),
    (PredictsFromTheBatch, "predict of a row depends on its batch"),
    (PredictsTheMean, "predict returned 1 rows for 7 samples"),
    (TrainsWhilePredicting, "prepare or predict changed the state it was given"),
    (CountsVisits, "two processes end in other bits than one: something is kept outside state and key"),
    (RemembersRounds, "a resumed run ends in other bits: something is kept outside server, state and key"),
]


@pytest.mark.parametrize(("kind", "words"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_promise_is_named(kind: Any, words: str, table: Federation) -> None:
    with pytest.raises(AssertionError) as caught:
        check_algorithm(kind, table)
    assert words in str(caught.value)


def test_an_algorithm_may_be_a_class_an_instance_or_a_name(table: Federation) -> None:
    for algorithm in (KeepsNumbers, KeepsNumbers(lr=0.1), f"{__file__}:KeepsNumbers"):
        with pytest.raises(AssertionError, match="visits is a int"):
            check_algorithm(algorithm, table)
