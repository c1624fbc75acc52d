"""Models scored on other clients' test rows: by hand, and what is said where that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unalike import api, local
from unalike.algorithms import build
from unalike.data.federation import Federation, federation
from unalike.engines.checkpoint import Checkpoints
from unalike.engines.scoring import mean
from unalike.engines.site import Setup, Site
from unalike.errors import InputError
from unalike.rng import Key

ASKED = "own,others,all,unseen"


@pytest.fixture(scope="module")
def table() -> Federation:
    """Three clients that take part and two that do not, on the wines, whose columns each client scales itself."""
    return federation("wine", clients=5, unseen=2, models=["mlp-5"], min_per_client=20)


@pytest.fixture(scope="module")
def ran(table: Federation, tmp_path_factory: pytest.TempPathFactory) -> api.Result:
    out = tmp_path_factory.mktemp("runs") / "run"
    return api.run("pfedafm", table, rounds=2, evaluate=ASKED, engine="serial", out=out)


def test_unseen_clients_are_the_last_ones_and_take_no_part(table: Federation, ran: api.Result) -> None:
    assert [info.id for info in table.clients] == [0, 1, 2]
    assert list(table.unseen) == [3, 4]
    assert {client for event in ran.events() for client in event.get("clients", ())} == {0, 1, 2}
    assert set(ran.summary["accuracy"]["per_client"]) == {"0", "1", "2"}


def test_scopes_are_the_clients_whose_rows_a_model_meets(table: Federation) -> None:
    found = {scope: list(table.within(scope, 1)) for scope in ("own", "others", "all", "unseen")}  # type: ignore[arg-type]
    assert found == {"own": [1], "others": [0, 2], "all": [0, 1, 2], "unseen": [3, 4]}


def test_rows_of_another_client_are_scaled_by_the_one_whose_model_meets_them(table: Federation) -> None:
    rows = table.source.x[table.rows(3, "test")]
    found = table.data(3, "test", by=0)
    np.testing.assert_array_equal(found["x"].numpy(), table.preprocess(0)(rows))
    assert not torch.equal(found["x"], table.data(3, "test")["x"])
    assert torch.equal(found["y"], table.data(3, "test")["y"])


def test_a_mean_counts_each_client_once_and_adds_up_rows() -> None:
    assert mean([{"accuracy": 0.5, "n": 10.0}, {"accuracy": 1.0, "n": 2.0}]) == {"accuracy": 0.75, "n": 12.0}


def test_scores_elsewhere_are_those_of_the_stored_model(table: Federation, ran: api.Result) -> None:
    """Client 1 at the last round, its state and the server's from the checkpoint: all four scopes by hand."""
    checkpoints = Checkpoints(ran.folder / "checkpoint")
    index = checkpoints.open()
    parameters = ran.summary["parameters"]
    method: Any = build("pfedafm", parameters, models=table.models, task=table.task)
    info = table.clients[1]
    setup = Setup("pfedafm", parameters, "", str(checkpoints.clients), Key.root(0).digest.hex())
    state = Site(setup, table).state(1, *index.state(1))
    down = method.broadcast(checkpoints.server(index), info, 2)
    ready = method.prepare(info, down, state, table.data(1, "train"), Key.root(0))

    def on(other: int) -> float:
        tally = local.tally(table.task, lambda batch: method.predict(ready, batch), table.data(other, "test", by=1))
        return table.task.scores(tally)["accuracy"]

    evaluation = [event for event in ran.events() if "evaluation" in event][-1]["evaluation"]
    for part, clients in {"test": [1], "others": [0, 2], "all": [0, 1, 2], "unseen": [3, 4]}.items():
        assert evaluation[part]["1"]["accuracy"] == pytest.approx(sum(map(on, clients)) / len(clients)), part
    assert evaluation["unseen"]["1"]["n"] == sum(len(table.rows(k, "test")) for k in (3, 4))


def test_the_summary_has_each_scope_and_the_page_tells_of_it(ran: api.Result) -> None:
    scopes = ran.summary["scopes"]
    own, others, everyone = ran.summary["accuracy"], scopes["others"]["accuracy"], scopes["all"]["accuracy"]
    assert set(scopes) == {"others", "all", "unseen"}
    assert everyone["mean"] == pytest.approx((own["mean"] + 2 * others["mean"]) / 3)
    page = (ran.folder / "report.html").read_text()
    assert "clients that took no part" in page
    assert "Against its own client’s test rows" in page


def test_processes_score_the_same(table: Federation, ran: api.Result, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"rounds": 2, "evaluate": ASKED, "engine": "processes", "workers": 2}
    again = api.run("pfedafm", table, report=False, out=tmp_path / "again", **asked)
    assert again.summary["scopes"] == ran.summary["scopes"]
    assert again.summary["state_sha256"] == ran.summary["state_sha256"]


def test_asking_changes_no_bit(table: Federation, ran: api.Result, tmp_path: Path) -> None:
    plain = api.run("pfedafm", table, rounds=2, engine="serial", report=False, out=tmp_path / "plain")
    assert plain.summary["state_sha256"] == ran.summary["state_sha256"]
    assert "scopes" not in plain.summary


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"evaluate": "own,foes"}, "one or more of own, others, all, unseen"),
        ({"evaluate": "unseen"}, "none is unseen: keep some out with --unseen 2"),
        ({"evaluate": "all", "clients": 3, "unseen": 2}, "a single client has no others"),
        ({"evaluate": "all", "engine": "flower"}, "evaluate own"),
        ({"unseen": 10}, "of 10 clients at least one must take part"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_the_run(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        api.prepare("standalone", data="wine", models=["mlp-5"], min_per_client=0, **asked)


def test_a_federation_made_by_hand_keeps_its_unseen_clients(ran: api.Result) -> None:
    again = api.prepare(api.config.from_toml(ran.folder / "experiment.toml"))
    assert list(again.federation.unseen) == [3, 4]


def test_a_modality_taken_away_is_masked_in_the_own_test_rows(pictured: Federation, tmp_path: Path) -> None:
    asked = "own,no-image,no-text"
    ran = api.run("head-only", pictured, rounds=1, evaluate=asked, engine="serial", out=tmp_path / "run")
    found = ran.summary["scopes"]
    assert found.keys() == {"no-image", "no-text"}
    own = ran.summary["accuracy"]["per_client"]
    assert found["no-image"]["accuracy"]["per_client"]["2"] == own["2"]  # which has no images
    blind, deaf = (pictured.data(0, "test", without=name) for name in ("image", "text"))
    whole = pictured.data(0, "test")
    assert not blind["pictured"].any()
    assert not blind["image"].any()
    assert torch.equal(blind["x"], whole["x"])
    assert deaf["x"].shape[1] == 1
    assert torch.equal(deaf["image"], whole["image"])


def test_only_of_questions_a_modality_can_be_taken_away(table: Federation, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="wine is a table, and has neither images nor questions"):
        api.run("fedavg", table, rounds=1, evaluate="no-image", engine="serial", out=tmp_path / "run")
