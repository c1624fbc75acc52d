"""Visits of narrower copies: needs, widths by budget, what is sent, statistics."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch

from unalike import local, models, tree
from unalike.engines.budget import Watch
from unalike.memory import widths
from unalike.memory.widths import WidthTraining
from unalike.models import narrow
from unalike.models.narrow import LEVELS, narrowed
from unalike.models.statistics import recomputed
from unalike.protocol import ClientInfo, Job, Spec
from unalike.rng import Key
from unalike.tasks import Classification

CNN, MLP = Spec("cnn-5(norm=True, width=0.25)", (1, 8, 8), 10), Spec("mlp-5", (4,), 3)
TEN, THREE = Classification(10), Classification(3)
KEY = Key.root(0)
VISIT = WidthTraining(local_epochs=1, batch_size=20)


def rows(spec: Spec, n: int, labels: tuple[int, ...]) -> dict[str, torch.Tensor]:
    y = torch.tensor(labels).repeat(n)[:n]
    return {"x": torch.randn(n, *spec.input, generator=KEY.torch()), "y": y}


def client(memory: int | None, id: int = 0) -> ClientInfo:
    return ClientInfo(id, "model", 40, memory)


def test_a_budget_decides_the_width() -> None:
    needs = [VISIT.need(CNN, TEN, r) for r in LEVELS]
    assert needs == sorted(needs, reverse=True)
    for r, need in zip(LEVELS, needs, strict=True):
        assert VISIT.trains(CNN, TEN, client(need)) == r
    assert VISIT.trains(CNN, TEN, client(needs[1] - 1)) == 0.25
    assert VISIT.trains(CNN, TEN, client(needs[-1] - 1)) is None
    assert VISIT.trains(CNN, TEN, client(None)) == 1


def test_a_client_predicts_with_the_widest_it_can_evaluate() -> None:
    """Which takes less than training it, so every client predicts with a width at least as large."""
    whole = widths._evaluation(CNN, 1.0, 8, True)
    assert whole < VISIT.need(CNN, TEN, 1.0)
    assert VISIT.predicts(CNN, client(whole)) == 1
    assert VISIT.predicts(CNN, client(whole - 1)) == 0.5
    assert VISIT.predicts(CNN, client(1)) == LEVELS[-1]
    assert VISIT.predicts(CNN, client(None)) == 1
    assert widths._evaluation(CNN, 1.0, 8, True) > widths._evaluation(CNN, 1.0, 8, False)


@pytest.mark.parametrize("r", [1.0, 0.25])
@pytest.mark.parametrize("scaler", [True, False])
def test_a_visit_takes_what_was_predicted(r: float, scaler: bool) -> None:
    visit = dataclasses.replace(VISIT, scaler=scaler)
    model = visit.part(CNN, visit.weights(CNN, models.initial(CNN, KEY)), r)
    data = rows(CNN, 40, (1, 4, 7))
    job: Job[Any, Any] = Job(client(2**30), 1, {"model": model}, {}, data, KEY)
    watch = Watch(job)
    with watch.over("training"):
        visit.visit(CNN, TEN, model, data, KEY)
    predicted = visit.need(CNN, TEN, r)
    assert 0.85 * predicted < watch.bytes <= predicted


def test_measuring_takes_no_more_than_evaluation_was_predicted_to() -> None:
    model, data = VISIT.weights(CNN, models.initial(CNN, KEY)), rows(CNN, 40, (1, 4))
    need = widths._evaluation(CNN, 1.0, 8, True)
    job: Job[Any, Any] = Job(client(need), 1, {"wide": model}, {}, data, KEY)
    watch = Watch(job)
    with watch.over("evaluation"):
        VISIT.measured(CNN, job.info, model, data, KEY)
    assert watch.bytes <= need


def test_a_visit_is_sgd_on_the_scaled_and_masked_loss() -> None:
    """One batch: w ← w − η ∇L(w), L with the scaler 1 / r and without the classes that have no rows."""
    one = dataclasses.replace(VISIT, batch_size=100, momentum=0.0, weight_decay=0.0, lr=0.1)
    data, small = rows(MLP, 30, (0, 2)), narrowed(MLP, 0.25)
    model = one.part(MLP, models.initial(MLP, KEY), 0.25)
    tuned, labels, mean = one.visit(MLP, THREE, model, data, KEY)
    assert labels.tolist() == [0, 2]
    params = tree.map_leaves(lambda leaf: leaf.clone().requires_grad_(), model)
    loss = narrow.loss(small, THREE, 4.0, {"model": params}, {"absent": torch.tensor([False, True, False])}, data)
    leaves = tree.flatten(params)
    assert mean == pytest.approx(float(loss.detach()), rel=1e-5)
    for (name, leaf), gradient in zip(leaves.items(), torch.autograd.grad(loss, list(leaves.values())), strict=True):
        assert torch.allclose(tree.flatten(tuned)[name], leaf - 0.1 * gradient, atol=1e-6), name
    plain = dataclasses.replace(one, scaler=False, masked=False).visit(MLP, THREE, model, data, KEY)
    expected = models.supervised_loss(small, THREE, {"model": model}, {}, data)
    assert plain[2] == pytest.approx(float(expected), rel=1e-5)
    assert plain[2] != pytest.approx(mean, rel=1e-3)


def test_what_is_sent_and_where_it_belongs() -> None:
    """Of the header the rows of the client's labels; everything else whole. `holds` puts them there again."""
    tuned, labels = VISIT.part(MLP, models.initial(MLP, KEY), 0.5, 3), torch.tensor([0, 2])
    up = VISIT.sent(MLP, tuned, labels)
    assert up["model"]["header"]["weight"].equal(tuned["header"]["weight"][[0, 2]])
    assert up["model"]["header"]["bias"].equal(tuned["header"]["bias"][[0, 2]])
    assert up["model"]["extractor"]["3.weight"].equal(tuned["extractor"]["3.weight"])
    held = VISIT.holds(MLP, 0.5, 3, up)
    assert [p.tolist() for p in held["header/weight"]] == [[0, 2], list(range(3, 35))]
    assert [p.tolist() for p in held["header/bias"]] == [[0, 2]]
    whole = VISIT.holds(MLP, 1.0, 3, up)
    assert [p.tolist() for p in whole["header/weight"]] == [[0, 2], list(range(64))]
    assert whole["extractor/3.weight"] == ()
    plain = dataclasses.replace(VISIT, masked=False)
    assert set(plain.sent(MLP, tuned, labels)) == {"model"}
    assert plain.holds(MLP, 1.0, 3, {})["header/weight"] == ()


def test_static_statistics_do_not_travel_in_training() -> None:
    names = widths.statistics(CNN)
    assert all(name.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for name in names)
    assert len(names) == 3 * 2
    model = models.initial(CNN, KEY)
    assert set(tree.flatten(VISIT.weights(CNN, model))) == set(tree.flatten(model)) - names
    assert not set(VISIT.holds(CNN, 0.5, 0, {"labels": torch.arange(10)})) & names
    tracked = dataclasses.replace(VISIT, bn="tracked")
    assert tree.equal(tracked.weights(CNN, model), model)
    assert set(tracked.holds(CNN, 0.5, 0, {"labels": torch.arange(10)})) >= names


def test_the_statistics_of_a_client_are_those_of_its_rows() -> None:
    model, data = VISIT.weights(CNN, models.initial(CNN, KEY)), rows(CNN, 40, (1, 4))
    order = local.batches(data, 20, 1, KEY / "order")
    expected = recomputed(CNN, models.initial(CNN, KEY), (b["x"] for b in order), KEY / "noise")
    assert tree.equal(VISIT.measured(CNN, client(None), model, data, KEY), expected)
    few = VISIT.measured(CNN, client(widths._evaluation(CNN, 1.0, 8, True)), model, data, KEY)  # 8 rows at once
    assert not tree.equal(few, expected)


def test_the_mean_of_statistics_is_taken_for_each_width_that_predicts() -> None:
    """(1 · 2 + 3 · 6) / 4 = 5 among those with the whole; the poor client's own beside it."""
    from unalike.protocol import Arrival

    poor = widths._evaluation(CNN, 1.0, 8, True) - 1
    told = [(client(None, 0), 2.0, 1.0), (client(None, 1), 6.0, 3.0), (client(poor, 2), 8.0, 2.0)]
    arrivals = [Arrival(i, {"statistics": {"m": torch.tensor([value])}}, n, {}) for i, value, n in told]
    found = VISIT.averaged(arrivals, functools.partial(VISIT.predicts, CNN))
    assert {r: leaf["m"].item() for r, leaf in found.items()} == {"1.0": 5.0, "0.5": 8.0}


def test_a_client_predicts_with_the_statistics_it_was_sent_else_with_its_own() -> None:
    model, data, info = VISIT.weights(CNN, models.initial(CNN, KEY)), rows(CNN, 40, (1, 4)), client(None)
    own = VISIT.ready(CNN, info, {"model": model}, data, KEY)["down"]["wide"]
    assert tree.equal(own, VISIT.measured(CNN, info, model, data, KEY))
    sent = widths.statistics_of(CNN, own)
    given = VISIT.ready(CNN, info, {"wide": model, "statistics": sent}, rows(CNN, 40, (3,)), KEY)
    assert tree.equal(given["down"]["wide"], own)
    nothing = {name: leaf[:0] for name, leaf in data.items()}
    assert tree.equal(VISIT.ready(CNN, info, given["down"], nothing, KEY)["down"]["wide"], own)
    tracked = dataclasses.replace(VISIT, bn="tracked").ready(CNN, info, {"model": own}, data, KEY)
    assert tree.equal(tracked["down"]["wide"], own)


def test_a_prediction_within_a_watch_is_not_counted() -> None:
    """A worker that has predicted and built nothing yet counts as much as one that has."""
    model, data, info = VISIT.weights(CNN, models.initial(CNN, KEY)), rows(CNN, 40, (1, 4)), client(2**30)
    job: Job[Any, Any] = Job(info, 1, {"wide": model}, {}, data, KEY)
    found = []
    for _ in range(2):
        watch = Watch(job)
        with watch.over("evaluation"):
            VISIT.outputs(VISIT.ready(CNN, info, job.down, data, KEY), data["x"])
        found.append(watch.bytes)
        for cached in (widths._evaluation, models._initial, models._skeletons, narrow.shapes):
            cached.cache_clear()
    assert found[0] == found[1]
