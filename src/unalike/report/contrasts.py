"""Pictures that set methods side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import cycle
from statistics import fmean

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .axes import MANY, Curve, by_round, end_labels, hues, name_clients, shortened, unit, validation, xy
from .paired import ranked
from .records import Method, Run
from .svg import Picture, colour
from .units import fraction, size

MARKS = {"o": "●", "s": "■", "D": "◆", "^": "▲", "v": "▼", "P": "✚", "X": "✖"}
"""matplotlib's markers, and how the legend writes them."""


def averaged(runs: Mapping[str, Sequence[Run]]) -> dict[str, Curve]:
    """Mean validation accuracy per method, over its seeds and the rounds that all of them have."""
    return {name: _average(seeds) for name, several in runs.items() if (seeds := _seeds(several))}


def curves(runs: Mapping[str, Sequence[Run]], role: Mapping[str, str]) -> Picture:
    """Mean validation accuracy per method: thick over the seeds, thin for each seed."""
    means = averaged(runs)

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for name, mean in means.items():
            seeds = _seeds(runs[name])
            for curve in seeds if len(seeds) > 1 else []:
                axes.plot(*xy(curve), color=colour(role[name]), lw=0.7, alpha=0.45)
            axes.plot(*xy(mean), color=colour(role[name]), lw=2, marker="o" if len(mean) == 1 else "")
        unit(axes)
        by_round(axes)
        end_labels(axes, {name: (mean, role[name]) for name, mean in means.items()})

    last = ", ".join(f"{name} {fraction(mean[max(mean)])}" for name, mean in means.items())
    return Picture(f"Mean validation accuracy over rounds, by method. At the end: {last}.", draw, 290, 270)


def clients(scores: Mapping[str, Curve], role: Mapping[str, str]) -> Picture:
    """Per client one mark a method, side by side, about a line from the lowest to the highest."""
    ids = sorted({i for each in scores.values() for i in each})
    if len(ids) > MANY:
        return ordered(scores)

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for x, i in enumerate(ids):
            here = [each[i] for each in scores.values() if i in each]
            axes.vlines(x, min(here), max(here), color=colour("rule"), lw=2)
        for k, (mark, (name, each)) in enumerate(zip(cycle(MARKS), scores.items(), strict=False)):
            aside = 0.6 * ((k + 0.5) / len(scores) - 0.5)
            places = [(x + aside, each[i]) for x, i in enumerate(ids) if i in each]
            axes.plot(*zip(*places, strict=True), mark, color=colour(role[name]), ms=7 if wide else 5.5, mew=0)
        unit(axes)
        name_clients(axes, ids)

    return Picture(f"Test accuracy of {len(ids)} clients with {', '.join(scores)}.", draw)


def ordered(scores: Mapping[str, Curve]) -> Picture:
    """For many clients: each method's accuracies from the lowest to the highest."""
    role = hues(list(scores))
    ranks = {name: dict(enumerate(sorted(each.values()), 1)) for name, each in scores.items() if each}

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for name, curve in ranks.items():
            axes.step(*xy(curve), where="mid", color=colour(role[name]))
        unit(axes)
        axes.set_xlabel("clients, from the lowest accuracy to the highest")
        end_labels(axes, {name: (curve, role[name]) for name, curve in ranks.items()})

    return Picture(f"Test accuracies of the clients in ascending order, for {', '.join(ranks)}.", draw)


def intervals(methods: Sequence[Method], role: Mapping[str, str]) -> Picture:
    """Per method the mean with its interval, and the worst client, from the highest mean to the lowest."""
    done = ranked(methods)[::-1]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for y, m in enumerate(done):
            ink, mean = colour(role[m.method]), m.mean or 0
            if m.worst is not None:
                axes.plot([m.worst, mean], [y, y], color=colour("rule"), lw=1.2)
                axes.plot([m.worst], [y], "o", mfc="none", mec=ink, ms=6)
            if m.ci95 is not None:
                axes.plot([mean - m.ci95, mean + m.ci95], [y, y], color=ink, lw=4, alpha=0.4)
            axes.plot([mean], [y], "o", color=ink, ms=8, mew=0)
        axes.set(xlim=(0, 1.01), ylim=(-0.6, len(done) - 0.4))
        axes.set_yticks(range(len(done)), [shortened(m.method) for m in done])
        axes.set_xlabel("test accuracy")
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    told = "; ".join(f"{m.method} {fraction(m.mean)}, worst client {fraction(m.worst)}" for m in done[::-1])
    return Picture(f"Mean and worst test accuracy: {told}.", draw, 70 + 30 * len(done), 70 + 28 * len(done))


def traffic(methods: Sequence[Method]) -> Picture:
    """Bytes up and down of each method, to the right and to the left of one axis."""
    done = ranked(methods)[::-1]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        places = list(range(len(done)))
        axes.barh(places, [m.bytes_up or 0 for m in done], 0.55, color=colour("c0"), alpha=0.85, lw=0)
        axes.barh(places, [-(m.bytes_down or 0) for m in done], 0.55, color=colour("c5"), alpha=0.85, lw=0)
        axes.axvline(0, color=colour("soft"), lw=0.8)
        axes.set_yticks(places, [shortened(m.method) for m in done])
        axes.set_ylim(-0.6, len(done) - 0.4)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: size(abs(value))))
        axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 3))
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    told = "; ".join(f"{m.method} {size(m.bytes_up)} up, {size(m.bytes_down)} down" for m in done[::-1])
    return Picture(f"Traffic of each method: {told}.", draw, 60 + 30 * len(done), 60 + 28 * len(done))


def _seeds(several: Sequence[Run]) -> list[Curve]:
    return [curve for run in several if (curve := validation(run.rounds)[1])]


def _average(several: Sequence[Curve]) -> Curve:
    """Over the rounds all have."""
    common = sorted(set.intersection(*(set(curve) for curve in several)))
    return {r: fmean(curve[r] for curve in several) for r in common}
