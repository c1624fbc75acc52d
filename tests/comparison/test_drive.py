"""Comparisons as they are run, stopped, continued and refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from comparing import HEAD, KEYS, OPTIONS, cells, contents, finished, read, stopping_at
from unalike import api, comparison
from unalike.comparison import drive, grid
from unalike.data.federation import federation
from unalike.errors import InputError

Call: TypeAlias = Callable[..., tuple[Any, str, str]]
TUNED: dict[str, Any] = {**KEYS, "rounds": 2, "seeds": [0, 1], "tune": {"lr": [0.01, 0.3]}}
TWO = ["standalone", "fedavg"]
TIMES = ("seconds", "peak_memory_bytes")

USERS = """
from unalike.algorithms.standalone import Standalone
from unalike.errors import RunError
from unalike.rng import Key

class OnSeedOne(Standalone):
    def init_server(self, key):
        if key.digest == (Key.root(1) / "init").digest:
            raise RunError("not with this seed")
        return super().init_server(key)

class Broken(Standalone):
    def aggregate(self, server, arrivals, round, key):
        raise ZeroDivisionError("by\\nnothing")
"""


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two methods, two seeds, two trials each: ten runs, of which two are taken over."""
    folder = tmp_path_factory.mktemp("tuned") / "c"
    comparison.compare(TWO, out=folder, report=False, **TUNED)
    return folder


@pytest.fixture(autouse=True)
def _no_pages(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages take longer than runs: an empty one does, but where a test asks for `pages`."""
    if "pages" not in request.fixturenames:
        for module in (drive, grid):
            monkeypatch.setattr(module, "write_pages", lambda folder, wanted: (folder / "report.html").touch())


@pytest.fixture
def pages() -> None:
    """Real pages."""


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in lines]


# What a comparison is


def test_all_methods_of_a_seed_have_the_same_clients(tuned: Path) -> None:
    hashes = [{read(tuned / f"{m}-seed{seed}" / "summary.json")["partition_hash"] for m in TWO} for seed in (0, 1)]
    assert [len(h) for h in hashes] == [1, 1]
    assert hashes[0] != hashes[1]


def test_all_methods_have_as_many_trials_and_each_run_is_a_line(tuned: Path) -> None:
    lines = read(tuned / "compare.json")
    assert [(line["method"], line["trials"], line["status"]) for line in lines] == [(m, 2, "done") for m in TWO]
    told = [(line["method"], line["seed"], line["trial"], line["chosen"].get("lr")) for line in cells(tuned)]
    best = {line["method"]: line["chosen"]["lr"] for line in lines}
    trials = [(m, 0, i, lr) for m in TWO for i, lr in enumerate((0.01, 0.3))]
    assert told == trials + [(m, seed, None, best[m]) for seed in (0, 1) for m in TWO]


def test_the_choice_is_the_best_on_validation(tuned: Path) -> None:
    for line in read(tuned / "compare.json"):
        scores = {
            c["chosen"]["lr"]: c["summary"]["validation"]["accuracy"]["mean"]
            for c in cells(tuned)
            if c["method"] == line["method"] and c["trial"] is not None
        }
        assert line["chosen"]["lr"] == max(scores, key=lambda lr: scores[lr])
        assert len(set(scores.values())) == 2


def test_the_winning_trial_is_the_reported_run(tuned: Path, tmp_path: Path) -> None:
    """Not run again: it has begun once; and it has the bits of a run with the chosen parameter."""
    for name, line in zip(TWO, read(tuned / "compare.json"), strict=True):
        starts = [e for e in api.Result(tuned / f"{name}-seed0").events() if e["event"] == "start"]
        assert len(starts) == 1
        keys = {**KEYS, "rounds": 2, **line["chosen"], "seed": 0}
        direct = api.run(name, out=tmp_path / name, report=False, **keys).summary
        assert read(tuned / f"{name}-seed0" / "summary.json")["state_sha256"] == direct["state_sha256"]


def test_losers_keep_no_models_and_winners_do(tuned: Path) -> None:
    lost = {line["method"]: 1 - [0.01, 0.3].index(line["chosen"]["lr"]) for line in read(tuned / "compare.json")}
    assert {p.name for p in (tuned / "trials").iterdir()} == {f"{m}-{lost[m]}" for m in TWO}
    for folder in (tuned / "trials").iterdir():
        assert not (folder / "checkpoint").exists()
        assert (folder / "events.jsonl").exists()
    reported = {p.name for p in tuned.iterdir() if p.is_dir()} - {"trials"}
    assert reported == {f"{m}-seed{s}" for m in TWO for s in (0, 1)}
    assert all((tuned / name / "checkpoint").exists() for name in reported)


def test_the_choice_is_not_made_on_test(tuned: Path, tmp_path: Path) -> None:
    """The other trial gets the better validation and the worse test: it is what is reported then."""
    folder = tmp_path / "c"
    shutil.copytree(tuned, folder)
    was = read(folder / "compare.json")[0]["chosen"]["lr"]
    told = [line for line in cells(folder) if line["method"] == "standalone" and line["trial"] is not None]
    for line in told:
        other = line["chosen"]["lr"] != was
        line["summary"]["validation"]["accuracy"]["mean"] = 0.9 if other else 0.5
        line["summary"]["accuracy"]["mean"] = 0.1 if other else 1.0
    (folder / "cells.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    for path in folder.glob("*-seed*"):
        shutil.rmtree(path)
    found = comparison.resume(folder)
    assert found[0]["chosen"]["lr"] != was
    assert read(folder / "standalone-seed0" / "summary.json")["parameters"]["lr"] == found[0]["chosen"]["lr"]


@pytest.mark.usefixtures("pages")
def test_light_keeps_tables_and_curves_only(tmp_path: Path) -> None:
    lines = comparison.compare(["standalone"], out=tmp_path / "c", light=True, **{**KEYS, "seeds": [0, 1]})
    assert lines[0]["status"] == "done"
    assert not list(tmp_path.rglob("checkpoint"))
    assert not list(tmp_path.glob("c/*-seed*/report.html"))
    assert len(list(tmp_path.rglob("events.jsonl"))) == 2
    assert {p.name for p in tmp_path.glob("c/*.*")} >= {f"compare.{kind}" for kind in ("csv", "md", "tex", "json")}
    assert "<html" in (tmp_path / "c" / "report.html").read_text()


def test_clients_made_by_hand_are_those_of_every_seed(tmp_path: Path) -> None:
    """And the comparison is continued with them only."""
    made, other = (federation("wine", clients=2, models=["mlp-5"], min_per_client=20, seed=seed) for seed in (7, 8))
    keys: dict[str, Any] = {"rounds": 1, "engine": "serial", "seeds": [0, 1]}
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(["standalone"], made, out=tmp_path / "c", listeners_of=stopping_at(2), **keys)
    for wrong in (None, other):
        with pytest.raises(InputError, match="was started on a federation made in Python: give"):
            comparison.resume(tmp_path / "c", wrong)
    (line,) = comparison.resume(tmp_path / "c", made)
    assert line["status"] == "done"
    hashes = {read(p)["partition_hash"] for p in tmp_path.rglob("summary.json")}
    assert hashes == {made.partition.hash}


# What a stop does


@pytest.mark.parametrize("run", [2, 6], ids=["in a trial", "in a reported run"])
def test_a_comparison_goes_on_where_it_was_stopped(run: int, tuned: Path, tmp_path: Path) -> None:
    """Nothing that is finished is run again, not even after a line that a crash cut off; the end is the same."""
    titles: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        comparison.compare(TWO, out=tmp_path / "c", listeners_of=stopping_at(run, titles), **TUNED)
    assert len(titles) == run
    before = finished(tmp_path / "c")
    with (tmp_path / "c" / "cells.jsonl").open("a") as file:
        file.write('{"method": "standalone", "seed"')
    begun: list[str] = []
    lines = comparison.resume(tmp_path / "c", listeners_of=stopping_at(0, begun))
    after = finished(tmp_path / "c")
    assert len(before) == run - 1
    assert set(before.values()) <= set(after.values())
    assert len(begun) == 6 - run + 1
    assert begun[0].split("]")[1] == titles[-1].split("]")[1]
    assert untimed(lines) == untimed(read(tuned / "compare.json"))
    assert [{**line, **dict.fromkeys(("time", "summary"))} for line in cells(tmp_path / "c")] == [
        {**line, **dict.fromkeys(("time", "summary"))} for line in cells(tuned)
    ]
    with pytest.raises(InputError, match="is finished: there is nothing to resume"):
        comparison.resume(tmp_path / "c")


def test_a_run_whose_folder_was_deleted_is_run_anew(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(tuned, folder)
    expected = finished(folder)
    shutil.rmtree(folder / "fedavg-seed1")
    (folder / "compare.json").write_text("{")  # it is damaged, and made again
    begun: list[str] = []
    lines = comparison.resume(folder, listeners_of=stopping_at(0, begun))
    assert [title.split("]")[1] for title in begun] == [" fedavg seed 1"]
    assert untimed(lines) == untimed(read(tuned / "compare.json"))
    assert {name: found for name, found in finished(folder).items() if name != "fedavg-seed1"} == {
        name: found for name, found in expected.items() if name != "fedavg-seed1"
    }


def test_other_settings_than_those_that_were_tried_are_noticed(tuned: Path, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    shutil.copytree(tuned, folder)
    asked = read(folder / "comparison.json")
    (folder / "comparison.json").write_text(json.dumps({**asked, "tune": {"lr": [0.02, 0.3]}}))
    with pytest.raises(InputError, match=r"trials/standalone-0 was run with lr = 0.01, which is no longer"):
        comparison.resume(folder)


# A method that fails


def test_a_method_that_fails_lets_the_others_go_on(call: Call, tmp_path: Path) -> None:
    """One with one seed only, one that raises anything, and one whose numbers grow beyond all bounds."""
    (tmp_path / "users.py").write_text(USERS)
    (tmp_path / "c.toml").write_text(
        f'{HEAD}seeds = [0, 1]\n[methods.once]\nmethod = "users.py:OnSeedOne"\n[methods."bro ken"]\n'
        'method = "users.py:Broken"\n[methods.wild]\nmethod = "fedavg"\nlr = 1e30\n[methods.standalone]\n'
    )
    code, out, err = call("compare", "c.toml", "--out", "c", "--quiet")
    assert (code, out, err) == (1, "", "")
    found = {line["method"]: line for line in read(tmp_path / "c" / "compare.json")}
    assert {name: line["status"] for name, line in found.items()} == {
        **dict.fromkeys(("once", "bro ken", "wild"), "failed"),
        "standalone": "done",
    }
    assert (found["once"]["reason"], found["once"]["seeds"]) == ("not with this seed", [0])
    assert found["once"]["mean"] == found["standalone"]["means"][0]
    assert found["bro ken"]["reason"] == "ZeroDivisionError: by nothing"
    assert "lower --lr" in found["wild"]["reason"]
    assert found["wild"]["mean"] is None
    before = finished(tmp_path / "c")
    code, out, err = call("resume", "c")
    assert code == 1
    assert "once failed: not with this seed" in out
    assert "standalone seed" not in err
    assert finished(tmp_path / "c") == before
    assert len(before) == 3


def test_a_method_all_of_whose_trials_fail(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(USERS)
    methods = {"broken": {"method": f"{tmp_path}/users.py:Broken"}, "standalone": {}}
    keys = {**KEYS, "seeds": [0], "tune": "lr=0.1|0.2"}
    broken, other = comparison.compare(methods, out=tmp_path / "c", report=False, **keys)
    assert (broken["status"], other["status"]) == ("failed", "done")
    assert broken["reason"] == "every trial failed: ZeroDivisionError: by nothing"


def test_a_trial_that_fails_is_not_chosen(tmp_path: Path) -> None:
    keys = {**KEYS, "seeds": [0], "tune": "lr=1e30|0.2"}
    (line,) = comparison.compare(["standalone"], out=tmp_path / "c", report=False, **keys)
    assert (line["status"], line["chosen"], line["trials"]) == ("done", {"lr": 0.2}, 2)


# A grid


GRID = HEAD + (
    'seeds = [0]\nlight = true\nmethods = ["standalone", "fedavg"]\ntitle = "T"\n'
    '[[regimes]]\nname = "a/b: x"\nclients = 2\n'
    '[[regimes]]\nname = "a b x"\nclients = 3\n[grid]\npartition = ["iid", "dirichlet:1.0"]\n'
)
SETTINGS = [f"{name}, {p}" for name in ("a/b: x", "a b x") for p in ("iid", "dirichlet:1.0")]
FOLDERS = ["r01-a-b-x-iid", "r02-a-b-x-dirichlet-1.0", "r03-a-b-x-iid", "r04-a-b-x-dirichlet-1.0"]


@pytest.mark.usefixtures("pages")
def test_a_grid_is_a_comparison_for_each_setting(call: Call, tmp_path: Path) -> None:
    """Stopped in the third of four settings and continued; two regimes whose names differ in signs only."""
    (tmp_path / "c.toml").write_text(GRID)
    asked = comparison.from_toml(tmp_path / "c.toml", {})
    with pytest.raises(KeyboardInterrupt):
        comparison.start(asked, tmp_path / "c", listeners_of=stopping_at(6))
    grid = read(tmp_path / "c" / "grid.json")
    assert [r["status"] for r in grid["regimes"]] == ["done", "done", "running", "waiting"]
    before = finished(tmp_path / "c")
    assert len(before) == 5
    code, out, err = call("resume", "c", "--json")
    assert code == 0
    assert [line.split("]")[0] for line in err.splitlines() if "rounds" in line] == [
        f"{n}/4 {SETTINGS[n - 1]}: [{run}/2" for n, run in ((3, 2), (4, 1), (4, 2))
    ]
    lines = json.loads(out)
    assert [(line["regime"], line["method"]) for line in lines] == [(s, m) for s in SETTINGS for m in TWO]
    assert before.items() <= finished(tmp_path / "c").items()
    grid = read(tmp_path / "c" / "grid.json")
    assert grid["title"] == "T"
    assert [(r["name"], r["folder"], r["status"]) for r in grid["regimes"]] == [
        (name, folder, "done") for name, folder in zip(SETTINGS, FOLDERS, strict=True)
    ]
    assert grid["regimes"][3]["keys"] == {"clients": 3, "partition": "dirichlet:1.0"}
    for folder, setting in zip(FOLDERS, SETTINGS, strict=True):
        found = read(tmp_path / "c" / folder / "compare.json")
        assert found == [
            {k: v for k, v in line.items() if k != "regime"} for line in lines if line["regime"] == setting
        ]
        assert (tmp_path / "c" / folder / "report.html").exists()
        about = read(tmp_path / "c" / folder / "fedavg-seed0" / "summary.json")
        assert about["clients"] == (2 if folder[2] in "12" else 3)
        assert about["partition"] == setting.rpartition(", ")[2]
    assert {p.name for p in tmp_path.glob("c/*.*")} >= {"report.html", "grid.md", "grid.csv"}
    assert call("resume", "c")[0] == 2


# The command line


def test_json_is_one_document(call: Call, tmp_path: Path) -> None:
    code, out, err = call("compare", "standalone", "fedprox", *OPTIONS, "--seeds", "4", "--fedprox.mu", "0.5", "--json")
    assert code == 0
    assert json.loads(out) == read(tmp_path / "runs" / "compare" / "compare.json")
    assert len(out.splitlines()) == 1
    assert [line for line in err.splitlines() if "rounds" in line] == [
        "[1/2] standalone seed 4: 1 rounds",
        "[2/2] fedprox seed 4: 1 rounds",
    ]
    parameters = read(tmp_path / "runs/compare/fedprox-seed4/summary.json")["parameters"]
    assert parameters["mu"] == 0.5


def test_a_comparison_may_be_continued_from_anywhere(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data, method and models beside the file of the comparison."""
    here = tmp_path / "here"
    here.mkdir()
    rng = np.random.default_rng(0)
    rows = [f"{x:.3f},{y:.3f},{int(x > y)}" for x, y in rng.normal(size=(80, 2))]
    (here / "rows.csv").write_text("\n".join(["a,b,label", *rows]))
    (here / "m.py").write_text("from unalike.algorithms.standalone import Standalone\nclass M(Standalone):\n    pass\n")
    (here / "n.py").write_text(
        "from torch import nn\n\ndef net(input, classes):\n"
        "    return nn.Sequential(nn.Linear(input[0], 5), nn.ReLU(), nn.Linear(5, classes))\n"
    )
    (here / "c.toml").write_text(
        'data = "rows.csv"\nmodels = ["n.py:net"]\nclients = 2\npartition = "iid"\nengine = "serial"\nrounds = 1\n'
        'seeds = [0, 1]\nmethods = ["m.py:M"]\n'
    )
    asked = comparison.from_toml(Path("here/c.toml"), {})
    with pytest.raises(KeyboardInterrupt):
        comparison.start(asked, Path("c"), listeners_of=stopping_at(1))
    monkeypatch.chdir("/")
    assert call("resume", tmp_path / "c", "--quiet") == (0, "", "")
    assert [line["runs"] for line in read(tmp_path / "c" / "compare.json")] == [["m-seed0", "m-seed1"]]


MANY = (
    "compare standalone fedprox --data wine --clients 2 --models mlp-5 --min-per-client 20 --engine serial --rounds 1 "
)
WRONG: list[tuple[str, str]] = [
    ("compare", "there is nothing to compare: name the methods"),
    ("compare nothing", "unknown method 'nothing'"),
    ("compare fedprox fedprox", "two methods are called fedprox"),
    ("compare a.py:M b.py:M", "two methods are called m: [methods.LABEL] in a file gives each a label of its own"),
    ("compare absent.toml", "there is no experiment file absent.toml"),
    ("compare broken.toml", "broken.toml is not TOML"),
    (
        "compare late.toml --out o",
        "second: fedprox, scaffold: these methods need equal architectures, but the clients have",
    ),
    ("compare late.toml --out o", "mlp-5 (client 0), mlp-4 (client 1): give --shared-model mlp-4"),
    ("compare many.toml --out o", "second: --partition dirichlet:0.5 needs --clients"),
    ("compare value.toml --out o", "second: lr = 'fast' is refused"),
    ("compare tuned.toml --out o", "lr 1: standalone: lr is both given and tuned"),
    (
        MANY + "--models mlp-5,mlp-4",
        "fedprox: this method needs equal architectures, but the clients have mlp-5 (client 0)",
    ),
    (MANY + "--seed 1", "seed is one of --seeds 0,1,2 in a comparison"),
    (MANY + "--seeds 0,0", "--seeds 0,0 must be different whole numbers"),
    (MANY + "--seeds a", "--seeds a cannot be read: it should be whole numbers, such as 0,1,2"),
    (MANY + "--seeds 0.5", "--seeds 0.5 cannot be read"),
    (MANY + "--seeds=", "--seeds cannot be read"),
    (MANY + "--seeds 0,1,", "--seeds 0,1, cannot be read"),
    (MANY + "--target 2", "--target 2.0 is no accuracy"),
    (MANY + "--target high", "--target high cannot be read"),
    (MANY + "--target 0.5,0.6", "--target 0.5,0.6 cannot be read: give one number"),
    (MANY + "--trials 2", "--trials 2: give one or more, beside what is tuned"),
    (MANY + "--trials 1,2 --tune lr=1|2", "--trials 1,2 cannot be read: give one number"),
    (MANY + "--trials 5 --tune lr=1|2", "standalone has 2 combinations of lr for 5 trials"),
    (MANY + "--tune=", "--tune names no parameter"),
    (MANY + "--tune lr", "--tune lr cannot be read"),
    (MANY + "--tune lr=", "--tune lr has nothing to try"),
    (MANY + "--tune lr=3..1", "the first number must be the smaller one"),
    (MANY + "--tune fedprox.mu=0|1", "standalone has none of the parameters tuned, fedprox.mu"),
    (MANY + "--tune clients=2|3", "--tune clients: none of standalone, fedprox has this parameter"),
    (MANY + "--tune lr=-1|0.1", "lr = -1 is refused"),
    (MANY + "--tune lr=0.1|0.3 --lr 0.1", "standalone: lr is both given and tuned"),
    (MANY + "--tune lr=0.1|0.3 --fedprox.lr 0.1", "fedprox: lr is both given and tuned"),
    (MANY + "--reference ditto", "the reference ditto is not compared; compared are standalone, fedprox"),
    (MANY + "--round 3", "unknown key 'round': did you mean rounds?"),
    (MANY + "--methods ditto", "unknown key 'methods'"),
    (MANY + "--regimes x", "unknown key 'regimes'"),
    (MANY + "--alpha0 0.5", "unknown key 'alpha0': no method compared has it: standalone, fedprox"),
    (MANY + "--fedprox.clients 3", "fedprox: clients is the same for all methods of a comparison: give it for all"),
    (MANY + "--fedprox.alpha0 3", "fedprox: unknown key 'alpha0': it has rounds"),
    (MANY + "--fedprox.method ditto", "--fedprox.method: compare that method itself"),
    (MANY + "--ditto.lr 3", "--ditto.lr: ditto is not compared"),
    (MANY + "--mu x", "mu = 'x' is refused"),
    (MANY + "--lr", "--lr needs a value"),
    (MANY + "--preset paper", "standalone has no preset 'paper'"),
    (MANY + "--clients 9999", "9999"),
    (MANY + "--out full", "full exists already: choose another --out, or continue it with: unalike resume full"),
    (MANY + "--out late.toml", "late.toml exists already"),
    (MANY + "--seeds 0 --out late.toml/x", "late.toml/x cannot be written"),
    ("resume damaged", "damaged/comparison.json is damaged"),
]


@pytest.fixture
def place(call: Call, tmp_path: Path) -> Path:
    """The folder in which wrong things lie."""
    grid = HEAD + 'methods = ["standalone", "fedprox", "scaffold"]\nseeds = [0]\n[[regimes]]\nname = "first"\n'
    for name, second in (("late", 'models = ["mlp-5", "mlp-4"]'), ("many", "clients = 999"), ("value", 'lr = "fast"')):
        (tmp_path / f"{name}.toml").write_text(f'{grid}[[regimes]]\nname = "second"\n{second}\n')
    (tmp_path / "tuned.toml").write_text(f'{HEAD}methods = ["standalone"]\ntune = "lr=1|2"\n[grid]\nlr = [1, 2]\n')
    (tmp_path / "broken.toml").write_text("methods =\n")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "comparison.json").write_text("{")
    return tmp_path


@pytest.mark.parametrize(("line", "words"), WRONG, ids=[f"{line[-40:]} {i}" for i, (line, _) in enumerate(WRONG)])
def test_wrong_input_is_one_line_and_starts_nothing(line: str, words: str, call: Call, place: Path) -> None:
    before = contents(place)
    code, out, err = call(*line.split())
    assert (code, out) == (2, ""), err
    assert len(err.splitlines()) == 1, err
    assert err.startswith("unalike: ")
    assert words in err
    assert "internal error" not in err
    assert contents(place) == before


def test_nothing_is_started_where_a_later_setting_is_wrong(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(api, "make_engine", started)
    with pytest.raises(InputError, match="second: fedprox, scaffold: these methods need equal architectures"):
        comparison.start(comparison.from_toml(place / "late.toml", {}), place / "o")
    assert not (place / "o").exists()
