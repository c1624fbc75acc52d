"""Each client's model on the test rows of others, and on its own seen in other ways than that in which it predicts."""

from __future__ import annotations

from collections.abc import Sequence

from .html import Html, prose, section, table
from .measured import SCOPES, VIEWS, Scope
from .records import Run
from .units import fraction, points

TITLE, SEEN = "On whose rows", "What each part does alone"
PARTS = {"local": "its own part alone", "shared": "the shared part alone"}
NAMES = {
    "others": "all other clients",
    "all": "all clients, its own among them",
    "unseen": "clients that took no part",
    "no-image": "its own, without images",
    "no-text": "its own, without questions",
}


def single(run: Run) -> Html:
    """Nothing where models were scored on their own clients' rows only."""
    scopes = _among(run, SCOPES)
    if not scopes:
        return Html("")
    own = run.summary.accuracy
    found = {"its own": (own.mean, own.worst)}
    found |= {NAMES.get(scope, scope): (s.accuracy.mean, s.accuracy.worst) for scope, s in scopes.items()}
    rows = [
        {"test rows of": whose, "mean over models": fraction(mean), "worst model": fraction(worst)}
        for whose, (mean, worst) in found.items()
    ]
    caption = "Accuracy of each client’s model, at the chosen round. Each client whose rows are predicted counts once."
    return section(
        TITLE, prose(_told(run)), table(TITLE, rows, words=("test rows of",)), prose(caption, class_="after")
    )


def views(run: Run) -> Html:
    """Nothing where a model is seen in one way only."""
    found = _among(run, VIEWS)
    if not found:
        return Html("")
    own = run.summary.accuracy
    scores = {"both together": (own.mean, own.worst)}
    scores |= {PARTS.get(name, name): (s.accuracy.mean, s.accuracy.worst) for name, s in found.items()}
    rows = [
        {"predicted with": what, "mean over clients": fraction(mean), "worst client": fraction(worst)}
        for what, (mean, worst) in scores.items()
    ]
    caption = "Accuracy on each client’s own test rows, at the chosen round: what stays, what is shared, and both."
    return section(SEEN, table(SEEN, rows, words=("predicted with",)), prose(caption, class_="after"))


def about(run: Run, client: int) -> dict[str, str]:
    """The columns of a client; none where nothing was measured."""
    told = {f"on {scope}": s for scope, s in _among(run, SCOPES).items()}
    told |= {f"{name} alone": s for name, s in _among(run, VIEWS).items()}
    return {column: fraction(s.accuracy.per_client.get(client)) for column, s in told.items()}


def _among(run: Run, names: Sequence[str]) -> dict[str, Scope]:
    return {name: scope for name, scope in run.summary.scopes.items() if name in names}


def _told(run: Run) -> str:
    """What the shift costs that is the greatest among those that were scored."""
    own, scopes = run.summary.accuracy.mean, _among(run, SCOPES)
    means = {scope: s.accuracy.mean for scope, s in scopes.items() if s.accuracy.mean is not None}
    if own is None or not means:
        return ""
    scope = min(means, key=means.__getitem__)
    gap = own - means[scope]
    does = "loses" if gap >= 0 else "gains"
    return f"Against its own client’s test rows a model {does} {points(gap)} on those of {NAMES.get(scope, scope)}."
