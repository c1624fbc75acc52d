"""Each part of a client's model alone, beside the whole: what stays at the client, what is shared, and both."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

from matplotlib.figure import Figure

from .axes import Curve, by_round, end_labels, unit, xy
from .html import Html, figure, prose, section, table
from .measured import VIEWS
from .records import Run
from .svg import Picture, colour, inline
from .units import fraction, listing

TITLE, WHOLE = "What each part does alone", "both together"
PARTS = {"local": "its own part alone", "shared": "the shared part alone"}
ROLES = {"test": "c0", "local": "c1", "shared": "c2"}


def single(run: Run) -> Html:
    """Nothing where a model is seen in one way only."""
    found = {name: run.summary.scopes[name].accuracy for name in VIEWS if name in run.summary.scopes}
    if not found:
        return Html("")
    scores = {WHOLE: (run.summary.accuracy.mean, run.summary.accuracy.worst)}
    scores |= {PARTS[name]: (accuracy.mean, accuracy.worst) for name, accuracy in found.items()}
    rows = [
        {"predicted with": what, "mean over clients": fraction(mean), "worst client": fraction(worst)}
        for what, (mean, worst) in scores.items()
    ]
    caption = "Accuracy on each client’s own test rows, at the round chosen on validation."
    drawn = curves(run)
    over = "Mean over clients of the accuracy on their own test rows, by round; no round is chosen by it."
    drawing = figure(inline(parts(drawn), "views"), over) if drawn else ""
    return section(TITLE, table(TITLE, rows, words=("predicted with",)), prose(caption, class_="after"), drawing)


def about(run: Run, client: int) -> dict[str, str]:
    """The columns of a client; none where nothing was measured."""
    found = {name: run.summary.scopes[name] for name in VIEWS if name in run.summary.scopes}
    return {f"{name} alone": fraction(s.accuracy.per_client.get(client)) for name, s in found.items()}


def curves(run: Run) -> dict[str, Curve]:
    """ "test", "local" and "shared" to the mean accuracy over clients by round; nothing without the latter two."""
    found: dict[str, Curve] = {name: {} for name in ROLES}
    for event in run.rounds:
        each = {name: event.evaluation.accuracies(name).values() for name in ROLES}
        if all(each.values()):
            for name, values in each.items():
                found[name][event.round] = fmean(values)
    return found if found["test"] else {}


def parts(found: Mapping[str, Curve]) -> Picture:
    """A line for the whole, and one for each part."""
    names = {"test": "both", "local": "local", "shared": "shared"}

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        for name, curve in found.items():
            axes.plot(*xy(curve), color=colour(ROLES[name]), lw=1.8, marker="o" if len(curve) == 1 else "")
        end_labels(axes, {names[name]: (curve, ROLES[name]) for name, curve in found.items()})
        unit(axes)
        by_round(axes)

    ends = [f"{names[name]} {fraction(curve[max(curve)])}" for name, curve in found.items()]
    return Picture(f"Accuracy of each part over rounds; it ends at {listing(ends)}.", draw, 260, 230)
