"""What the pictures share: curves out of rounds, colours by name, plain axes, names at the ends of lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .alone import BASELINES
from .records import Event
from .svg import HUES, colour

MANY = 60
"""With more clients than this there is no mark per client: curves are sorted, bubbles become a heat map."""

Curve = dict[int, float]


def hues(names: Sequence[str]) -> dict[str, str]:
    """A role per name; the baseline is always grey."""
    others = [name for name in names if name not in BASELINES]
    chosen = {name: HUES[i % (len(HUES) - 1)] for i, name in enumerate(others)}
    return {name: chosen.get(name, "c6") for name in names}


def few(names: Sequence[str]) -> bool:
    """Whether there is a hue for each."""
    return len([name for name in names if name not in BASELINES]) < len(HUES)


def emphasised(names: Sequence[str], marked: Sequence[str]) -> dict[str, str]:
    """A role per name; where the hues do not suffice, only those in `marked` have one and all others are grey."""
    return hues(names) if few(names) else dict.fromkeys(names, "c6") | hues([n for n in marked if n in names])


def validation(rounds: Sequence[Event]) -> tuple[Curve, Curve, Curve]:
    """Lowest, mean and highest validation accuracy of a client, by round. Metrics serve where no client is listed."""
    low, mean, high = {}, {}, {}
    for event in rounds:
        each, overall = event.evaluation.accuracies("validation").values(), event.metrics.validation
        if each:
            low[event.round], mean[event.round], high[event.round] = min(each), fmean(each), max(each)
        elif overall.accuracy is not None:
            mean[event.round] = overall.accuracy
            if overall.worst is not None:
                low[event.round] = overall.worst
    return low, mean, high


def alphas(rounds: Sequence[Event]) -> dict[int, Curve]:
    """Mean alpha of each client by round, in the rounds it took part in."""
    found: dict[int, Curve] = {}
    for event in rounds:
        for client, update in event.updates.items():
            if update.alpha_mean is not None:
                found.setdefault(client, {})[event.round] = update.alpha_mean
    return dict(sorted(found.items()))


def quantiles(found: Mapping[int, Curve], share: float) -> Curve:
    """By round, the value below which `share` of the clients lie. A client not drawn keeps its last value."""
    held: dict[int, float] = {}
    out: Curve = {}
    for r in sorted({r for curve in found.values() for r in curve}):
        held |= {client: curve[r] for client, curve in found.items() if r in curve}
        out[r] = sorted(held.values())[round(share * (len(held) - 1))]
    return out


def shortened(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def xy(curve: Curve) -> tuple[list[int], list[float]]:
    return list(curve), list(curve.values())


def unit(axes: Axes) -> None:
    axes.set_ylim(0, 1.01)
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)


def by_round(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    axes.set_xlabel("round")


def name_clients(axes: Axes, ids: Sequence[int]) -> None:
    step = 1 + len(ids) // 21
    axes.set_xticks(range(0, len(ids), step), [str(i) for i in ids[::step]])
    axes.set_xlim(-0.7, len(ids) - 0.3)
    axes.set_xlabel("client")


def end_labels(axes: Axes, ends: Mapping[str, tuple[Curve, str]], gap: float = 0.075) -> None:
    """A name at the end of each line instead of a legend, moved apart where lines end together."""
    shown = sorted((curve[max(curve)], max(curve), name, role) for name, (curve, role) in ends.items() if curve)
    free = [value for value, *_ in shown]
    for i in range(1, len(free)):
        free[i] = max(free[i], free[i - 1] + gap)
    for i in range(len(free) - 1, -1, -1):
        free[i] = min(free[i], 1 - gap * (len(free) - 1 - i))
    for y, (_, x, name, role) in zip(free, shown, strict=True):
        axes.annotate(shortened(name), (x, y), (8, 0), textcoords="offset points", va="center", color=colour(role))
