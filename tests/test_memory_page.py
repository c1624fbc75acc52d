"""docs/memory.md: what its commands print, the keys of its tables, the fleet's files."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pages import ROOT, blocks, text
from unalike.data import fleet
from unalike.engines.budget import Visits
from unalike.memory.plan import Plan, Stage
from unalike.memory.plan import Visits as Planned
from unalike.planning.make import experiments
from unalike.protocol import Algorithm, Spec
from unalike.rng import Key

PAGE = "docs/memory.md"
Call = Callable[..., tuple[Any, str, str]]


def commands() -> dict[str, str]:
    """Command to what it prints."""
    found = (block.partition("\n") for block in blocks(PAGE, "console"))
    return {command.removeprefix("$ "): printed for command, _, printed in found}


def test_a_fleet_of_devices_that_differ_is_planned_as_it_stands(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "devices.csv").write_text(blocks(PAGE, "csv")[0])
    monkeypatch.setenv("COLUMNS", "100")
    command, printed = next((c, p) for c, p in commands().items() if "devices.csv" in c and " plan " in c)
    code, out, error = call(*shlex.split(command)[1:])
    assert (code, error) == (0, "")
    assert [line.rstrip() for line in out.splitlines()] == printed.splitlines()


def test_all_commands_have_options_that_there_are() -> None:
    own = {"--model", "--input", "--classes", "--samples", "--out", "--json"}
    asked = [*commands(), *(line for block in blocks(PAGE, "bash") for line in block.splitlines())]
    assert len(asked) > 4
    for command in asked:
        words = shlex.split(command)[2:]
        methods = words[: next(i for i, word in enumerate(words) if word.startswith("--"))]
        given = dict(zip(words[len(methods) :: 2], words[len(methods) + 1 :: 2], strict=True))
        keys = {name[2:].replace("-", "_"): value for name, value in given.items() if name not in own}
        assert [e.method for e in experiments(methods, keys, None)] == methods


def test_the_tables_name_every_key() -> None:
    stage = Stage(name="a", need=1, down=1, up=1, flops=1.0)
    visits = Planned(batch_size=1, rounds=1, fraction=1.0, clients=1, rows=1.0, epochs=1)
    about = {"method": "m", "spec": Spec("n", (1,), 2), "parameters": {}, "full": 1, "fleet": "f", "budgets": {0: 1}}
    plan = Plan(stages=(stage,), visits=visits, **about)  # type: ignore[arg-type]
    told, page = plan.as_json(), text(PAGE)
    for key in (*told, *told["steps"][0], *told["clients"][0], *set(told["stages"][0]) - {"step"}):
        assert f"`{key}`" in page, key
    for key in Visits(visits=1).event()["memory"]:
        assert f'"{key}"' in page


def test_both_files_are_the_same_fleet(tmp_path: Path) -> None:
    found = []
    for kind in ("csv", "toml"):
        file = tmp_path / f"devices.{kind}"
        file.write_text(blocks(PAGE, kind)[0])
        found.append(fleet.budgets(str(file), 6, Key.root(0)))
    assert found[0] == found[1] == (*(m * 2**20 for m in (8, 8, 12, 16, 40)), None)


def test_what_a_method_may_have_is_there() -> None:
    source = blocks(PAGE, "python")[0]
    compile(source, PAGE, "exec")
    for name in ("settle", "memory_aware"):
        assert name in source
        assert hasattr(Algorithm, name)


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text(PAGE)):
        assert (ROOT / "docs" / target).exists(), target
