"""The pictures of one run. Each function returns a Picture: what it shows in words, and how it is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from .axes import (
    MANY,
    Curve,
    alphas,
    by_round,
    end_labels,
    hues,
    name_clients,
    quantiles,
    shortened,
    unit,
    validation,
    xy,
)
from .contrasts import ordered
from .records import Client, Event, Partition, Run
from .svg import NARROW, WIDE, Picture, colour
from .units import fraction, size, whole


def accuracy(run: Run, other: Run | None) -> Picture:
    """Validation accuracy over rounds: the mean, the band between the worst and the best client, the chosen round."""
    low, mean, high = validation(run.rounds)
    rival = validation(other.rounds)[1] if other else {}
    chosen = run.summary.selected_round

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        both = sorted(low.keys() & high.keys())
        axes.fill_between(both, [low[r] for r in both], [high[r] for r in both], color=colour("c0"), alpha=0.14, lw=0)
        if other and rival:
            axes.plot(*xy(rival), color=colour("soft"), lw=1.2, ls=(0, (4, 2)))
        axes.plot(*xy(mean), color=colour("c0"), marker="o" if len(mean) == 1 else "")
        if chosen in mean:
            axes.plot([chosen], [mean[chosen]], "o", color=colour("c0"), ms=7)
            axes.axvline(chosen, color=colour("soft"), lw=0.8, ls=(0, (1, 2)))
            axes.annotate(f"round {chosen}", (chosen, 0.02), (-5, 0), textcoords="offset points", ha="right")
        ends = {"best client": (high, "soft"), "mean": (mean, "c0"), "worst client": (low, "soft")}
        if other and rival:
            ends[f"{other.algorithm}, mean"] = (rival, "soft")
        unit(axes)
        by_round(axes)
        end_labels(axes, ends)

    known = {"mean": mean, "worst client": low, "best client": high}
    told = [f"the {name} {fraction(curve[max(curve)])}" for name, curve in known.items() if curve]
    alt = f"Validation accuracy over rounds. At round {max(mean)}: {', '.join(told)}."
    return Picture(alt, draw, height=290, narrow_height=250)


def clients(run: Run, other: Run | None) -> Picture:
    """A bar per client, and a stroke across it where the other run has the same client."""
    scores = run.summary.accuracy
    ours, theirs = scores.per_client, other.summary.accuracy.per_client if other else {}
    if len(ours) > MANY:
        return ordered({run.algorithm: ours, **({other.algorithm: theirs} if other else {})})

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        ids = sorted(ours)
        lost = [ours[i] < theirs.get(i, 0) for i in ids]
        places = list(range(len(ids)))
        fills = [colour("c1" if bad else "c0") for bad in lost]
        axes.bar(places, [ours[i] for i in ids], width=0.62, color=fills, alpha=0.8, lw=0)
        for x, i in enumerate(ids):
            if i in theirs:
                axes.hlines(theirs[i], x - 0.42, x + 0.42, color=colour("ink"), lw=2)
        unit(axes)
        name_clients(axes, ids)

    alt = f"Test accuracy of {len(ours)} clients, from {fraction(scores.worst)} to {fraction(max(ours.values()))}."
    return Picture(alt, draw)


def partition(drawn: Partition) -> Picture:
    """Training rows of each class at each client: bubbles by area, or a heat map for many."""
    names = [shortened(name) for name in drawn.classes]
    rows = [list(client.labels) + [0] * (len(names) - len(client.labels)) for client in drawn.clients]
    most = max((n for row in rows for n in row), default=0) or 1
    heat = dense(drawn)
    height = min(560, 70 + (10 if heat else 23) * max(len(names), 8))

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        if heat:
            cells = [[(0.0, 0.447, 0.698, (row[c] / most) ** 0.5) for row in rows] for c in range(len(names))]
            axes.imshow(cells, aspect="auto", interpolation="none")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        else:
            reach = 0.92 * min(((WIDE if wide else NARROW) - 80) / len(rows), 23)
            spots = [(x, y, n) for x, row in enumerate(rows) for y, n in enumerate(row) if n]
            x, y, n = zip(*spots, strict=True) if spots else ((), (), ())
            axes.scatter(x, y, s=[reach**2 * i / most for i in n], color=colour("c0"), alpha=0.75, lw=0)
            axes.set(xlim=(-0.7, len(rows) - 0.3), ylim=(len(names) - 0.4, -0.6))
            name_clients(axes, [client.id for client in drawn.clients])
            for side in ("left", "bottom"):
                axes.spines[side].set_visible(False)
            axes.grid(color=colour("rule"), lw=0.5)
        step = math.ceil(14 * len(names) / (height - 60))
        axes.set_yticks(range(0, len(names), step), names[::step])
        axes.set_xlabel("client")

    alt = f"Training rows of {len(names)} classes at {len(rows)} clients; the largest cell has {whole(most)} rows."
    return Picture(alt, draw, height, height)


def dense(drawn: Partition) -> bool:
    """Whether bubbles would be too small to see."""
    return len(drawn.clients) > MANY or len(drawn.classes) > 30


def alpha(rounds: Sequence[Event], members: Sequence[Client]) -> Picture:
    """Mean alpha per client, coloured by tier, on the whole scale; enlarged beside it when all lie close together."""
    found = alphas(rounds)
    tiers = {client.id: client.tier for client in members}
    role = hues(sorted(set(tiers.values())))
    values = [a for curve in found.values() for a in curve.values()]
    low, high = min(values), max(values)
    close = 1e-3 < high - low < 0.25

    def draw(figure: Figure, wide: bool) -> None:
        grid = ((1, 2) if wide else (2, 1)) if close else (1, 1)
        panels = list(figure.subplots(*grid, squeeze=False).flat)
        for axes in panels:
            if len(found) > MANY:
                _bands(axes, found)
            else:
                for client, curve in found.items():
                    axes.plot(*xy(curve), color=colour(role.get(tiers.get(client, ""), "c0")), lw=1.3, alpha=0.85)
            axes.grid(axis="y")
            by_round(axes)
        panels[0].set(ylim=(-0.01, 1.01), title="mean alpha")
        if close:
            panels[1].set(title="the same, enlarged")
            panels[0].set_xlabel("round" if wide else "")

    last = [curve[max(curve)] for curve in found.values()]
    ends = f"{fraction(min(last))} and {fraction(max(last))}"
    alt = f"Mean alpha of {len(found)} clients over rounds; at the end it lies between {ends}."
    return Picture(alt, draw, 270, 430 if close else 240)


def traffic(rounds: Sequence[Event]) -> Picture:
    """Bytes up (above zero) and down (below), per round and cumulated; seconds per round."""
    at = [event.round for event in rounds]
    up, down = [event.bytes_up for event in rounds], [-event.bytes_down for event in rounds]
    moved = any(up) or any(down)

    def draw(figure: Figure, wide: bool) -> None:
        panels = 3 if moved else 1
        axes = list(figure.subplots(*((1, panels) if wide else (panels, 1)), squeeze=False).flat)
        if moved:
            _mirrored(axes[0], at, up, down, "per round")
            _mirrored(axes[1], at, list(accumulate(up)), list(accumulate(down)), "cumulated")
        _columns(axes[-1], at, [event.seconds for event in rounds], "c6")
        axes[-1].set_title("seconds per round")
        axes[-1].grid(axis="y")
        for each in axes:
            by_round(each)
            if not wide and each is not axes[-1]:
                each.set_xlabel("")

    alt = f"Traffic and time over {len(at)} rounds: {size(sum(up))} up and {size(-sum(down))} down in all."
    return Picture(alt, draw, 240, 560 if moved else 200)


def _bands(axes: Axes, found: Mapping[int, Curve]) -> None:
    """The median over clients, the middle half, and all but the outer tenths."""
    for share in (0.1, 0.25):
        low, high = quantiles(found, share), quantiles(found, 1 - share)
        axes.fill_between(list(low), list(low.values()), list(high.values()), color=colour("c0"), alpha=0.16, lw=0)
    axes.plot(*xy(quantiles(found, 0.5)), color=colour("c0"))


def _columns(axes: Axes, at: Sequence[int], values: Sequence[float], role: str) -> None:
    """Bars, or one stepped area where there are too many to tell apart."""
    if len(at) > 40:
        axes.fill_between(at, values, step="mid", color=colour(role), alpha=0.85, lw=0)
    else:
        axes.bar(at, values, width=0.7, color=colour(role), alpha=0.85, lw=0)


def _mirrored(axes: Axes, at: Sequence[int], up: Sequence[float], down: Sequence[float], title: str) -> None:
    _columns(axes, at, up, "c0")
    _columns(axes, at, down, "c5")
    axes.axhline(0, color=colour("soft"), lw=0.8)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: size(abs(value))))
    axes.set_title(f"{title}: up above, down below")
    axes.grid(axis="y")
