"""Budgets of clients: sizes, ranges and files; what is refused, and in what words."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unalike import api, config, runs
from unalike.data import fleet
from unalike.data.federation import Federation, federation
from unalike.errors import InputError
from unalike.rng import Key

MIB = 2**20
KEYS: dict[str, Any] = {"data": "wine", "clients": 4, "models": ["mlp-5"], "min_per_client": 20}
KEY = Key.root(0) / "fleet"


@pytest.mark.parametrize(
    ("text", "bytes"),
    [("2GiB", 2 * 2**30), ("600 MB", 600 * 10**6), ("1.5 kib", 1536), ("12345", 12345), (12345, 12345), ("7b", 7)],
)
def test_sizes_are_read_with_and_without_units(text: Any, bytes: int) -> None:
    assert fleet.size(text, "") == bytes
    assert fleet.budgets(str(text), 3, KEY) == (bytes,) * 3


@pytest.mark.parametrize("text", ["2XB", "", "much", "2GiB more", "-5", "1e3", "1.5", "2Gbit", None, True])
def test_what_is_no_size_is_refused_with_an_example(text: Any) -> None:
    with pytest.raises(InputError, match=re.escape(f"x: {text!r} is no size of memory: write 2GiB")):
        fleet.size(text, "x: ")


def test_a_range_gives_each_client_a_draw_of_its_own() -> None:
    few, many = (fleet.budgets("uniform:20MiB:180MiB", n, KEY) for n in (5, 400))
    assert many[:5] == few
    assert len(set(many)) > 390
    assert all(isinstance(m, int) and 20 * MIB <= m <= 180 * MIB for m in many)
    assert 90 * MIB < sum(m or 0 for m in many) / 400 < 110 * MIB
    assert fleet.budgets("uniform:20MiB:180MiB", 5, Key.root(1) / "fleet") != few
    assert fleet.budgets("uniform:3MB:3MB", 2, KEY) == (3_000_000, 3_000_000)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("f.csv", "client,memory\n0,2GiB\n2, 600 MB\n1,unlimited\n"),
        (
            "f.toml",
            '[[client]]\nmemory = "2GiB"\n[[client]]\nid=2\nmemory=600000000\n[[client]]\nid=1\nmemory="unlimited"\n',
        ),
    ],
)
def test_files_name_clients_in_any_order(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert fleet.budgets(str(tmp_path / name), 3, KEY) == (2**31, None, 600_000_000)


def test_a_toml_entry_may_stand_for_several_clients(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text('[[client]]\nmemory = "1GiB"\ncount = 3\n[[client]]\nmemory = 7\ncount = 2\n')
    assert fleet.budgets(str(tmp_path / "f.toml"), 5, KEY) == (2**30,) * 3 + (7, 7)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("f.csv", "client,memory\n0,2GiB\n0,2GiB\n", "f.csv, line 3: client 0 has a budget already"),
        ("f.csv", "client,memory\n0,2GiB\n", "f.csv has no client 1: it must have each of the clients 0 to 1"),
        ("f.csv", "client,memory\n0,1\n1,1\n5,1\n", "f.csv has client 5, but the clients are 0 to 1"),
        ("f.csv", "client,memory\n0,0\n", "line 2: a budget of 0 is no memory at all"),
        ("f.csv", "client,memory\n0,big\n", "line 2: 'big' is no size of memory"),
        ("f.csv", "client,memory\n0\n", "line 2: None is no size of memory"),
        ("f.csv", "client,memory\nx,1\n", "line 2: client = 'x' is no number of a client"),
        ("f.csv", "id,memory\n0,1\n", "has no column client: its first line must be client,memory"),
        ("f.csv", "", "has no column client"),
        ("f.csv", "client,memory\n", "has no clients"),
        ("f.toml", "client = 3", "must be a list of clients: [[client]]"),
        ("f.toml", "[[client]]\nid = 0\n", "client 1 of the list: its keys must be memory, and id or count"),
        ("f.toml", "[[client]]\nmemory = 1\nram = 2", "its keys must be memory, and id or count, not memory, ram"),
        ("f.toml", "[[client]]\nmemory = 1\nid = -1", "id = -1 is no number of a client"),
        ("f.toml", "[[client]]\nmemory = 1\ncount = 2\n[[client]]\nid=1\nmemory=1", "client 1 has a budget already"),
        ("f.toml", "[[client", "is not TOML"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_line(tmp_path: Path, name: str, text: str, said: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(said)) as error:
        fleet.budgets(str(tmp_path / name), 2, KEY)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("uniform:1GiB", "--fleet uniform:1GiB has no range: write uniform:20MiB:180MiB"),
        ("uniform:2GiB:1GiB", "begins above its end: write uniform:1GiB:2GiB"),
        ("uniform:1GiB:x", "--fleet uniform:1GiB:x: 'x' is no size"),
        ("uniform:0.12:1.07", "'0.12' is no size of memory"),
        ("0", "a budget of 0 is no memory at all"),
        ("nowhere.csv", "--fleet nowhere.csv cannot be read: No such file"),
    ],
)
def test_a_wrong_fleet_costs_one_line_and_exit_2(
    call: Callable[..., tuple[Any, str, str]], text: str, said: str
) -> None:
    code, out, error = call("run", "standalone", "--data", "wine", "--clients", "2", "--fleet", text)
    assert (code, out) == (2, "")
    assert said in error
    assert error.count("\n") == 1


# In a run


def small(**keys: Any) -> Federation:
    return federation(**{**KEYS, **keys})


def test_without_a_fleet_nobody_has_a_budget() -> None:
    assert small().budgets == (None,) * 4
    assert fleet.digest(small().budgets) == ""


def test_budgets_follow_the_seed_and_survive_saving(tmp_path: Path) -> None:
    found = small(fleet="uniform:20MiB:180MiB", seed=3)
    assert found.budgets == fleet.budgets("uniform:20MiB:180MiB", 4, Key.root(3) / "fleet")
    found.save(tmp_path)
    assert Federation.load(tmp_path).budgets == found.budgets
    assert [c["memory"] for c in found.describe()["clients"]] == list(found.budgets)


def run(tmp_path: Path, **keys: Any) -> api.Result:
    own = {"rounds": 1, "local_epochs": 1, "engine": "serial", "report": False}
    return api.run("standalone", out=tmp_path / "run", **{**KEYS, **own, **keys})


def test_an_experiment_repeats_a_file_from_wherever_it_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "devices.csv").write_text("client,memory\n0,1GiB\n1,1GiB\n2,2GiB\n3,2GiB\n")
    monkeypatch.chdir(tmp_path)
    run(tmp_path, fleet="devices.csv")
    monkeypatch.chdir("/")
    again = config.from_toml(tmp_path / "run" / runs.EXPERIMENT)
    assert again.fleet == str(tmp_path / "devices.csv")
    assert runs.load_federation(again).budgets == (2**30, 2**30, 2**31, 2**31)


def test_paths_in_an_experiment_file_count_from_its_folder(tmp_path: Path) -> None:
    (tmp_path / "e.toml").write_text('method = "standalone"\nfleet = "devices.toml"\n')
    assert config.from_toml(tmp_path / "e.toml").fleet == str(tmp_path / "devices.toml")
    (tmp_path / "e.toml").write_text('method = "standalone"\nfleet = 2147483648\n')
    assert config.from_toml(tmp_path / "e.toml").fleet == "2147483648"


def test_a_file_that_has_changed_stops_a_resumption(tmp_path: Path) -> None:
    (tmp_path / "f.toml").write_text("[[client]]\nmemory = 1000000000\ncount = 4")
    run(tmp_path, fleet=str(tmp_path / "f.toml"))
    assert runs.reopen(tmp_path / "run").federation.budgets == (10**9,) * 4
    (tmp_path / "f.toml").write_text("[[client]]\nmemory = 2000000000\ncount = 4")
    with pytest.raises(InputError, match=r"the budgets are not those .*f\.toml has changed"):
        runs.reopen(tmp_path / "run")


def test_budgets_of_a_federation_made_by_hand_are_kept_beside_the_run(tmp_path: Path) -> None:
    given = small().with_budgets((10**9, None, 2 * 10**9, None))
    api.run("standalone", given, out=tmp_path / "run", rounds=1, local_epochs=1, engine="serial", report=False)
    assert runs.reopen(tmp_path / "run").federation.budgets == given.budgets
    assert "fleet_hash" in json.loads((tmp_path / "run" / runs.MANIFEST).read_text())


def test_a_run_without_budgets_says_nothing_of_them(tmp_path: Path) -> None:
    found = run(tmp_path)
    assert "memory" not in found.summary
    assert all("memory" not in event for event in found.events())
    assert "fleet" not in (tmp_path / "run" / runs.EXPERIMENT).read_text()
