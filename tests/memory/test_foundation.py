"""Memory of tuning a frozen model: predicted on fake tensors as counted on real ones, byte for byte."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import tree
from unalike.algorithms import build
from unalike.memory import foundation
from unalike.memory.measure import profiled
from unalike.memory.predict import count, predict
from unalike.memory.work import Mark, Work, shapes_of
from unalike.models import multimodal
from unalike.protocol import ClientInfo, Job, Spec
from unalike.rng import Key
from unalike.tasks import Answering

KEY = Key.root(0)
INFO = ClientInfo(0, "tiny", 6)


@pytest.fixture(scope="module", params=["vilt", "clip", "bert", "vit"])
def method(request: pytest.FixtureRequest, foundations: dict[str, Path]) -> Any:
    spec = Spec(f"vl:{foundations[request.param]}", (3, 32, 32), 7)
    return build("feddat", {"batch_size": 3, "shared_model": "tiny"}, models={"tiny": spec}, task=Answering())


def parts(method: Any) -> dict[str, Any]:
    sent = method.broadcast(method.init_server(KEY), INFO, 1)
    return {"down": shapes_of(sent), "state": shapes_of(method.init_client(INFO, KEY))}


def visit(method: Any) -> Work:
    held = parts(method)
    sent, state = held["down"]["adapter"], held["state"]
    params = {"shared": sent, "local": state["adapter"], "head": state["head"]}
    rows = foundation.rows(method.shared, 3, 6)
    return foundation.training(method.shared, method.steps(INFO, 1.0), params, {"copy": sent}, rows)


def update(method: Any) -> Work:
    def run(held: Mapping[str, Any], mark: Mark) -> object:
        return method.client_update(Job(INFO, 1, held["down"], held["state"], held["batch"], KEY))

    held = parts(method) | {"batch": foundation.rows(method.shared, 6, 6)}
    return foundation.around(method.shared, Work(held, run))


def test_a_visit_is_predicted_as_it_is_counted(method: Any) -> None:
    predicted = predict(visit(method))
    assert predicted == count(visit(method))
    adapter, head = multimodal.parameters(method.shared), 7 * multimodal.base(method.shared).width + 7
    as_they_came = 2 * adapter + head
    assert predicted.parameters == 4 * (as_they_came + as_they_came + adapter), (
        "those that train are copies, and the copy"
    )
    assert predicted.buffers == tree.nbytes(multimodal.base(method.shared).frozen)
    assert predicted.optimiser >= 4 * 2 * (adapter + head), "two moments of what one half trains"
    assert predicted.flops > 0


def test_a_whole_update_is_predicted_as_it_is_counted(method: Any) -> None:
    predicted = predict(update(method))
    assert predicted == count(update(method))
    assert predicted.bytes > tree.nbytes(multimodal.base(method.shared).frozen)
    assert profiled(update(method)) == pytest.approx(predicted.bytes, rel=0.1)


def test_prediction_leaves_the_model_as_it_was(method: Any) -> None:
    base = multimodal.base(method.shared)
    before = tree.sha256(dict(base.model.state_dict()))
    predict(update(method))
    assert tree.sha256(dict(base.model.state_dict())) == before
    assert not any(leaf.is_meta for leaf in base.frozen.values())
    rows = foundation.rows(method.shared, 2, 6)
    work = foundation.evaluation(method.shared, functools.partial(_looked, method.shared), {}, rows)
    assert predict(work) == count(work)


def _looked(spec: Spec, weights: Any, batch: Any) -> torch.Tensor:
    return multimodal.features(spec, {}, batch)
