"""A comparison as it is written down."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from comparing import HEAD
from unalike.comparison import Comparison, compose, from_toml
from unalike.comparison.spec import read
from unalike.errors import InputError
from unalike.rng import Key

TWO = ["standalone", "fedprox"]


def test_a_key_is_for_all_methods_that_have_it_or_for_one() -> None:
    asked = compose(TWO, {"lr": 0.5, "mu": 2, "fedprox.local-epochs": 3, "min-per-client": 4, "seeds": "3,1"})
    assert asked.seeds == (3, 1)
    assert asked.keys("standalone") == {"method": "standalone", "lr": 0.5, "min_per_client": 4}
    assert asked.keys("fedprox") == {
        "method": "fedprox",
        "lr": 0.5,
        "mu": 2,
        "local_epochs": 3,
        "min_per_client": 4,
    }
    assert asked.keys("fedprox", {"lr": 7})["lr"] == 7
    own = compose({"a": {"method": "fedprox", "lr": 1}, "standalone": {}}, {"lr": 2})
    assert (own.keys("a")["lr"], own.keys("standalone")["lr"]) == (1, 2)
    assert own.judged == "a"


def test_forgetting_is_asked_of_methods_that_have_a_global_model() -> None:
    """Where none has one all are asked, and so refused with the reason."""
    asked = compose(["fedbn", "fedprox", "standalone"], {"forgetting": True})
    assert ["forgetting" in asked.keys(label) for label in asked.methods] == [False, True, False]
    asked = compose(["fedbn", "standalone"], {"forgetting": True})
    assert all(asked.keys(label)["forgetting"] for label in asked.methods)


def test_it_survives_being_written(tmp_path: Path) -> None:
    given = {"tune": "lr=0.1|0.3,mu=0.1..1", "trials": "2", "target": "0.5", "reference": "fedprox", "light": True}
    given |= {"models": "mlp-5,mlp-4", "fedprox.momentum": 0.5, "title": "T", "rivals": "standalone"}
    asked = compose(TWO, given)
    assert (asked.trials, asked.target, asked.reference, asked.light) == (2, 0.5, "fedprox", True)
    (tmp_path / "comparison.json").write_text(json.dumps(asked.to_json()))
    again = read(tmp_path, "comparison.json")
    assert again == asked
    assert again.points(Key.root(0)) == asked.points(Key.root(0))


METHODS = 'methods = ["standalone", "fedprox"]\n'
WRONG: list[tuple[str, str]] = [
    ("", 'methods = ["pfedafm", "standalone"], or a table [methods.NAME] for each, is missing'),
    ('methods = "standalone"', "or a table [methods.NAME] for each, is missing"),
    ("methods = [1]", "or a table [methods.NAME] for each, is missing"),
    ("[methods]\nstandalone = 3", "or a table [methods.NAME] for each, is missing"),
    ('methods = ["fedprox", "fedprox"]', "two methods are called fedprox: [methods.LABEL] in a file gives each"),
    ('methods = ["fedprocks"]', "unknown method 'fedprocks'"),
    ("[methods.mine]\nlr = 0.1", "unknown method 'mine'"),
    ('[methods."a b"]\nmethod = "fd"\n[methods."a-b"]\nmethod = "fd"', "a b, a-b would share the folder a-b-seed0"),
    ('[methods.A]\nmethod = "fd"\n[methods.a]\nmethod = "fd"', "A, a would share the folder"),
    ("[methods.fedprox]\nclients = 3", "fedprox: clients is the same for all methods of a comparison"),
    ("[methods.fedprox]\nseed = 3", "fedprox: seed is the same for all methods of a comparison"),
    ("[methods.fedprox]\nalpha0 = 3", "fedprox: unknown key 'alpha0': it has rounds"),
    (METHODS + "round = 3", "unknown key 'round': did you mean rounds?"),
    (METHODS + "alpha0 = 3", "unknown key 'alpha0': no method compared has it: standalone, fedprox"),
    (METHODS + "fedprox.mu = 3", "unknown key 'fedprox'"),
    (METHODS + '"ditto.lr" = 3', "--ditto.lr: ditto is not compared; compared are standalone, fedprox"),
    (METHODS + '"fedprox.method" = "fd"', "--fedprox.method: compare that method itself"),
    (METHODS + "seed = 3", "seed is one of --seeds 0,1,2 in a comparison"),
    (METHODS + "seeds = []", "--seeds [] cannot be read: it should be whole numbers, such as 0,1,2"),
    (METHODS + "seeds = [0, 0]", "--seeds 0,0 must be different whole numbers"),
    (METHODS + "seeds = [0.5]", "--seeds [0.5] cannot be read"),
    (METHODS + "seeds = true", "--seeds True cannot be read"),
    (METHODS + 'reference = "ditto"', "the reference ditto is not compared"),
    (METHODS + "reference = 3", "reference = 3 is refused: it should be a text"),
    (METHODS + 'rivals = ["ditto"]', "the rival ditto is not compared"),
    (METHODS + "rivals = 3", "rivals = 3 is refused: it should be a list of one or more"),
    (METHODS + "target = 1.5", "--target 1.5 is no accuracy"),
    (METHODS + "target = [0.5, 0.6]", "--target [0.5, 0.6] cannot be read: give one number"),
    (METHODS + "trials = 2", "--trials 2: give one or more, beside what is tuned"),
    (METHODS + 'tune = "lr=1|2"\ntrials = 2.5', "--trials 2.5 cannot be read: it should be whole numbers"),
    (METHODS + 'tune = "lr=1|2"\ntrials = 0', "--trials 0: give one or more"),
    (METHODS + "tune = 3", "--tune 3 cannot be read"),
    (METHODS + 'light = "no"', "light = 'no' is refused: it should be true or false"),
    (METHODS + "title = 2020-01-01", "it should be a text"),
    (METHODS + "lr = 2020-01-01", "a comparison holds numbers, texts, lists and tables only"),
    (METHODS + "regimes = 3", "settings are tables: write [[regimes]] above each, and [grid] once"),
    (METHODS + 'regimes = ["a"]', "settings are tables"),
    (METHODS + "grid = 3", "settings are tables"),
    (METHODS + "[grid]\nclients = []", "clients = [] is refused: it should be a list of one or more"),
    (METHODS + "[grid]\nclients = 3", "clients = 3 is refused: it should be a list of one or more"),
    (METHODS + "[grid]\nclients = [3, 3]", "two regimes are called '3 clients': give each a name of its own"),
    (METHODS + "[grid]\nseeds = [[0], [1]]", "unknown key 'seeds'"),
    (METHODS + "[[regimes]]\nroundz = 3", "unknown key 'roundz': did you mean rounds?"),
    (METHODS + '[[regimes]]\nname = "x"\n[[regimes]]\nname = "x"', "two regimes are called 'x'"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text for text, _ in WRONG])
def test_what_is_wrong_in_a_file_is_one_line_that_names_it(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        from_toml(path, {})
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"lr": 0.5, "tune": "lr=0.1|0.3"}, "standalone: lr is both given and tuned: leave out one of them"),
        ({"fedprox.lr": 0.5, "tune": "lr=0.1|0.3"}, "fedprox: lr is both given and tuned"),
    ],
)
def test_what_is_tuned_is_not_given_too(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        compose(TWO, given).points(Key.root(0))


def test_what_is_given_for_all_may_be_tuned_for_one() -> None:
    asked = compose(["fedprox"], {"lr": 0.5, "tune": "fedprox.lr=0.1|0.3"})
    assert [asked.keys("fedprox", point)["lr"] for point in asked.points(Key.root(0))["fedprox"]] == [0.1, 0.3]


def test_a_grid_multiplies_every_regime(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        f"{HEAD}{METHODS}"
        '[[regimes]]\nname = "few"\nclients = 2\n[[regimes]]\nname = "many"\nclients = 3\nlr = 0.5\n'
        '[grid]\npartition = ["iid", "dirichlet:0.5"]\nrounds = [1, 2]\n'
    )
    asked = from_toml(path, {"local_epochs": "9"})
    settings = [f"{p}, {r} rounds" for p in ("iid", "dirichlet:0.5") for r in (1, 2)]
    assert [r.name for r in asked.regimes] == [f"{name}, {s}" for name in ("few", "many") for s in settings]
    last = asked.within(asked.regimes[-1])
    own = {"clients": 3, "lr": 0.5, "partition": "dirichlet:0.5", "rounds": 2}
    assert last.keys("fedprox") == {**asked.keys("fedprox"), **own}
    assert (last.regimes, last.title) == ((), "many, dirichlet:0.5, 2 rounds")


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("rounds", "--rounds has no effect: the file's regimes say what it is"),
        ("clients", "--clients has no effect: the file's regimes say what it is"),
        ("lr", "--lr has no effect on standalone, for which the file has its own: --standalone.lr"),
    ],
)
def test_options_that_the_file_would_go_before_are_refused(key: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        "[methods]\nfedavg = {}\nstandalone = { lr = 0.1 }\n[[regimes]]\nclients = 2\n[grid]\nrounds = [1]\n"
    )
    with pytest.raises(InputError, match=words):
        from_toml(path, {key: "3"})
    assert from_toml(path, {"standalone.lr": "0.5"}).methods["standalone"]["lr"] == "0.5"


def test_settings_without_a_name_are_called_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(METHODS + '[[regimes]]\ndata = "digits"\nlr = 0.5\n[[regimes]]\ndata = "wine"\n')
    assert [r.name for r in from_toml(path, {}).regimes] == ["digits, lr 0.5", "wine"]
    path.write_text(METHODS + "[grid]\nclients = [2, 3]\n")
    assert [r.name for r in from_toml(path, {}).regimes] == ["2 clients", "3 clients"]


def test_paths_in_a_file_count_from_its_folder_and_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    for name in ("a.csv", "b.csv", "c.csv"):
        (here / name).write_text("x,label\n1,2\n")
    (here / "m.py").write_text("from unalike.algorithms.standalone import Standalone as Mine\n")
    (here / "c.toml").write_text(
        'data = "a.csv"\nmodels = "n.py:f,mlp-5"\n[methods.mine]\nmethod = "m.py:Mine"\nshared_model = "n.py:g"\n'
        '[[regimes]]\ndata = "b.csv"\n[[regimes]]\nmodels = ["n.py:h"]\n[grid]\ndata_path = ["c.csv"]\n'
    )
    monkeypatch.chdir(tmp_path)
    asked = from_toml(Path("here/c.toml"), {})
    assert asked.common == {"data": f"{here}/a.csv", "models": [f"{here}/n.py:f", "mlp-5"]}
    assert asked.methods["mine"] == {"method": f"{here}/m.py:Mine", "shared_model": f"{here}/n.py:g"}
    first, second = asked.regimes
    assert first.keys == {"data": f"{here}/b.csv", "data_path": f"{here}/c.csv"}
    assert first.name == "b.csv, data_path c.csv"
    assert second.keys["models"] == [f"{here}/n.py:h"]


def test_paths_that_are_typed_count_from_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.csv").write_text("x,label\n1,2\n")
    (tmp_path / "m.py").write_text("from unalike.algorithms.standalone import Standalone as Mine\n")
    monkeypatch.chdir(tmp_path)
    asked = compose(["m.py:Mine"], {"data": "rows.csv", "model_map": "1=n.py:f", "partition": "file:p.npz"})
    assert asked.methods == {"mine": {"method": f"{tmp_path}/m.py:Mine"}}
    assert asked.common == {
        "data": f"{tmp_path}/rows.csv",
        "model_map": {"1": f"{tmp_path}/n.py:f"},
        "partition": f"file:{tmp_path}/p.npz",
    }


@pytest.mark.parametrize("content", ["", "[]", "{}", "3", "null", "\0", '{"regimes": [3]}', '{"regimes": []}'])
def test_a_damaged_comparison_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "comparison.json").write_text(content)
    with pytest.raises(InputError, match=r"comparison\.json is damaged"):
        read(tmp_path, "comparison.json")


@pytest.mark.parametrize(
    "change",
    [
        *({"seeds": wrong} for wrong in (["a"], [0.5], 3)),
        *({"methods": wrong} for wrong in (3, {"a": 3}, {"a": {}})),
        *({key: 3} for key in ("common", "reference", "regimes", "sedes")),
        *({key: "x"} for key in ("target", "trials")),
    ],
    ids=str,
)
def test_a_changed_comparison_is_named(change: dict[str, Any], tmp_path: Path) -> None:
    whole = json.loads(json.dumps(Comparison(methods={"fd": {"method": "fd"}}).to_json()))
    (tmp_path / "comparison.json").write_text(json.dumps({**whole, **change}))
    with pytest.raises(InputError, match=r"comparison\.json is damaged"):
        read(tmp_path, "comparison.json")
