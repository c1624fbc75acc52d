"""The rows of all clients together: accuracy, balanced accuracy, and each class for itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from .axes import shortened
from .html import Html, definitions, figure, section, table
from .measured import Pooled
from .records import Method, Run
from .svg import Picture, colour, inline
from .units import UNKNOWN, fraction, whole

TITLE = "All clients’ rows together"


def name_of(classes: Sequence[str], place: int) -> str:
    """A class by its name, where that is known."""
    return classes[place] if place < len(classes) else str(place)


def single(run: Run, other: Run | None) -> Html:
    """The scores over all rows of a run, and what it recalls of each class."""
    found = run.summary.pooled
    if found is None or found.accuracy is None:
        return Html("")
    theirs = other.summary.pooled.recall if other and other.summary.pooled else {}
    facts = definitions(
        [
            ("accuracy", fraction(found.accuracy)),
            ("balanced accuracy", fraction(found.balanced_accuracy)),
            ("lowest recall", _lowest(found, run.partition.classes)),
        ]
    )
    if not found.recall:
        return section(TITLE, facts)
    caption = (
        "Recall of each class: the share of its test rows, at all clients together, that were predicted right by what "
        "each client predicts with, at the chosen round. The line is their mean, balanced accuracy; the lowest is "
        "orange."
    )
    if other and theirs:
        caption += f" The stroke across a bar is {other.algorithm}’s."
    drawing = figure(inline(recalls(found, run.partition.classes, theirs), "recalls"), caption)
    return section(TITLE, facts, drawing, table("Classes", _rows(run, other, found.recall, theirs)))


def recalls(found: Pooled, classes: Sequence[str], theirs: Mapping[int, float]) -> Picture:
    """A bar for each class, a line at their mean, and a stroke where the other run has the class."""
    ours, low = found.recall, min(found.recall.values())
    names = [shortened(name_of(classes, c)) for c in ours]
    height = min(1400, 60 + (22 if len(ours) <= 30 else 12) * len(ours))

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        fills = [colour("c1" if value == low else "c0") for value in ours.values()]
        axes.barh(range(len(ours)), list(ours.values()), height=0.62, color=fills, alpha=0.8, lw=0)
        for y, c in enumerate(ours):
            if c in theirs:
                axes.vlines(theirs[c], y - 0.42, y + 0.42, color=colour("ink"), lw=2)
        if found.balanced_accuracy is not None:
            axes.axvline(found.balanced_accuracy, color=colour("soft"), lw=1)
        axes.set_yticks(range(len(ours)), names, fontsize=11.5 if len(ours) <= 30 else 8)
        axes.set(xlim=(0, 1.01), ylim=(len(ours) - 0.4, -0.6), xlabel="recall")
        axes.grid(axis="x")

    alt = f"Recall of {len(ours)} classes, from {fraction(low)} ({_who(ours, classes)}) "
    return Picture(f"{alt}to {fraction(max(ours.values()))}.", draw, height, height)


def by_class(methods: Sequence[Method], classes: Sequence[str]) -> list[dict[str, str]]:
    """A row for each class, a column for each method that has recalls: means over seeds. Empty where none has."""
    known = [m for m in methods if m.pooled.recall]
    places = sorted({c for m in known for c in m.pooled.recall})
    return [
        {"class": name_of(classes, c), **{m.method: fraction(m.pooled.recall.get(c)) for m in known}} for c in places
    ]


def _rows(run: Run, other: Run | None, ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[dict[str, str]]:
    drawn = [client.labels for client in run.partition.clients]
    return [
        {
            "class": name_of(run.partition.classes, c),
            "training rows": whole(sum(rows[c] for rows in drawn if c < len(rows))) if any(drawn) else "",
            "recall": fraction(value),
            **({other.algorithm: fraction(theirs.get(c))} if other and theirs else {}),
        }
        for c, value in ours.items()
    ]


def _lowest(found: Pooled, classes: Sequence[str]) -> str:
    if not found.recall:
        return UNKNOWN
    return f"{fraction(min(found.recall.values()))} ({_who(found.recall, classes)})"


def _who(recall: Mapping[int, float], classes: Sequence[str]) -> str:
    """The class of the lowest recall, or how many have it."""
    low = [c for c, value in recall.items() if value == min(recall.values())]
    return name_of(classes, low[0]) if len(low) == 1 else f"{len(low)} classes"
