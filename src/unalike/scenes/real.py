"""Others' data as folders of questions: the package easy-vqa, and blood images with boxes of their cells."""

from __future__ import annotations

import csv
import importlib
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from ..errors import InputError
from ..rng import Key
from .folders import describe, write_rows

EASY = {
    "is-colour": "yes or no: is there a shape of a colour?",
    "is-shape": "yes or no: is there a shape of a name?",
    "is-not": "yes or no: is there no such shape or colour?",
    "which-colour": "the colour of the shape",
    "which-shape": "the name of the shape",
}
"""Client to what it is asked."""
SHAPES = ("circle", "rectangle", "triangle")
EASY_ROWS = {"train": 500, "test": 200}


def write_easy(folder: Path, seed: int = 0, **rows: int) -> Path:
    """easy-vqa (5,000 images of 64x64, 48,248 questions) as five clients by kind of question, a sample of each.

    Every answer of a client is drawn equally often, as far as there are enough rows of it: in the whole package nine in
    ten yes-or-no questions about a colour have the same answer. Training and test rows are the package's own.
    """
    package, rows = _easy_vqa(), {**EASY_ROWS, **rows}
    for part, count in rows.items():
        asked = list(zip(*getattr(package, f"get_{part}_questions")(), strict=True))
        paths = getattr(package, f"get_{part}_image_paths")()
        for name in EASY:
            own = [row for row in asked if kind_of(*row[:2]) == name]
            picked = _balanced(own, count, Key.root(seed) / "easy-vqa" / name / part)
            found = []
            for question, answer, number in picked:
                image = f"images/easy-vqa/{part}-{number}.png"
                (folder / image).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(paths[number], folder / image)
                found.append({"image": image, "question": question, "answer": answer})
            write_rows(folder / f"{name}.{part}.jsonl", found)
    what = "The package easy-vqa (Victor Zhou), sampled and divided by kind of question."
    describe(folder, "easy-vqa", what, {"seed": seed, **rows}, EASY, "MIT, of the package")
    return folder


def kind_of(question: str, answer: str) -> str:
    """Which of `EASY` a question of easy-vqa is of."""
    if answer not in ("yes", "no"):
        return "which-shape" if answer in SHAPES else "which-colour"
    if re.search(r"\b(no|not)\b", question):
        return "is-not"
    return "is-shape" if re.search(rf"\b({'|'.join(SHAPES)})\b", question) else "is-colour"


def _balanced(rows: Sequence[tuple[str, str, int]], count: int, key: Key) -> list[tuple[str, str, int]]:
    """So many rows, in turn one of each answer."""
    rng = key.numpy()
    by_answer: dict[str, list[tuple[str, str, int]]] = {}
    for i in rng.permutation(len(rows)):
        by_answer.setdefault(rows[i][1], []).append(rows[i])
    turns = sorted((turn, answer) for answer, found in by_answer.items() for turn in range(len(found)))
    return [by_answer[answer][turn] for turn, answer in turns[:count]]


def _easy_vqa() -> Any:
    try:
        return importlib.import_module("easy_vqa")
    except ImportError:
        raise InputError("easy-vqa is not installed: pip install easy-vqa") from None


class Cells(NamedTuple):
    """How many of each kind an image shows."""

    white: int
    red: int
    platelets: int


TYPES = {"WBC": "white", "RBC": "red", "Platelets": "platelets"}
"""Type of a cell in the table of boxes to the field of `Cells`."""
ABOUT: Mapping[str, Callable[[Cells], str]] = {
    "is there a platelet ?": lambda c: _yes(c.platelets > 0),
    "how many platelets are there ?": lambda c: _few(c.platelets),
    "how many white cells are there ?": lambda c: _few(c.white),
    "are there more than ten red cells ?": lambda c: _yes(c.red > 10),
    "are there more platelets than white cells ?": lambda c: _yes(c.platelets > c.white),
}
MOST = 3
ASKED = 2
"""Questions about each image, in turn of `ABOUT`."""
SHARE = 0.25
"""Of the images that are for tests."""


def _yes(said: bool) -> str:
    return "yes" if said else "no"


def _few(count: int) -> str:
    return str(count) if count < MOST else f"{MOST} or more"


def write_blood(folder: Path, source: Path, seed: int = 0, side: int = 128) -> Path:
    """One client, "blood", of questions about whole blood images.

    Args:
        source: a folder with the images, in it or below, and one .csv of boxes with the columns filename and cell_type.
        side: pixels a side, as which the images are written.

    Raises:
        InputError: there is no such table, or an image of it is not there.
    """
    table, found = _boxes(source)
    images = {file.name: file for file in sorted(source.rglob("*")) if file.suffix.lower() in (".jpg", ".png")}
    order = (Key.root(seed) / "blood").numpy().permutation(len(found))
    names = [sorted(found)[i] for i in order]
    tested = {*names[: round(SHARE * len(names))]}
    rows: dict[str, list[dict[str, str]]] = {"train": [], "test": []}
    for i, name in enumerate(names):
        if name not in images:
            raise InputError(f"{table} names the image {name}, which is not in {source}")
        image = f"images/blood/{Path(name).stem}.png"
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        with Image.open(images[name]) as opened:
            opened.convert("RGB").resize((side, side), Image.Resampling.BILINEAR).save(folder / image)
        for turn in range(ASKED):
            question = list(ABOUT)[(ASKED * i + turn) % len(ABOUT)]
            row = {"image": image, "question": question, "answer": ABOUT[question](found[name])}
            rows["test" if name in tested else "train"].append(row)
    for part, listed in rows.items():
        write_rows(folder / f"blood.{part}.jsonl", listed)
    counts = Counter(row["answer"] for row in rows["train"])
    told = ", ".join(f"{answer} {count}" for answer, count in sorted(counts.items()))
    what = (
        f"Questions about {len(names)} whole blood images, {len(tested)} of them for tests. Training answers: {told}."
    )
    describe(folder, "blood", what, {"seed": seed, "side": side}, {"blood": " / ".join(ABOUT)}, "that of the images")
    return folder


def _boxes(source: Path) -> tuple[Path, dict[str, Cells]]:
    """The table of boxes and, for each image, how many cells of each type have one."""
    for file in sorted(source.glob("*.csv")):
        with file.open(newline="") as opened:
            table = csv.DictReader(opened)
            if {"filename", "cell_type"} <= {*(table.fieldnames or ())}:
                counts: dict[str, Counter[str]] = {}
                for number, row in enumerate(table, 1):
                    if row["cell_type"] not in TYPES:
                        known = ", ".join(TYPES)
                        raise InputError(f"{file}: row {number}: cell_type is {row['cell_type']!r}; known are {known}")
                    counts.setdefault(row["filename"], Counter())[TYPES[row["cell_type"]]] += 1
                return file, {name: Cells(**{f: c[f] for f in Cells._fields}) for name, c in counts.items()}
    raise InputError(f"{source} has no .csv with the columns filename and cell_type of each cell's box")
