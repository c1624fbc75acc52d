"""Accuracy over what clients have worked for it: operations, and hours where their seconds are known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any, Literal, TypeAlias

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .axes import shortened, unit, validation
from .html import Html, figure, section
from .records import Event, Run
from .svg import Picture, colour, inline
from .units import flops, fraction

Measure: TypeAlias = Literal["flops", "client_seconds"]
Path: TypeAlias = list[tuple[float, float]]
"""Work done so far, and mean validation accuracy."""

MEASURES: tuple[Measure, ...] = ("flops", "client_seconds")
TITLE = "Accuracy over the clients’ work"
HOURS = " Seconds are those that training took at the clients; on one machine they share its processors."


def spent(rounds: Sequence[Event], measure: Measure) -> dict[int, float]:
    """Work of all clients until the end of each round; empty where that of a round is not known."""
    known = [value for event in rounds if (value := getattr(event, measure)) is not None]
    if len(known) < len(rounds) or not sum(known):
        return {}
    return dict(zip((event.round for event in rounds), accumulate(known), strict=True))


def path(several: Sequence[Run], measure: Measure) -> Path:
    """Mean over the runs, at the rounds in which all of them were scored."""
    runs = [(spent(run.rounds, measure), validation(run.rounds)[1]) for run in several]
    runs = [(work, mean) for work, mean in runs if mean]
    if not runs or not all(work for work, _ in runs):
        return []
    common = sorted(set.intersection(*(set(mean) for _, mean in runs)))
    return [(fmean(work[r] for work, _ in runs), fmean(mean[r] for _, mean in runs)) for r in common]


def single(run: Run, other: Run | None) -> Html:
    """Of a run, and dashed the one that it is set against."""
    several = {run.algorithm: [run]}
    role = {run.algorithm: "c0"}
    if other and other.algorithm != run.algorithm:
        several[other.algorithm], role[other.algorithm] = [other], "soft"
    return of(several, role, run.algorithm)


def of(several: Mapping[str, Sequence[Run]], role: Mapping[str, str], needed: str = "") -> Html:
    """A section on methods by name, mean over the runs of each; nothing where no work, or not that of `needed`, is
    known."""
    found = {m: {name: p for name, runs in several.items() if (p := path(runs, m))} for m in MEASURES}
    found = {m: paths for m, paths in found.items() if paths and (not needed or needed in paths)}
    if not found:
        return Html("")
    caption = (
        "Accuracy on validation, mean over clients"
        + ("" if needed else " and seeds")
        + ", over the computation of all clients together until then: operations of training (FLOP), as counted on a "
        "few rows."
    )
    if "flops" not in found:
        caption = "Accuracy on validation over the time of all clients together."
    caption += HOURS if "client_seconds" in found else ""
    unnamed = any(not _told(role, name) for paths in found.values() for name in paths)
    caption += " Grey: the methods that have no name." if unnamed else ""
    return section(TITLE, figure(inline(picture(found, role), "work"), caption))


def picture(found: Mapping[Measure, Mapping[str, Path]], role: Mapping[str, str]) -> Picture:
    """A panel a measure, a curve a method."""

    def draw(figure: Figure, wide: bool) -> None:
        grid = (1, len(found)) if wide else (len(found), 1)
        for axes, (measure, paths) in zip(figure.subplots(*grid, squeeze=False).flat, found.items(), strict=True):
            size, label = _scale(measure, max(steps[-1][0] for steps in paths.values()))
            for name, steps in paths.items():
                x, y = zip(*((x / size, y) for x, y in steps), strict=True)
                marker = "o" if len(steps) == 1 else ""
                axes.plot(x, y, color=colour(role[name]), marker=marker, lw=1.0 if role[name] == "c6" else 1.7)
            unit(axes)
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(4 if wide else 3))
            _named(axes, {name: steps for name, steps in paths.items() if len(paths) > 1 and _told(role, name)}, role)

    told = "; ".join(
        f"{name} {fraction(steps[-1][1])} after {_amount(measure, steps[-1][0])}"
        for measure, paths in found.items()
        for name, steps in paths.items()
    )
    return Picture(f"Validation accuracy over the clients’ work: {told}.", draw, 280, 250 * len(found))


def _told(role: Mapping[str, str], name: str) -> bool:
    """Whether it has a name at its end: all, or those with a hue where many have none."""
    return role[name] != "c6" or list(role.values()).count("c6") == 1


def _scale(measure: Measure, most: float) -> tuple[float, str]:
    """A unit that makes numbers up to `most` short, and the name of the axis."""
    if measure == "flops":
        power = min(5, max(0, math.floor(math.log10(most) / 3))) if most > 0 else 0
        return 1000**power, f"computation of all clients, {('', 'k', 'M', 'G', 'T', 'P')[power]}FLOP"
    size, name = (3600, "hours") if most >= 3600 else (60, "minutes") if most >= 60 else (1, "seconds")
    return size, f"client-{name}"


def _amount(measure: Measure, value: float) -> str:
    size, name = _scale(measure, value)
    return flops(value) if measure == "flops" else f"{value / size:.3g} {name}"


def _named(axes: Axes, paths: Mapping[str, Path], role: Mapping[str, str], gap: float = 0.085) -> None:
    """Names right of the picture at the heights at which curves end, in their order and apart."""
    ends = sorted((steps[-1][1], name) for name, steps in paths.items())
    free = [value for value, _ in ends]
    for i in range(1, len(free)):
        free[i] = max(free[i], free[i - 1] + gap)
    for i in range(len(free) - 1, -1, -1):
        free[i] = min(free[i], 1 - gap * (len(free) - 1 - i))
    for y, (_, name) in zip(free, ends, strict=True):
        place: Any = {"xycoords": axes.get_yaxis_transform(), "textcoords": "offset points"}
        axes.annotate(shortened(name), (1, y), (8, 0), va="center", color=colour(role[name]), **place)
