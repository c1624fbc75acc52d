"""docs/vision-language.md: its commands run, its tables name every option and method, and their defaults are the real
ones."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import seeing
from catalogue import ANSWERING
from pages import ROOT, blocks, text
from unalike import config
from unalike.algorithms import find
from unalike.multimodal import Foundation
from unalike.scenes import __main__ as scenes
from unalike.scenes import model

PAGE = "docs/vision-language.md"
FEW = {"domains": ["--train", "12", "--test", "4"]}
SHORT = ["--engine", "serial", "--quiet"]


def commands(block: int) -> list[list[str]]:
    return [shlex.split(line) for line in blocks(PAGE, "bash")[block].splitlines()]


def test_the_first_block_runs(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """With a model that was not trained in the place of the one that takes minutes, few rows and one round."""
    monkeypatch.setenv("UNALIKE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(model, "write", lambda folder: seeing.write_model(folder, "vilt"))
    (tmp_path / "asked.jsonl").write_text('{"question": "what colour is the square ?"}\n')
    for words in commands(0):
        if words[:3] == ["python", "-m", "unalike.scenes"]:
            scenes.main([*words[3:], *FEW.get(words[3], [])])
            continue
        more = {"run": SHORT, "compare": [*SHORT, "--seeds", "1"]}.get(words[1], [])
        asked = ["1" if before == "--rounds" else word for before, word in zip(["", *words], words, strict=False)]
        code, out, error = call(*asked[1:], *more)
        assert code == 0, error
        if words[1] == "predict":
            assert out.startswith('{"question": "what colour is the square ?", "answer": ')


def test_all_other_commands_have_options_that_there_are() -> None:
    for command, method, *words in (words[1:] for words in commands(1)):
        assert command == "run"
        given = dict(zip((w[2:].replace("-", "_") for w in words[::2]), words[1::2], strict=True))
        assert config.resolve({"method": method, **given}).method == method
        Foundation.read(given["models"])


def table(head: str) -> list[tuple[str, str]]:
    """The first two cells of the rows below a head."""
    return re.findall(r"^\| (.+?) \| (.+?) \|", text(PAGE).partition(head)[2].partition("\n\n")[0], re.MULTILINE)


def test_the_table_of_a_model_names_every_option_and_its_default() -> None:
    told = {name.strip("`"): default.strip("`") for name, default in table("| option | default |")}
    assert told == {f.name: str(f.default) for f in fields(Foundation) if f.name != "model"}


def test_the_table_of_feddat_has_its_settings_and_their_defaults() -> None:
    parameters, told = config.parameters_of(find("feddat")), {}
    for names, defaults in table("| setting | default |"):
        told |= dict(zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True))
    assert told == {name: str(parameters[name].default) for name in told}
    own = set(find("feddat").__annotations__) - {"paper", "needs", "presets", "views"}
    assert own == set(told)


def test_the_methods_are_those_for_questions_about_images() -> None:
    assert [name.strip("`") for name, _ in table("| method | what")] == ANSWERING
    for name, said in table("| method | what"):
        for option, value in re.findall(r"--([\w-]+) (\d+)", said):
            assert config.parameters_of(find(name.strip("`")))[option.replace("-", "_")].default == int(value)


def test_what_it_says_of_training_is_so() -> None:
    made: Any = find("feddat")()
    optimiser, said = made.optimiser(), " ".join(text(PAGE).split())
    assert (optimiser.betas, optimiser.weight_decay, optimiser.steps) == ((0.9, 0.98), 0.01, 0)
    assert (
        f"a constant step size of 1e-4, one epoch a round, batches of {made.batch_size}, {made.rounds} rounds" in said
    )
    assert (made.lr, made.local_epochs) == (1e-4, 1)


def test_its_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", text(PAGE)):
        assert (ROOT / "docs" / target).exists(), target
