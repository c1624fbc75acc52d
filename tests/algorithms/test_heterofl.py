"""HeteroFL, equation by equation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from budgets import NORM, digits, needs, wines
from by_hand import INIT, KEY, arrivals, constant, is_all, job, outputs, prepared

from unalike import api, models, personal, runs, tree
from unalike.algorithms.heterofl import HeteroFL
from unalike.data.federation import Federation
from unalike.engines.checkpoint import Checkpoints
from unalike.errors import InputError, NobodyFitsError
from unalike.memory import widths
from unalike.models import narrow
from unalike.models.narrow import narrowed
from unalike.models.statistics import recomputed
from unalike.protocol import Job
from unalike.rng import Key

FULL = 13 * 64 + 64 + 64 * 64 + 64 + 64 * 3 + 3
QUARTER = 13 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
"""Weights of mlp-5 on the wines, and at a quarter of its width."""


@pytest.fixture(scope="module")
def wine() -> Federation:
    """Four clients: no budget, the whole model, a quarter, less than anything."""
    found = wines()
    plain = prepared("heterofl", found)
    return found.with_budgets((*needs(plain, None, 0, 2), 1))


@pytest.fixture(scope="module")
def method(wine: Federation) -> HeteroFL:
    found = prepared("heterofl", wine)
    assert isinstance(found, HeteroFL)
    return found


def test_budgets_decide_who_trains_how_much(method: HeteroFL, wine: Federation) -> None:
    assert [method.width(info) for info in wine.clients] == [1, 1, 0.25, None]
    chosen = method.select(method.init_server(INIT), wine.clients, 1, KEY)
    assert [info.id for info in chosen] == [0, 1, 2]


def test_a_client_gets_the_first_channels_and_sends_no_more(method: HeteroFL, wine: Federation) -> None:
    """W[1/4]: 16 of 64 at both sides of the layers between; and, up, three labels of 8 bytes."""
    server = method.init_server(INIT)
    whole, it = server["model"], job(method, wine, 2)
    model = it.down["model"]
    assert model["extractor"]["1.weight"].equal(whole["extractor"]["1.weight"][:16])
    assert model["extractor"]["3.weight"].equal(whole["extractor"]["3.weight"][:16, :16])
    assert model["header"]["weight"].equal(whole["header"]["weight"][:, :16])
    assert model["header"]["bias"].equal(whole["header"]["bias"])
    update = method.client_update(it)
    assert (tree.nbytes(it.down), tree.nbytes(update.up)) == (4 * QUARTER, 4 * QUARTER + 3 * 8)
    assert tree.nbytes(job(method, wine, 1).down) == 4 * FULL
    assert update.weight == wine.clients[2].n


def test_the_mean_over_holders(method: HeteroFL, wine: Federation) -> None:
    """1 with weight 3 everywhere, 5 with weight 1 on the quarter: there 2, else 1; with none of the first W stays."""
    server, labels = method.init_server(INIT), {"labels": torch.arange(3)}
    quarter = {"model": constant(job(method, wine, 2).down["model"], 5.0), **labels}
    full = {"model": constant(server["model"], 1.0), **labels}
    nobody = {"model": constant(server["model"], 0.0), **labels}
    after = method.aggregate(server, arrivals(wine, (full, 3.0), (nobody, 0.0), (quarter, 1.0)), 1, KEY)
    weight = after["model"]["extractor"]["3.weight"]
    expected = torch.ones(64, 64)
    expected[:16, :16] = 2.0
    assert weight.equal(expected)
    assert is_all({"b": after["model"]["header"]["bias"]}, 2.0)
    alone = method.aggregate(server, [arrivals(wine, (full, 1.0), (full, 1.0), (quarter, 1.0))[2]], 1, KEY)
    kept = alone["model"]["extractor"]["3.weight"]
    assert is_all({"w": kept[:16, :16]}, 5.0)
    assert kept[16:].equal(server["model"]["extractor"]["3.weight"][16:])
    assert kept[:16, 16:].equal(server["model"]["extractor"]["3.weight"][:16, 16:])


def test_rows_of_the_last_layer_count_for_the_labels_that_a_client_has(method: HeteroFL, wine: Federation) -> None:
    server = method.init_server(INIT)
    model = {k: constant(branch, 5.0) for k, branch in server["model"].items()}
    header = {name: leaf[[0, 2]] for name, leaf in model["header"].items()}
    up = {"model": {**model, "header": header}, "labels": torch.tensor([0, 2])}
    other = {"model": constant(server["model"], 1.0), "labels": torch.arange(3)}
    after = method.aggregate(server, arrivals(wine, (up, 1.0), (other, 1.0)), 1, KEY)["model"]
    assert after["header"]["bias"].tolist() == [3.0, 1.0, 3.0]
    assert after["header"]["weight"][:, 5].tolist() == [3.0, 1.0, 3.0]
    assert is_all(after["extractor"], 3.0)


def test_a_client_predicts_with_the_global_model_if_it_can_evaluate_it(method: HeteroFL, wine: Federation) -> None:
    """Clients 0 to 2; the last one's memory holds nothing, and it gets the narrowest."""
    server = {**method.init_server(INIT), "rounds": torch.tensor(4), "widest": torch.tensor(1.0)}
    for client in (0, 1, 2):
        assert tree.equal(method.broadcast(server, wine.clients[client], 4)["wide"], server["model"])
    least = method.broadcast(server, wine.clients[3], 4)["wide"]
    assert narrow.level(method.shared, least) == 1 / 16
    it = job(method, wine, 2)
    down = method.broadcast(server, it.info, 4)
    expected = models.logits(method.shared, server["model"], it.data["x"][:4])
    assert torch.allclose(outputs(method, it, {}, down), expected, atol=1e-6)
    assert "model" in method.broadcast(server, it.info, 5)


def test_what_nobody_has_trained_predicts_nothing(method: HeteroFL, wine: Federation) -> None:
    """With a quarter trained, the one and the half beyond it have their first weights; a whole client changes that."""
    server, labels = method.init_server(INIT), {"labels": torch.arange(3)}
    quarter = {"model": job(method, wine, 2).down["model"], **labels}
    full = {"model": server["model"], **labels}
    sent = arrivals(wine, (full, 1.0), (full, 1.0), (quarter, 1.0))
    first = method.aggregate(server, sent[2:], 1, KEY)
    widths_sent = [narrow.level(method.shared, method.broadcast(first, i, 1)["wide"]) for i in wine.clients]
    assert widths_sent == [0.25, 0.25, 0.25, 0.0625]
    second = method.aggregate(first, sent[:1], 2, KEY)
    third = method.aggregate(second, sent[2:], 3, KEY)
    assert narrow.level(method.shared, method.broadcast(third, wine.clients[2], 3)["wide"]) == 1


def test_nobody_who_holds_the_narrowest_is_refused(wine: Federation) -> None:
    with pytest.raises(NobodyFitsError, match=r"heterofl: no client's memory holds width 1/16 of mlp-5: it needs 134"):
        prepared("heterofl", wine.with_budgets((1, 2, 3, 4)))


def test_models_without_widths_or_with_attention_are_refused_where_someone_must_be_narrow(wine: Federation) -> None:
    with pytest.raises(InputError, match="heterofl trains the first of the channels"):
        prepared("heterofl", digits().with_budgets((None, 1, 1, 1)), shared_model="vit-tiny(width=0.1, depth=1)")


def run(folder: Path, given: Federation, name: str = "heterofl", **keys: Any) -> api.Result:
    plain = {"rounds": 3, "local_epochs": 1, "engine": "serial", "fraction": 0.5}
    return api.run(name, given, out=folder, report=False, **{**plain, **keys})


def last_model(folder: Path) -> dict[str, Any]:
    checkpoints = Checkpoints(folder / "checkpoint")
    model: dict[str, Any] = checkpoints.server(checkpoints.read())["model"]
    return model


def test_with_all_clients_whole_and_no_extras_it_is_fedavg_bit_for_bit(tmp_path: Path) -> None:
    given = digits()
    found = run(tmp_path / "h", given, scaler=False, masked=False, bn="tracked")
    plain = run(tmp_path / "f", given, "fedavg")
    assert tree.equal(last_model(tmp_path / "h"), last_model(tmp_path / "f"))
    a, b = found.summary, plain.summary
    assert a["accuracy"] == b["accuracy"]
    assert a["bytes"] == b["bytes"]
    assert a["flops"] == b["flops"]


def test_the_last_round_measures_statistics_and_trains_nothing(tmp_path: Path) -> None:
    """W's are Σ n_k s_k / Σ n_k of what the clients compute on their own rows; predictions then use them."""
    given, folder = digits(), tmp_path / "run"
    run(folder, given, rounds=2, fraction=1.0)
    prepared_run = runs.reopen(folder)
    method, checkpoints = prepared_run.algorithm, Checkpoints(folder / "checkpoint")
    first, last = (checkpoints.server(checkpoints.read(round)) for round in (1, 2))
    assert tree.equal(first["model"], last["model"])
    assert set(first) == {"model", "rounds", "widest"}
    whole, found, n = widths.complete(method.shared, last["model"]), [], [info.n for info in given.clients]
    for info in given.clients:
        key = Key.root(0) / "round" / 2 / "client" / info.id
        found.append(method.measured(method.shared, info, last["model"], given.data(info.id, "train"), key))
    name = "~2.running_mean"
    mean = sum(k * s["extractor"][name].double() for k, s in zip(n, found, strict=True)) / sum(n)
    assert torch.allclose(last["statistics"]["1.0"]["extractor"][name].double(), mean, atol=1e-7)
    info, data = given.clients[0], given.data(0, "train")
    down = method.broadcast(last, info, 2)
    merged = tree.merge(whole, last["statistics"]["1.0"])
    predicted = method.predict(method.prepare(info, down, {}, data, KEY), {"x": data["x"][:4]})
    assert torch.allclose(predicted, models.logits(method.shared, merged, data["x"][:4]), atol=1e-6)
    before = method.prepare(info, method.broadcast(first, info, 1), {}, data, KEY)["down"]["wide"]
    own = recomputed(method.shared, whole, [data["x"]], KEY)
    close = torch.isclose(before["extractor"][name], own["extractor"][name], rtol=0.5, atol=0.2)
    assert bool(close.all())


def test_a_run_stays_within_all_budgets_and_counts_the_work_of_each_width(tmp_path: Path) -> None:
    given = digits()
    plain = api.prepare("heterofl", given, batch_size=16).algorithm
    budgeted = given.with_budgets((*needs(plain, None, 0, 2), 1 + (needs(plain, 3)[0] or 0)))
    found = run(tmp_path / "run", budgeted, batch_size=16, fraction=1.0)
    assert found.summary["memory"]["over"] == 0
    assert 0.5 < found.summary["memory"]["largest_share"] <= 1
    rounds = [event for event in found.events() if event["event"] == "round"]
    assert [event["clients"] for event in rounds] == [[0, 1, 2, 3]] * 3
    one = runs.reopen(tmp_path / "run").algorithm
    stages = {stage.name: stage for stage in one.plan()}
    trains = [stages[f"width {r}"] for r in ("1", "1", "1/4", "1/8")]
    assert rounds[0]["bytes_down"] == sum(stage.down for stage in trains)
    assert rounds[0]["flops"] == pytest.approx(
        sum(stage.flops * info.n for stage, info in zip(trains, given.clients, strict=True)), rel=0.02
    )
    assert rounds[2]["flops"] < rounds[0]["flops"]


@pytest.mark.parametrize("last", [False, True])
def test_an_exported_model_scores_what_was_reported(tmp_path: Path, last: bool) -> None:
    """Before the last round too, when the statistics are the client's own."""
    given = digits()
    run(tmp_path / "run", given, rounds=2, local_epochs=3)
    if not last:
        for path in (tmp_path / "run").glob("checkpoint/round-*.json"):
            path.write_text(path.read_text().replace('"best_round": 2', '"best_round": 1'))
    model = personal.load(personal.extract(tmp_path / "run", 1, last).save(tmp_path / "one.safetensors"))
    assert model.round == (2 if last else 1)
    rows = given.rows(1, "test")
    accuracy = float((model.predict(given.source.x[rows]).argmax(1) == given.source.y[rows]).mean())
    events = [e for e in api.Result(tmp_path / "run").events() if e["event"] == "round"]
    assert accuracy == events[model.round - 1]["evaluation"]["test"]["1"]["accuracy"]
    method, checkpoints = runs.reopen(tmp_path / "run").algorithm, Checkpoints(tmp_path / "run" / "checkpoint")
    down = method.broadcast(checkpoints.server(checkpoints.read(model.round)), given.clients[1], model.round)
    key = Key.root(0) / "round" / model.round / "evaluate" / 1
    scored = method.prepare(given.clients[1], down, {}, given.data(1, "train"), key)
    expected = method.predict(scored, given.data(1, "test"))
    assert torch.allclose(model.logits(given.source.x[rows]), expected, atol=1e-6)


def test_a_message_of_training_is_no_message_of_measuring(method: HeteroFL, wine: Federation) -> None:
    """Models without BatchNorm have nothing to measure: they train in the last round too."""
    assert not method.measures(method.shared, method.rounds, method.rounds)
    normed = prepared("heterofl", digits(), rounds=3)
    assert [normed.measures(normed.shared, round, 3) for round in (1, 2, 3)] == [False, False, True]
    assert not normed.measures(normed.shared, 1, 1)
    it = job(normed, digits(), 0)
    wide = normed.broadcast(normed.init_server(INIT), it.info, 3)
    measured = normed.client_update(Job(it.info, 3, wide, {}, it.data, KEY))
    assert set(measured.up) == {"statistics"}
    assert set(tree.flatten(measured.up["statistics"])) == widths.statistics(normed.shared)
    assert NORM in normed.shared.name
    assert narrowed(normed.shared, 0.5).name == "cnn-5(norm=True, width=0.125)"
