"""Folders of questions about drawn scenes: a client a style, or a client a kind of question."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from ..files import write_atomically
from ..rng import Key
from . import questions, world

SHARES = {"train": 450, "test": 200}
"""Rows of each client: few, as adapters are for."""
REPORTING = {
    "north": "pictures and reports; every fifth row without the one, every fifth without the other",
    "south": "pictures and reports; every fifth row without the one, every fifth without the other",
    "west": "pictures and reports; every fifth row without the one, every fifth without the other",
    "written": "an eighth of the rows; to be without pictures",
    "xray": "an eighth of the rows: pictures of a single thing, whose shape is to be named",
}
"""Clients of `reports`, in the order of their names."""
Ask: TypeAlias = Callable[[np.random.Generator], tuple[world.Scene | None, str, str]]
"""Draws a scene, a question and its answer; None is no picture, "" no question."""
SMALL, FEWER = ("written", "xray"), 8
"""Clients with so many times fewer rows to train."""
REPORTED = ("colour", "shape", "count", "presence")
"""Kinds of questions that a report answers: it does not tell sizes."""


def write_domains(folder: Path, seed: int = 0, strength: float = 1.0, side: int = 32, **rows: int) -> Path:
    """Five clients in `folder`, each with one of `world.STYLES` and questions of all kinds.

    Args:
        strength: of the styles, 0 to 1; scenes and questions are the same at every strength.
        rows: "train" and "test", of each client, see `SHARES`.
    """
    key, rows = Key.root(seed) / "domains", {**SHARES, **rows}
    for name, style in world.STYLES.items():
        for part, count in rows.items():
            asks = [partial(asked, questions.KINDS[i % len(questions.KINDS)]) for i in range(count)]
            _write(folder, name, part, asks, style.at(strength), side, key / name / part)
    what = "Five clients, one visual style each; every client is asked all kinds of questions."
    describe(folder, "domains", what, {"seed": seed, "strength": strength, "side": side, **rows}, _styles(strength))
    return folder


def write_functions(folder: Path, seed: int = 0, side: int = 32, **rows: int) -> Path:
    """Five clients in `folder`, each with one kind of question, all in the neutral style."""
    key, rows = Key.root(seed) / "functions", {**SHARES, **rows}
    for name in questions.KINDS:
        for part, count in rows.items():
            _write(folder, name, part, [partial(asked, name)] * count, world.NEUTRAL, side, key / name / part)
    what = "Five clients, one kind of question each; all scenes are drawn in the neutral style."
    about = {"seed": seed, "side": side, **rows}
    describe(folder, "functions", what, about, {k: " / ".join(questions.OURS[k]) for k in questions.KINDS})
    return folder


def write_reports(folder: Path, seed: int = 0, side: int = 32, **rows: int) -> Path:
    """Five clients in `folder`: three with pictures and reports, a small one with reports, a small one with pictures.

    A report says what is in the picture, and a question follows. Of the three's rows every fifth has no picture, and
    every fifth no report and question: the shape of a single thing is to be named, as in all rows of the last. The two
    small ones have both in their rows: `--modalities "3:text,4:image"` takes away what they are to lack.
    """
    key, rows = Key.root(seed) / "reports", {**SHARES, **rows}
    for name in REPORTING:
        for part, count in rows.items():
            asks = [_asking(name, i) for i in range(count // FEWER if part == "train" and name in SMALL else count)]
            _write(folder, name, part, asks, world.NEUTRAL, side, key / name / part)
    what = "Five clients with pictures and reports of what is in them; two are small, and meant to lack one of the two."
    describe(folder, "reports", what, {"seed": seed, "side": side, **rows}, REPORTING)
    return folder


def _asking(name: str, row: int) -> Ask:
    """What a row of a client of `reports` asks."""
    reported, large = partial(_reported, REPORTED[row % len(REPORTED)]), name not in SMALL
    if name == "xray" or (large and row % 5 == 4):
        return _named
    return partial(_unseen, reported) if large and row % 5 == 3 else reported


def _styles(strength: float) -> dict[str, str]:
    found = {name: style.at(strength) for name, style in {"neutral": world.NEUTRAL, **world.STYLES}.items()}
    return {name: str(style).removeprefix("Style") for name, style in found.items()}


def _write(folder: Path, name: str, part: str, asks: Iterable[Ask], style: world.Style, side: int, key: Key) -> None:
    """One client's rows of one part; each is about a scene of its own."""
    contents, look, rows = (key / "scenes").numpy(), (key / "look").numpy(), []
    for i, ask in enumerate(asks):
        found, question, answer = ask(contents)
        row = {"image": f"images/{name}/{part}-{i:04}.png", "question": question, "answer": answer}
        rows.append({field: said for field, said in row.items() if said and (found or field != "image")})
        if found:
            picture = Image.fromarray(world.draw(found, style, side, look))
            (folder / row["image"]).parent.mkdir(parents=True, exist_ok=True)
            picture.save(folder / row["image"])
    write_rows(folder / f"{name}.{part}.jsonl", rows)


def asked(kind: str, rng: np.random.Generator) -> tuple[world.Scene, str, str]:
    """A scene that has something to be asked about, a question of a client's, and its answer."""
    while True:
        found = world.scene(rng)
        try:
            return (found, *questions.ask(found, kind, questions.OURS, rng))
        except LookupError:
            continue


def _reported(kind: str, rng: np.random.Generator) -> tuple[world.Scene, str, str]:
    """As `asked`; the question follows what the scene shows."""
    found, question, answer = asked(kind, rng)
    return found, " ".join(f"a {thing.colour} {thing.shape} ." for thing in found) + f" {question}", answer


def _unseen(ask: Ask, rng: np.random.Generator) -> tuple[None, str, str]:
    """The same without a picture."""
    return None, *ask(rng)[1:]


def _named(rng: np.random.Generator) -> tuple[world.Scene, str, str]:
    """A scene of a single thing, whose shape is to be named; nobody asks."""
    while len(found := world.scene(rng)) > 1:
        pass
    return found, "", found[0].shape


def write_rows(file: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """An object a line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())


def describe(
    folder: Path, name: str, what: str, about: Mapping[str, Any], more: Mapping[str, str], licence: str = "none needed"
) -> None:
    """Write NAME.md beside the rows: what they are, how to make them again, and what each client has."""
    options = " ".join(f"--{key} {value}" for key, value in about.items())
    lines = [f"# {name}", "", what, "", f"Made by `python -m unalike.scenes {name} FOLDER {options}`.", ""]
    lines += [f"Licence of the data: {licence}.", "", "| client | |", "|---|---|"]
    lines += [f"| {client} | {said} |" for client, said in more.items()]
    write_atomically(folder / f"{name}.md", ("\n".join(lines) + "\n").encode())
