"""Pictures for more methods than there are hues: each is set against one, the reference or else the best."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .axes import Curve, name_clients, shortened, xy
from .forest import ABOVE, BELOW
from .svg import Picture, colour
from .units import fraction

NUMBERS_WIDE, NUMBERS_NARROW = 20, 10
"""Up to so many clients the squares have their number in them."""

INKS = {ABOVE: (0.0, 0.447, 0.698), BELOW: (0.835, 0.369, 0.0)}
"""The hues of the light theme; their opacity says how much, so they lie on either paper."""


def panels(means: Mapping[str, Curve], against: str) -> Picture:
    """A small picture per method on one scale: its curve, and grey the curve it is set against."""
    values = [value for curve in means.values() for value in curve.values()]
    low, high = math.floor(10 * min(values)) / 10, math.ceil(10 * max(values)) / 10

    def rows(columns: int) -> int:
        return math.ceil(len(means) / columns)

    def draw(figure: Figure, wide: bool) -> None:
        columns = 5 if wide else 3
        grid = list(figure.subplots(rows(columns), columns, sharex=True, sharey=True, squeeze=False).flat)
        for axes, (name, mean) in zip(grid, means.items(), strict=False):
            if name != against:
                axes.plot(*xy(means[against]), color=colour("c6"), lw=1.2)
            axes.plot(*xy(mean), color=colour("c0" if name == against else "c1"), marker="o" if len(mean) == 1 else "")
            axes.set_title(f"{shortened(name, 16 if wide else 11)} {fraction(mean[max(mean)])}", fontsize=11)
            axes.set_ylim(low, high)
            axes.grid(axis="y")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(nbins=4))
        for axes in grid[len(means) :]:
            axes.set_axis_off()

    last = ", ".join(f"{name} {fraction(mean[max(mean)])}" for name, mean in means.items())
    alt = f"Mean validation accuracy over rounds, a small picture for each method. At the end: {last}."
    return Picture(alt, draw, 30 + 112 * rows(5), 30 + 104 * rows(3))


def squares(scores: Mapping[str, Curve], against: str) -> Picture:
    """Methods by clients: how many points each client gains (blue) or loses (orange) against `against`."""
    base = scores[against]
    ids = sorted(base)
    others = [name for name in scores if name != against]
    gains = [[scores[name][i] - base[i] if i in scores[name] else None for i in ids] for name in others]
    most = max((abs(gain) for row in gains for gain in row if gain is not None), default=0) or 1

    def cell(gain: float | None) -> tuple[float, ...]:
        return (*INKS[ABOVE if (gain or 0) > 0 else BELOW], 0.85 * abs(gain or 0) / most)

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        axes.imshow([[cell(gain) for gain in row] for row in gains], aspect="auto", interpolation="none")
        if len(ids) <= (NUMBERS_WIDE if wide else NUMBERS_NARROW):
            for y, row in enumerate(gains):
                for x, gain in enumerate(row):
                    told = "–" if gain is None else f"{100 * gain:+.0f}".replace("-", "−").replace("+0", "0")
                    axes.text(x, y, told.replace("−0", "0"), ha="center", va="center", fontsize=11 if wide else 9)
        name_clients(axes, ids)
        axes.set_xlim(-0.5, len(ids) - 0.5)
        axes.set_yticks(range(len(others)), [shortened(name, 18 if wide else 12) for name in others])
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)

    alt = f"Points of test accuracy that each of {len(ids)} clients gains or loses against {against}, for "
    height = 60 + 24 * len(others)
    return Picture(f"{alt}{', '.join(others)}; at most {100 * most:.0f} points.", draw, height, height)
