"""Folders of questions about drawn scenes: a client a style, or a client a kind of question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..files import write_atomically
from ..rng import Key
from . import questions, world

SHARES = {"train": 450, "test": 200}
"""Rows of each client: few, as adapters are for."""


def write_domains(folder: Path, seed: int = 0, strength: float = 1.0, side: int = 32, **rows: int) -> Path:
    """Five clients in `folder`, each with one of `world.STYLES` and questions of all kinds.

    Args:
        strength: of the styles, 0 to 1; scenes and questions are the same at every strength.
        rows: "train" and "test", of each client, see `SHARES`.
    """
    key, rows = Key.root(seed) / "domains", {**SHARES, **rows}
    for name, style in world.STYLES.items():
        for part, count in rows.items():
            kinds = [questions.KINDS[i % len(questions.KINDS)] for i in range(count)]
            _write(folder, name, part, kinds, style.at(strength), side, key / name / part)
    what = "Five clients, one visual style each; every client is asked all kinds of questions."
    describe(folder, "domains", what, {"seed": seed, "strength": strength, "side": side, **rows}, _styles(strength))
    return folder


def write_functions(folder: Path, seed: int = 0, side: int = 32, **rows: int) -> Path:
    """Five clients in `folder`, each with one kind of question, all in the neutral style."""
    key, rows = Key.root(seed) / "functions", {**SHARES, **rows}
    for name in questions.KINDS:
        for part, count in rows.items():
            _write(folder, name, part, [name] * count, world.NEUTRAL, side, key / name / part)
    what = "Five clients, one kind of question each; all scenes are drawn in the neutral style."
    about = {"seed": seed, "side": side, **rows}
    describe(folder, "functions", what, about, {k: " / ".join(questions.OURS[k]) for k in questions.KINDS})
    return folder


def _styles(strength: float) -> dict[str, str]:
    found = {name: style.at(strength) for name, style in {"neutral": world.NEUTRAL, **world.STYLES}.items()}
    return {name: str(style).removeprefix("Style") for name, style in found.items()}


def _write(folder: Path, name: str, part: str, kinds: Iterable[str], style: world.Style, side: int, key: Key) -> None:
    """One client's rows of one part; each is about a scene of its own."""
    contents, look, rows = (key / "scenes").numpy(), (key / "look").numpy(), []
    for i, kind in enumerate(kinds):
        found, question, answer = asked(kind, contents)
        rows.append({"image": f"images/{name}/{part}-{i:04}.png", "question": question, "answer": answer})
        picture = Image.fromarray(world.draw(found, style, side, look))
        (folder / str(rows[-1]["image"])).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / str(rows[-1]["image"]))
    write_rows(folder / f"{name}.{part}.jsonl", rows)


def asked(kind: str, rng: np.random.Generator) -> tuple[world.Scene, str, str]:
    """A scene that has something to be asked about, a question of a client's, and its answer."""
    while True:
        found = world.scene(rng)
        try:
            return (found, *questions.ask(found, kind, questions.OURS, rng))
        except LookupError:
            continue


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
