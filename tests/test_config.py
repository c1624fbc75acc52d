"""An experiment as text: written, read back, and refused in one line where it is wrong."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike import api, config
from unalike.config import describe_parameters, flat, from_toml, read_toml, resolve, split_outside_brackets, to_toml
from unalike.errors import InputError

USERS = """
from dataclasses import dataclass
from unalike.algorithms.standalone import Standalone

@dataclass(frozen=True, kw_only=True)
class Mine(Standalone):
    strict: bool = False
    \"\"\"A switch.\"\"\"
    widths: tuple[int, ...] = (1, 2)
    rates: dict[str, float] | None = None
    note: str = ""
"""

EXPERIMENTS: list[dict[str, Any]] = [
    {},
    {"method": "fedavg", "lr": 0.1, "rounds": 3, "seed": -5, "device": "cuda:1"},
    {"method": "pfedafm", "mixing": "fixed", "alpha0": 1, "lr_theta": 1e-5, "max_shift": 0.25, "split": "7/1/2"},
    {"models": "cnn-5, cnn-4(dropout=0.2, norm=True) ,mlp-1", "model_map": "0=cnn-1,3=cnn-5(dropout=0.5, norm=True)"},
    {"models": ["cnn-5"], "model_map": {"2": "cnn-1"}, "feature_width": 64, "eval_clients": 3, "workers": 4},
    {"data": 'it\'s "data"\\new\t.csv', "label": "größe", "impute": "median", "site_column": "Ort", "engine": "serial"},
]


@pytest.fixture
def users(tmp_path: Path) -> str:
    """The name of a user's method in a file of its own."""
    (tmp_path / "mine.py").write_text(USERS)
    return f"{tmp_path / 'mine.py'}:Mine"


@pytest.mark.parametrize("keys", EXPERIMENTS)
def test_an_experiment_survives_being_flattened_and_written(keys: dict[str, Any], tmp_path: Path) -> None:
    experiment = resolve(keys)
    assert resolve(flat(experiment)) == experiment
    path = tmp_path / "experiment.toml"
    path.write_text(to_toml(flat(experiment)))
    assert from_toml(path) == experiment
    assert tomllib.loads(path.read_text())["method"] == keys.get("method", "pfedafm")


def test_what_a_run_resolved_is_resolved_already() -> None:
    """The experiment that `prepare` filled in is a fixed point."""
    prepared = api.prepare("pfedafm", data="wine", clients=3, models="mlp-5,mlp-4", min_per_client=20)
    filled = prepared.experiment
    assert None not in (filled.engine, filled.workers, filled.clients)
    assert filled.parameters["shared_model"] == "mlp-5"
    assert api.prepare(resolve(flat(filled))).experiment == filled


def test_values_are_written_as_their_types(users: str, tmp_path: Path) -> None:
    """Booleans, lists and tables of a user's method."""
    experiment = resolve({"method": users, "strict": "true", "widths": [3, 4], "rates": {"a b": 0.5}, "note": "x"})
    assert experiment.parameters["strict"] is True
    assert experiment.parameters["widths"] == (3, 4)
    text = to_toml(flat(experiment))
    assert "strict = true\n" in text
    assert "widths = [3, 4]\n" in text
    assert 'rates = {"a b" = 0.5}\n' in text
    (tmp_path / "e.toml").write_text(text)
    assert from_toml(tmp_path / "e.toml") == experiment
    assert "strict = false" in to_toml(flat(resolve({"method": users})))


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(-(2**62), 2**62),
    lr=st.floats(1e-300, 1e300),
    data=st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    models=st.lists(st.sampled_from(["cnn-1", "cnn-5(norm=True, dropout=0.2)", "a.b:c(x='y')"]), max_size=4),
)
def test_any_value_comes_back_from_toml(seed: int, lr: float, data: str, models: list[str]) -> None:
    experiment = resolve({"seed": seed, "lr": lr, "data": data, "models": models})
    assert resolve(tomllib.loads(to_toml(flat(experiment)))) == experiment


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate'"),
        ({"round": 3}, "unknown key 'round': did you mean rounds?"),
        ({"partitoin": "iid"}, "unknown key 'partitoin': did you mean partition?"),
        ({"method": "fedavg", "alpha0": 0.5}, "unknown key 'alpha0': fedavg has rounds, fraction"),
        ({"models": "cnn-5", "task": "x"}, "unknown key 'task'"),
        ({"parameters": {}}, "unknown key 'parameters'"),
        ({"lr": -1}, "lr = -1 is refused: it should be greater than 0"),
        ({"lr": 0}, "lr = 0 is refused"),
        ({"lr": "nan"}, "lr = 'nan' is refused"),
        ({"lr": "inf"}, "lr = 'inf' is refused"),
        ({"lr": "fast"}, "lr = 'fast' is refused: it should be a valid number"),
        ({"alpha0": 2}, "alpha0 = 2 is refused: it should be less than or equal to 1"),
        ({"fraction": 0}, "fraction = 0 is refused: it should be greater than 0"),
        ({"fraction": 1.5}, "fraction = 1.5 is refused"),
        ({"rounds": 0}, "rounds = 0 is refused: it should be greater than or equal to 1"),
        ({"rounds": 2.5}, "rounds = 2.5 is refused"),
        ({"mixing": "learnt"}, "mixing = 'learnt' is refused: it should be 'learned' or 'fixed'"),
        ({"engine": "ray"}, "engine = 'ray' is refused: it should be 'serial', 'processes' or 'flower'"),
        ({"eval_every": 0}, "eval_every = 0 is refused"),
        ({"clients": 0}, "clients = 0 is refused"),
        ({"workers": 1000}, "workers = 1000 is refused"),
        ({"store_budget": -1}, "store_budget = -1 is refused"),
        ({"seed": "x"}, "seed = 'x' is refused"),
        ({"split": "60/40"}, "split = '60/40' is refused: it should be three positive shares such as 60/20/20"),
        ({"split": "60/40/0"}, "split = '60/40/0' is refused: it should be three positive shares"),
        ({"split": "60/-20/60"}, "split = '60/-20/60' is refused: it should be three positive shares"),
        ({"split": "a/b/c"}, "split = 'a/b/c' is refused"),
        ({"split": "nan/1/1"}, "split = 'nan/1/1' is refused"),
        ({"split": 5}, "split = 5 is refused"),
        ({"model_map": "x=cnn-1"}, "model_map"),
        ({"method": "fedprocs"}, "unknown method 'fedprocs': it is none of pfedafm, fedavg, standalone"),
        ({"method": 3}, "method = 3 is no name"),
        ({"method": "nowhere.py:X"}, "there is no file"),
        ({"method": "json:loads"}, "json:loads is not a subclass of unalike.Algorithm"),
        ({"method": "json:nothing"}, "json has no 'nothing'"),
        ({"method": "no_such_module:X"}, "module 'no_such_module' cannot be imported"),
    ],
    ids=str,
)
def test_what_is_wrong_is_said_in_one_line(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        resolve(keys)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_shares_of_any_scale_are_normalised() -> None:
    for split in ("60/20/20", "3,1,1", [0.6, 0.2, 0.2], (6, 2, 2)):
        assert resolve({"split": split}).split == pytest.approx((0.6, 0.2, 0.2))


def test_a_path_is_its_text(tmp_path: Path) -> None:
    assert resolve({"data": tmp_path}) == resolve({"data": str(tmp_path)})


def test_commas_within_parentheses_do_not_separate() -> None:
    assert split_outside_brackets("a, b(c=1, d=(2, 3)) ,,e") == ["a", "b(c=1, d=(2, 3))", "e"]


def test_a_file_of_the_user_is_named_by_its_absolute_path(
    users: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve({"method": "mine.py:Mine"}).method == users
    assert resolve({"method": f"../{tmp_path.name}/mine.py:Mine"}).method == users


def test_a_file_of_the_user_that_fails_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(InputError, match=r"bad\.py cannot be imported: ModuleNotFoundError"):
        resolve({"method": f"{tmp_path / 'bad.py'}:X"})


def test_relative_paths_of_an_experiment_count_from_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "here"
    folder.mkdir()
    for name in ("rows.csv", "digits"):
        (folder / name).write_text("a,label\n1,2\n")
    (folder / "e.toml").write_text(
        'data = "rows.csv"\nrounds = 2\nmodels = "n.py:f(a=1, b=2),mlp-5"\nmodel_map = "0=n.py:g"'
    )
    (folder / "named.toml").write_text('data = "digits"\n')
    monkeypatch.chdir(tmp_path)
    assert read_toml(Path("here/e.toml"))["data"] == "here/rows.csv"
    assert read_toml(Path("here/e.toml"))["models"] == [f"{folder}/n.py:f(a=1, b=2)", "mlp-5"]
    assert read_toml(Path("here/e.toml"))["model_map"] == {"0": f"{folder}/n.py:g"}
    assert read_toml(Path("here/named.toml"))["data"] == "digits"
    assert from_toml(Path("here/e.toml"), {"rounds": "7"}).parameters["rounds"] == 7


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"rounds = ", "is not TOML"),
        (b"rounds = 1\nrounds = 2", "is not TOML"),
        (b"\xff\xfe", "is not TOML"),
        (b"round = 1", "unknown key 'round': did you mean rounds?"),
        (b"[parameters]\nrounds = 1", "unknown key 'parameters'"),
        (b"rounds = [1]", "rounds = [1] is refused"),
        (b"split = 'x'", "split = 'x' is refused"),
    ],
    ids=str,
)
def test_a_wrong_file_is_one_line_that_names_it(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "e.toml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        from_toml(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"there is no experiment file .*none\.toml"):
        read_toml(tmp_path / "none.toml")


def test_parameters_are_described_by_the_texts_below_them(users: str) -> None:
    rows = {name: (kind, default, text) for name, kind, default, text in describe_parameters(config.find(users))}
    assert rows["strict"] == ("bool", False, "A switch.")
    assert rows["lr"] == ("float > 0", 0.03, "η: step size of the client's model.")
    assert rows["rounds"] == ("int >= 1", 20, "How many rounds the run has.")
    assert rows["fraction"][0] == "float > 0 <= 1"
    pfedafm = {name: kind for name, kind, _, _ in describe_parameters(config.find("pfedafm"))}
    assert pfedafm["mixing"] == "learned | fixed"
    assert not {"models", "task"} & set(pfedafm)
