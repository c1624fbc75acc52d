"""Differences with their intervals about a line at zero."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure

from .axes import shortened
from .svg import Picture, colour
from .units import signed

ABOVE, BELOW, OPEN = "c0", "c1", "c6"
"""Roles of what is above zero with its whole interval, below it, and not settled."""

SHORT = 18
"""Letters of a name for which there is room beside a narrow picture."""


@dataclass(frozen=True)
class Twig:
    """A difference in 0..1, the half-width of its interval, what it was in each seed, and a word beside it."""

    name: str
    mean: float
    half: float | None = None
    each: Sequence[float] = ()
    note: str = ""

    @property
    def role(self) -> str:
        if self.half is None or abs(self.mean) <= self.half:
            return OPEN
        return ABOVE if self.mean > 0 else BELOW

    @property
    def title(self) -> str:
        return f"{self.name} ({self.note})" if self.note else self.name

    @property
    def told(self) -> str:
        return f"{self.title} {signed(self.mean)}" + ("" if self.half is None else f" ± {self.half * 100:.1f}")


def forest(twigs: Sequence[Twig], label: str) -> Picture:
    """From the top in the order given. Filled: the interval excludes 0. Thin strokes: the seeds.

    Long names stand above their line where the picture is narrow.
    """
    long = max(len(twig.name) for twig in twigs) > SHORT

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for y, twig in enumerate(reversed(twigs)):
            ink, settled = colour(twig.role), twig.role != OPEN
            axes.plot([100 * d for d in twig.each], [y] * len(twig.each), "|", color=ink, ms=9, mew=1)
            if twig.half is not None:
                ends = [100 * (twig.mean - twig.half), 100 * (twig.mean + twig.half)]
                axes.plot(ends, [y, y], color=ink, lw=4, alpha=0.4)
            fill = ink if settled else colour("paper")
            axes.plot([100 * twig.mean], [y], "o", mfc=fill, mec=ink, ms=8, mew=1.5)
            beside = (1.01, y) if wide or not long else (0, y + 0.3)
            name = twig.note if wide or not long else shortened(twig.title, 56)
            axes.annotate(name, beside, xycoords=("axes fraction", "data"), va="center", color=colour("soft"))
        axes.axvline(0, color=colour("ink"), lw=1)
        axes.set_ylim(-0.6, len(twigs) - 0.4)
        names = [shortened(t.name, 44 if wide else SHORT) for t in reversed(twigs)] if wide or not long else []
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(label)
        axes.grid(axis="x")
        axes.spines["left"].set_visible(False)

    alt = f"{label[0].upper()}{label[1:]}: {'; '.join(twig.told for twig in twigs)}."
    return Picture(alt, draw, 70 + 28 * len(twigs), 70 + (44 if long else 26) * len(twigs))
