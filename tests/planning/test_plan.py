"""`unalike plan`: who takes part in what, by hand; what --json prints; what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from unalike.data import fleet
from unalike.memory import needs
from unalike.memory.plan import Plan, Stage, Visits
from unalike.protocol import Spec
from unalike.report import plan as report
from unalike.rng import Key

Call = Callable[..., tuple[Any, str, str]]
HERE = Path(__file__).parent / "blockwise.py"
BLOCKS, LEVELS = f"{HERE}:Blockwise", f"{HERE}:Levels"
MODEL = ("--model", "resnet18(width=0.0625)", "--input", "3x16x16", "--batch-size", "8")


def stage(name: str, need: int, turn: int = 0, **more: Any) -> Stage:
    return Stage(name=name, need=need, turn=turn, **{"down": 10, "up": 5, "flops": 2.0, **more})


def plan(stages: list[Stage], budgets: dict[int, int | None], fraction: float = 0.5, full: int = 100) -> Plan:
    return Plan(
        method="m",
        spec=Spec("net", (3, 8, 8), 10),
        parameters={},
        full=full,
        stages=tuple(stages),
        fleet="a.csv" if budgets else None,
        budgets=budgets,
        visits=Visits(batch_size=4, rounds=6, fraction=fraction, clients=len(budgets) or 4, rows=100.0, epochs=3),
    )


def test_alternatives_are_taken_best_first_and_turns_one_after_the_other() -> None:
    found = plan([stage("full", 100), stage("half", 40), stage("later", 60, turn=1)], {0: 100, 1: 99, 2: 40, 3: 39})
    done = {budget: [s.name for s in found.does(budget)] for budget in (None, 100, 99, 40, 39)}
    assert done[None] == done[100] == ["full", "later"]
    assert (done[99], done[40], done[39]) == (["half", "later"], ["half"], [])


def test_eligibility_and_participation_are_shares_of_all_clients() -> None:
    budgets = {0: None, 1: 110, 2: 109, 3: 60, 4: 40, 5: 10}
    told = plan([stage("a", 60), stage("b", 40, turn=1), stage("c", 50, turn=2)], budgets).as_json()
    assert [s["eligible"] for s in told["stages"]] == pytest.approx([4 / 6, 5 / 6, 4 / 6])
    assert (told["takes_part"], told["takes_part_always"]) == pytest.approx((5 / 6, 4 / 6))
    assert (told["full_bytes"], told["full_need_bytes"], told["full_eligible"]) == (100, 110, 2 / 6)
    assert (told["need_for_any_bytes"], told["need_for_all_bytes"]) == (40, 60)
    assert [c["stages"] for c in told["clients"]] == [["a", "b", "c"]] * 4 + [["b"], []]
    assert [c["memory_bytes"] for c in told["clients"]] == list(budgets.values())


def test_a_round_has_the_fraction_of_all_or_all_who_fit() -> None:
    budgets = dict.fromkeys(range(6), 50) | dict.fromkeys(range(6, 10), 100)
    full, half = plan([stage("full", 80), stage("half", 40)], budgets).as_json()["stages"]
    assert (full["takes_it"], half["takes_it"]) == (0.4, 0.6)
    assert (full["clients_a_round"], half["clients_a_round"]) == (2.0, 3.0)
    assert plan([stage("big", 80)], budgets).as_json()["stages"][0]["clients_a_round"] == 4
    assert plan([stage("huge", 800)], budgets).as_json()["stages"][0]["clients_a_round"] == 0


def test_costs_of_a_visit_and_of_a_run() -> None:
    told = plan(
        [stage("a", 60, rounds=4), stage("b", 40, turn=1, rounds=2, down=1, up=3)], {0: 50, 1: 100}, 1.0
    ).as_json()
    assert [s["flops_a_visit"] for s in told["stages"]] == [2.0 * 100 * 3] * 2
    # a: 4 rounds of client 1; b: 2 rounds of both
    assert told["total"] == {"bytes_down": 4 * 10 + 4 * 1, "bytes_up": 4 * 5 + 4 * 3, "flops": 8 * 600.0}
    assert plan([stage("a", 60)], {0: 100}, 1.0).as_json()["total"]["bytes_up"] == 6 * 5
    assert plan([stage("a", 60), stage("b", 1, turn=1)], {0: 100}).as_json()["total"] is None


def test_stages_of_a_step_are_told_together_by_the_largest_need() -> None:
    stages = [stage("map 2", 30, step=2, units=("y",)), stage("grow 1", 50, 1, step=1, units=("x",))]
    told = plan([*stages, stage("grow 2", 40, 2, step=2, units=("y",))], {0: 40}).as_json()
    assert told["steps"] == [
        {"name": "step 1", "units": ["x"], "need_bytes": 50, "eligible": 0.0},
        {"name": "step 2", "units": ["y"], "need_bytes": 40, "eligible": 1.0},
    ]


def test_without_a_fleet_nothing_is_said_of_clients() -> None:
    told = plan([stage("a", 60)], {}).as_json()
    assert {told["fleet"], told["takes_part"], told["full_eligible"], told["steps"][0]["eligible"]} == {None}
    assert (told["clients"], told["stages"][0]["clients_a_round"]) == ([], 2)


# The command


def planned(call: Call, *arguments: Any, model: tuple[str, ...] = MODEL) -> Any:
    code, out, error = call("plan", *arguments, *model, "--json")
    assert (code, error) == (0, ""), error
    return json.loads(out)


def test_json_says_what_the_whole_model_and_each_step_need(call: Call) -> None:
    told = planned(call, BLOCKS, "--partition", "paper")
    assert (told["method"], told["input"], told["batch_size"]) == ("blockwise.py:Blockwise", [3, 16, 16], 8)
    assert told["parameters"]["cuts"] == "0,3,5,7,9"
    assert [len(step["units"]) for step in told["steps"]] == [3, 2, 2, 2]
    assert told["steps"][0]["units"] == ["stem", "stage1_1", "stage1_2"]
    assert all(step["eligible"] is None for step in told["steps"])
    assert told["full_need_bytes"] == needs.with_headroom(told["full_bytes"])
    assert max(step["need_bytes"] for step in told["steps"]) < told["full_need_bytes"]
    assert told["visits"] == {"batch_size": 8, "rounds": 20, "fraction": 1.0, "clients": 10, "rows": 500.0, "epochs": 2}


def test_the_automatic_partition_has_as_many_steps_as_asked_for_and_needs_less(call: Call) -> None:
    small = ("--model", "cnn-5", "--input", "3x28x28", "--batch-size", "8")
    given, auto = (planned(call, BLOCKS, "--partition", p, "--steps", "2", model=small) for p in ("0,3,4", "auto"))
    assert [len(told["steps"]) for told in (given, auto)] == [2, 2]
    largest = [max(step["need_bytes"] for step in told["steps"]) for told in (given, auto)]
    assert largest[1] < largest[0]


def test_shares_of_the_need_are_the_same_budgets_in_bytes(call: Call) -> None:
    shares = planned(call, BLOCKS, "--fleet", "uniform:0.12:1.07", "--clients", "30", "--seed", "4")
    full = shares["full_need_bytes"]
    assert shares["fleet"] == f"uniform:{round(0.12 * full)}:{round(1.07 * full)}"
    drawn = fleet.budgets(shares["fleet"], 30, Key.root(4) / "fleet")
    assert [c["memory_bytes"] for c in shares["clients"]] == list(drawn)
    assert planned(call, BLOCKS, "--fleet", shares["fleet"], "--clients", "30", "--seed", "4") == shares
    for step in shares["steps"]:
        assert step["eligible"] == sum(m >= step["need_bytes"] for m in drawn) / 30


def test_a_file_says_how_many_clients_there_are(call: Call, tmp_path: Path) -> None:
    (tmp_path / "devices.toml").write_text('[[client]]\nmemory = "1 GiB"\ncount = 3\n[[client]]\nmemory = "10 kB"')
    told = planned(call, LEVELS, "--fleet", "devices.toml")
    assert (told["takes_part"], len(told["clients"])) == (0.75, 4)
    assert told["clients"][3] == {"client": 3, "memory_bytes": 10_000, "stages": []}


def test_several_methods_get_the_keys_that_they_have(call: Call) -> None:
    blocks, levels = planned(call, BLOCKS, LEVELS, "--partition", "paper", "--local-epochs", "4")
    assert blocks["parameters"]["cuts"] == "0,3,5,7,9"
    assert "cuts" not in levels["parameters"]
    assert blocks["visits"]["epochs"] == levels["visits"]["epochs"] == 4


def test_an_experiment_is_planned_with_its_data_and_fleet(call: Call, tmp_path: Path) -> None:
    text = f'method = "{BLOCKS}"\ndata = "digits"\nclients = 3\nmodels = ["resnet18(width=0.0625)"]\nbatch_size = 8\n'
    (tmp_path / "e.toml").write_text(f'{text}fleet = "uniform:0.2:1.2"\n')
    code, out, _ = call("plan", "e.toml", "--json")
    told = json.loads(out)
    assert (code, told["input"], len(told["clients"])) == (0, [1, 8, 8], 3)
    assert told["visits"]["rows"] == pytest.approx(1797 * 0.6 / 3, rel=0.01)


def test_a_table_and_a_picture_are_shown(call: Call, tmp_path: Path) -> None:
    code, out, _ = call("plan", BLOCKS, *MODEL, "--fleet", "uniform:0.12:1.07", "--clients", "9", "--out", "p")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    told = json.loads((tmp_path / "p" / "plan.json").read_text())
    for step in told["stages"]:
        assert re.search(rf"^{step['name']} +[\d.]+ +{100 * step['eligible']:.0f} %", out, re.MULTILINE)
    assert "Blocks: stem to stage1_2; stage2_1 to stage2_2; stage3_1 to stage3_2; stage4_1 to stage4_2." in " ".join(
        out.split()
    )
    assert f"Of 9 clients {round(9 * told['takes_part'])} take part" in out
    svg = (tmp_path / "p" / "plan.svg").read_text()
    assert svg.startswith("<svg xmlns=")
    assert "9 budgets" in svg
    budgets = tuple(c["memory_bytes"] for c in told["clients"])
    assert fleet.budgets(str(tmp_path / "p" / "fleet.csv"), 9, Key.root(0)) == budgets


def test_a_turn_that_nobody_can_do_stops_a_method() -> None:
    both = [stage("train a", 30, rounds=1), stage("train b", 80, turn=1, rounds=1), stage("b less", 70, turn=1)]
    told = plan(both, {0: 50, 1: 60}).as_json()
    assert (told["nobody_can"], told["total"]) == (["b less"], None)
    assert "Nobody can b less, so this cannot be run: take smaller batches or a narrower model." in report.sentences(
        told
    )
    assert plan(both, {0: 70}).as_json()["nobody_can"] == plan(both, {}).as_json()["nobody_can"] == []


def test_words_say_what_a_fleet_of_equals_does() -> None:
    both = [stage("a", 3 * 2**20), stage("b", 2**20, turn=1)]
    said = report.sentences(plan(both, dict.fromkeys(range(5), 2 * 2**20), full=2**30).as_json())
    assert said[-3:] == [
        "Of 5 clients 5 take part, 0 in everything; 0 could train the whole model.",
        "Nobody can a, so this cannot be run: take smaller batches or a narrower model.",
        "5 clients of 2.0 MiB: b",
    ]
    said = report.sentences(plan(both, {0: 2**10, 1: 2**22, 2: None}, full=2**30).as_json())
    assert said[-2:] == ["1 client of 1.0 KiB: nothing", "2 clients of 4.0 MiB to any size: everything"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say what to plan: unalike plan profl --model resnet18"),
        (("fedprox", *MODEL), "fedprox does not say what its clients need; those that do: "),
        ((BLOCKS, "--model", "resnet19"), "unknown model 'resnet19'"),
        ((BLOCKS, "--model", "resnet18", "--input", "3x"), "--input 3x is no shape: write channels x height x width"),
        ((BLOCKS, *MODEL, "--data", "digits"), "--data is of data, and --model plans without: leave one of them out"),
        ((BLOCKS, *MODEL, "--partition", "iid"), "--partition is of data"),
        ((LEVELS, *MODEL, "--partition", "auto"), "nothing is cut into blocks here, leave --partition out"),
        ((BLOCKS, *MODEL, "--partition", "0,9,3"), "has 9 units: cuts must rise from 0 to 9, not (0, 9, 3)"),
        ((BLOCKS, *MODEL, "--stepps", "3"), "unknown key 'stepps': did you mean steps?"),
        ((BLOCKS, *MODEL, "--partition", "auto", "--steps", "12"), "has between 1 and 9 blocks, not 12"),
        ((BLOCKS, *MODEL, "--fleet", "none.csv"), "--fleet none.csv cannot be read"),
        ((BLOCKS, *MODEL, "--fleet", "2XB"), "'2XB' is no size of memory"),
        ((BLOCKS, *MODEL, "--fleet", "uniform:1.07:0.12"), "begins above its end"),
        ((BLOCKS, *MODEL, "--out", "."), ". exists already: choose another --out"),
        ((BLOCKS, "--model", "cnn-1", "--partition", "paper", "--input", "1x28x28"), "brings no cuts of its own"),
        (("e.toml", BLOCKS), "unexpected argument"),
        ((BLOCKS, *MODEL, "--classes", "1"), "--classes"),
    ],
)
def test_what_is_wrong_costs_one_line_and_exit_2(call: Call, arguments: tuple[str, ...], said: str) -> None:
    code, out, error = call("plan", *arguments)
    assert (code, out, error.count("\n")) == (2, "", 1), error
    assert said in error
