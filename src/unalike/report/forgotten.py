"""What the global model forgets by one client's training, round by round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.figure import Figure

from .axes import MANY, Curve, by_round, xy
from .html import Html, figure, prose, section
from .records import Event, Run
from .svg import Picture, colour, inline
from .units import fraction, points

TITLE = "What the global model forgets"


def single(run: Run) -> Html:
    """Nothing where it was not measured."""
    found = curves(run.rounds)
    if not found:
        return Html("")
    caption = (
        "Accuracy on the test rows of all other clients together that the global model loses while one client trains "
        "it: before minus after. Thick: the mean over the clients that trained in the round. "
    )
    caption += "Band: from the lowest client to the highest." if len(found) > MANY else "Thin: each client."
    drawing = figure(inline(forgetting(found), "forgetting"), f"{caption} Below 0 the others gain.")
    return section(TITLE, prose(_told(run)) if run.summary.forgetting else "", drawing)


def curves(rounds: Sequence[Event]) -> dict[int, Curve]:
    """Client to its forgetting on test, by the rounds in which it was measured."""
    found: dict[int, Curve] = {}
    for event in rounds:
        for client, value in event.forgetting.test.items():
            found.setdefault(client, {})[event.round] = value
    return dict(sorted(found.items()))


def about(run: Run, client: int) -> dict[str, str]:
    """The column of a client; none where nothing was measured."""
    found = run.summary.forgetting
    return {"forgetting": fraction(found.per_client.get(client))} if found else {}


def forgetting(found: Mapping[int, Curve]) -> Picture:
    """By round: each client, or the band that all are in, and their mean."""
    rounds = sorted({r for curve in found.values() for r in curve})
    each = {r: [curve[r] for curve in found.values() if r in curve] for r in rounds}
    mean = {r: fmean(values) for r, values in each.items()}

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        if len(found) > MANY:
            low, high = [min(each[r]) for r in rounds], [max(each[r]) for r in rounds]
            axes.fill_between(rounds, low, high, color=colour("c0"), alpha=0.16, lw=0)
        else:
            for curve in found.values():
                axes.plot(*xy(curve), color=colour("c0"), lw=0.8, alpha=0.5, marker="." if len(curve) == 1 else "")
        axes.plot(*xy(mean), color=colour("c0"), lw=2.2, marker="o" if len(mean) == 1 else "")
        axes.axhline(0, color=colour("ink"), lw=0.8)
        axes.grid(axis="y")
        by_round(axes)

    ends = f"{fraction(mean[rounds[0]])} in round {rounds[0]} and {fraction(mean[rounds[-1]])} in round {rounds[-1]}"
    return Picture(f"Forgetting of {len(found)} clients over rounds; its mean is {ends}.", draw, 260, 230)


def _told(run: Run) -> str:
    found = run.summary.forgetting
    if found is None or found.mean is None:
        return ""
    when = f"the {len(found.rounds)} measured rounds of the second half" if len(found.rounds) > 1 else "the last round"
    does = "lowers" if found.mean >= 0 else "raises"
    told = f"One client’s training {does} the global model’s accuracy on all others’ rows by {points(found.mean)}"
    most = max(found.per_client, key=found.per_client.__getitem__, default=None)
    worst = 0.0 if most is None else found.per_client[most]
    who = f"; the most does client {most}’s, by {points(worst)}" if worst > 0 else ""
    return f"{told}, mean over clients and {when}{who}."
