"""AllSmall and ExclusiveFL: FedAvg of what everybody holds, and of those who hold everything."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from budgets import NORM, digits, wines
from by_hand import INIT, KEY, job, prepared

from unalike import api, config, runs, tree
from unalike.data.federation import Federation
from unalike.engines.checkpoint import Checkpoints
from unalike.errors import InputError, NobodyFitsError
from unalike.memory.widths import WidthTraining
from unalike.models import narrow

QUARTER = 13 * 16 + 16 + 16 * 16 + 16 + 16 * 3 + 3
"""Weights of mlp-5 on the wines at a quarter of its width."""
KEYS: dict[str, Any] = {"rounds": 2, "local_epochs": 1, "batch_size": 16, "momentum": 0.0, "weight_decay": 0.0}


def need(found: Federation, r: float, batch_size: int = 10**6) -> int:
    """What AllSmall needs at a width."""
    plain: int = prepared("allsmall", found, batch_size=batch_size, width=r).plan()[0].need
    return plain


@pytest.fixture(scope="module")
def wine() -> Federation:
    """Four clients: no budget, the whole model, a quarter, less than anything."""
    found = wines()
    return found.with_budgets((None, need(found, 1.0), need(found, 0.25), 1))


def run(folder: Path, given: Federation, name: str, **keys: Any) -> api.Result:
    return api.run(name, given, out=folder, report=False, **{**KEYS, "engine": "serial", **keys})


def model(folder: Path) -> dict[str, Any]:
    checkpoints = Checkpoints(folder / "checkpoint")
    found: dict[str, Any] = checkpoints.server(checkpoints.read())["model"]
    return found


def test_the_width_is_settled_by_the_poorest_who_holds_any(wine: Federation) -> None:
    method = prepared("allsmall", wine)
    assert method.width == 0.25
    assert method.small.name == "mlp-5(width=0.25)"
    assert [i.id for i in method.select(method.init_server(INIT), wine.clients, 1, KEY)] == [0, 1, 2]
    assert prepared("allsmall", wine, width=0.0625).width == 0.0625
    assert prepared("allsmall", wines()).width == 1.0
    assert prepared("allsmall", wine.with_budgets((None,) * 4)).width == 1.0


def test_all_train_the_narrow_model(wine: Federation) -> None:
    method = prepared("allsmall", wine)
    it = job(method, wine, 0)
    assert tree.nbytes(it.down) == tree.nbytes(method.client_update(it).up) == 4 * QUARTER
    assert narrow.level(method.shared, it.down["model"]) == 0.25


def test_what_is_settled_stands_in_the_experiment(tmp_path: Path) -> None:
    given = digits()
    budgeted = given.with_budgets((None, need(given, 1.0, 16), need(given, 0.5, 16), need(given, 0.25, 16)))
    found = run(tmp_path / "run", budgeted, "allsmall")
    assert config.from_toml(tmp_path / "run" / "experiment.toml").parameters["width"] == 0.25
    assert runs.reopen(tmp_path / "run", budgeted.with_budgets((None,) * 4)).algorithm.width == 0.25  # type: ignore[attr-defined]
    assert found.summary["memory"]["over"] == 0
    assert 0.5 < found.summary["memory"]["largest_share"] <= 1


def test_at_a_width_allsmall_is_fedavg_of_the_narrow_model(tmp_path: Path) -> None:
    small = narrow.narrowed(digits().models[NORM], 0.5).name
    assert small == "cnn-5(norm=True, width=0.125)"
    whole, plain = (run(tmp_path / n, digits(), n) for n in ("allsmall", "fedavg"))
    assert tree.equal(model(tmp_path / "allsmall"), model(tmp_path / "fedavg"))
    assert whole.summary["accuracy"] == plain.summary["accuracy"]
    run(tmp_path / "half", digits(), "allsmall", width=0.5)
    assert narrow.level(digits().models[NORM], model(tmp_path / "half")) == 0.5


def test_exclusivefl_is_fedavg_among_those_who_hold_the_model(tmp_path: Path) -> None:
    """Bit for bit where all do; else the others never train, and are scored all the same."""
    given = digits()
    run(tmp_path / "all", given, "exclusivefl", fraction=0.5)
    run(tmp_path / "fedavg", given, "fedavg", fraction=0.5)
    assert tree.equal(model(tmp_path / "all"), model(tmp_path / "fedavg"))
    full = need(given, 1.0, 16)
    budgeted = given.with_budgets((full, full - 1, full // 2, full))
    found = run(tmp_path / "some", budgeted, "exclusivefl")
    assert [e["clients"] for e in found.events() if e["event"] == "round"] == [[0, 3]] * 2
    assert len(found.summary["accuracy"]["per_client"]) == 4
    assert found.summary["memory"]["over"] == 0
    assert found.summary["memory"]["evaluations"] == 8


def test_exclusivefl_draws_as_many_as_asked_among_those_who_fit(wine: Federation) -> None:
    with pytest.raises(
        InputError, match=r"^exclusivefl: to predict with the whole model takes .* client 3 has 0\.00 MiB"
    ):
        prepared("exclusivefl", wine)
    full, quarter = need(wine, 1.0), need(wine, 0.25)
    wine = wine.with_budgets((None, full, quarter, quarter))
    method = prepared("exclusivefl", wine, fraction=0.5)
    server = method.init_server(INIT)
    drawn = {tuple(i.id for i in method.select(server, wine.clients, 1, KEY / k)) for k in range(20)}
    assert drawn == {(0, 1)}
    one = prepared("exclusivefl", wine, fraction=0.25)
    assert {tuple(i.id for i in one.select(server, wine.clients, 1, KEY / k)) for k in range(20)} == {(0,), (1,)}


def test_nobody_who_fits_is_refused_plainly(wine: Federation) -> None:
    poor = wine.with_budgets((1, 2, need(wine, 0.25), 4))
    with pytest.raises(NobodyFitsError) as caught:
        prepared("exclusivefl", poor)
    assert "exclusivefl: no client's memory holds the whole of mlp-5: it needs" in str(caught.value)
    assert "(client 2)" in str(caught.value)
    with pytest.raises(NobodyFitsError, match=r"allsmall: no client's memory holds width 0.0625 of mlp-5"):
        prepared("allsmall", wine.with_budgets((1, 2, 3, 4)))


def test_a_comparison_goes_on_without_a_method_that_nobody_holds(
    call: Callable[..., tuple[Any, str, str]], tmp_path: Path
) -> None:
    """It has no result, and says why; only where no method has one is the comparison refused."""
    less = WidthTraining(batch_size=16).need(wines().models["mlp-5"], wines().task, 0.5)
    (tmp_path / "fleet.csv").write_text("client,memory\n" + "".join(f"{k},{less}\n" for k in range(4)))
    options = "--data wine --clients 4 --models mlp-5 --min-per-client 20 --partition iid --rounds 1 --batch-size 16 "
    options += "--engine serial --seeds 0 --fleet fleet.csv --out o --json"
    code, out, err = call("compare", "exclusivefl", "allsmall", *options.split())
    assert code == 1
    lines = {line["method"]: line for line in json.loads(out)}
    assert lines["allsmall"]["status"] == "done"
    assert (lines["exclusivefl"]["status"], lines["exclusivefl"]["mean"]) == ("failed", None)
    assert "no client's memory holds the whole of mlp-5" in lines["exclusivefl"]["reason"]
    code, out, err = call("compare", "exclusivefl", *options.replace("--out o", "--out p").split())
    assert code == 2
    assert "no client's memory holds the whole of mlp-5" in err
