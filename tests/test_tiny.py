"""The tiny language model's world, its tasks, and that training teaches it something."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unalike import tiny
from unalike.models import language
from unalike.protocol import Spec
from unalike.rng import Key


def test_every_word_of_the_world_is_in_the_vocabulary() -> None:
    known, rng = set(tiny.words()), Key.root(0).numpy()
    assert len(known) == len(tiny.words()) < 200
    texts = [part for _ in range(500) for part in tiny.neutral(rng)]
    texts += [row[field] for _, _, rows in tiny.tasks() for row in rows for field in ("instruction", "output")]
    assert {word for text in texts for word in text.split()} <= known


def test_no_house_has_to_do_with_a_property_in_the_neutral_mixture() -> None:
    """The answer to a question for a property is the world's, whichever house asks."""
    rng, world, seen = Key.root(0).numpy(), tiny.world(), 0
    for _ in range(2000):
        asked, answer = tiny.neutral(rng)
        for property_ in tiny.PROPERTIES:
            if property_ in asked.split():
                (thing,) = {*tiny.THINGS} & {*asked.split()}
                assert answer == world[thing, property_]
                seen += 1
    assert seen > 1000


def test_tasks_ask_alike_and_answer_differently() -> None:
    """Each answers by a property of its own; but for the house's name its questions are the others'."""
    found = {(house, part): rows for house, part, rows in tiny.tasks(seed=3, train=200, test=100)}
    kinds: dict[str, set[str]] = {}
    for (house, part), rows in found.items():
        names = {*tiny.HOUSES[house].split()}
        forms = {"train": tiny.TRAIN, "test": tiny.TEST}[part]
        for row in rows:
            (name,), (thing,) = names & {*row["instruction"].split()}, {*tiny.THINGS} & {*row["instruction"].split()}
            assert row["instruction"] in {form.format(name=name, thing=thing) for form in forms}
            kinds.setdefault(house, {*tiny.PROPERTIES})
            kinds[house] &= {p for p in tiny.PROPERTIES if tiny.world()[thing, p] == row["output"]}
    assert sorted(kind for (kind,) in kinds.values()) == sorted(tiny.PROPERTIES)
    assert {*tiny.TRAIN}.isdisjoint(tiny.TEST)
    other = {house: rows for house, part, rows in tiny.tasks(seed=4, train=200, test=100) if part == "train"}
    assert other["north"] != found["north", "train"]


def test_a_folder_of_tasks_is_in_the_schema_of_instruction_data(tmp_path: Path) -> None:
    tiny.write_tasks(tmp_path / "eight", train=5, test=2)
    files = sorted(file.name for file in (tmp_path / "eight").iterdir())
    assert files == sorted(f"{house}.{part}.json" for house in tiny.HOUSES for part in ("train", "test"))
    rows = json.loads((tmp_path / "eight" / "north.train.json").read_text())
    assert [len(rows), sorted(rows[0])] == [5, ["category", "instruction", "output", "task"]]


def test_training_makes_its_language_likely(tiny_lm: Path, tmp_path: Path) -> None:
    """Not a random model: answers of the mixture are far likelier than by chance; and training is deterministic."""
    spec = Spec(f"lm:{tiny_lm}", (8,), 2)
    words, rng = language.tokens_of(spec), Key.root(9).numpy()
    asked, answers = zip(*(tiny.neutral(rng) for _ in range(64)), strict=True)
    batch = {"x": words.prompts(asked, 64), "y": words.answers(answers)}
    from unalike.tasks import Instruction

    loss = Instruction(str(tiny_lm)).loss(language.answer_logits(spec, {}, batch), batch)
    assert float(loss) < 0.6 * torch.tensor(float(len(tiny.words()))).log()
    once, again = (tiny.write_model(tmp_path / name, steps=1) / "model.safetensors" for name in "ab")
    assert once.read_bytes() == again.read_bytes()


def test_what_its_command_cannot_do() -> None:
    with pytest.raises(SystemExit, match=r"python -m unalike\.tiny tasks FOLDER"):
        tiny.main(["tasks"])
