"""docs/language.md: its commands run, its tables name every option, and their defaults are the real ones."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from catalogue import SPEAKING
from pages import ROOT, blocks, text
from unalike import config, tiny
from unalike.algorithms import find
from unalike.pretrained import INSTRUCTIONS, Adapted

PAGE = "docs/language.md"


def commands(block: int) -> list[list[str]]:
    return [shlex.split(line) for line in blocks(PAGE, "bash")[block].splitlines()]


def test_the_first_block_runs(
    call: Callable[..., Any], tiny_lm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a model that was trained for seconds in the place of the one that takes minutes, and one round."""
    monkeypatch.setenv("UNALIKE_CACHE", str(tiny_lm.parent))
    made = []
    monkeypatch.setattr(tiny, "write_model", made.append)
    for words in commands(0):
        if words[:3] == ["python", "-m", "unalike.tiny"]:
            tiny.main([str(tmp_path / word) if word == "tasks" and i else word for i, word in enumerate(words[3:])])
            continue
        short = {"--rounds": "1", "--engine": "serial", "--quiet": None} if words[1] in ("run", "compare") else {}
        more = [word for pair in short.items() for word in pair if word]
        code, out, error = call(*words[1:], *more)
        assert code == 0, error
        if words[1] == "explain":
            assert out.startswith("client 3 (royal), round 1: its own adapter counts")
    assert made == [tiny_lm.parent / "tiny"]


def test_all_other_commands_have_options_that_there_are() -> None:
    for command, method, *words in (words[1:] for words in commands(1)):
        assert command == "run"
        given = dict(zip((w[2:].replace("-", "_") for w in words[::2]), words[1::2], strict=True))
        assert config.resolve({"method": method, **given}).method == method
        Adapted.read(given["models"])


def test_the_table_of_a_model_names_every_option_and_its_default() -> None:
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", text(PAGE).partition("| option | default |")[2], re.MULTILINE)
    told: dict[str, str] = {}
    for names, defaults in rows[:5]:
        values = defaults.replace("`", "").split(", ") if "targets" not in names else [defaults.strip("`")]
        told |= dict(zip(re.findall(r"`(\w+)`", names), values, strict=True))
    assert told == {f.name: str(f.default) for f in fields(Adapted) if f.name != "model"}


def test_the_table_of_feddpa_has_its_settings_and_their_defaults() -> None:
    table = text(PAGE).partition("| setting | default |")[2].partition("\n\n")[0]
    parameters = config.parameters_of(find("feddpa"))
    rows = re.findall(r"^\| (`.+?`) \| (.+?) \|", table, re.MULTILINE)
    for names, defaults in rows:
        for name, value in zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True):
            assert (str(parameters[name].default) or "none") == value
    named = set(re.findall(r"`(\w+)`", " ".join(names for names, _ in rows)))
    own = set(find("feddpa").__annotations__) - {"paper", "needs", "equal_architectures", "presets"}
    assert own - {"variant", "fixed_weight"} == named


def test_the_methods_are_those_for_texts() -> None:
    table = text(PAGE).partition("| method | what |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(.+?)`", table, re.MULTILINE) == SPEAKING
    assert len(INSTRUCTIONS) == 16


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text(PAGE)):
        assert (ROOT / "docs" / target).exists(), target
