"""Each client's model on the test rows of others: what is left of it where the data shift at test time."""

from __future__ import annotations

from .html import Html, prose, section, table
from .measured import SCOPES, Scope
from .records import Run
from .units import fraction, points

TITLE = "On whose rows"
NAMES = {
    "others": "all other clients",
    "all": "all clients, its own among them",
    "unseen": "clients that took no part",
    "no-image": "its own, without images",
    "no-text": "its own, without questions",
}


def single(run: Run) -> Html:
    """Nothing where models were scored on their own clients' rows only."""
    scopes = _scopes(run)
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


def about(run: Run, client: int) -> dict[str, str]:
    """The columns of a client; none where nothing was measured."""
    return {f"on {scope}": fraction(s.accuracy.per_client.get(client)) for scope, s in _scopes(run).items()}


def _scopes(run: Run) -> dict[str, Scope]:
    return {name: scope for name, scope in run.summary.scopes.items() if name in SCOPES}


def _told(run: Run) -> str:
    """What the shift costs that is the greatest among those that were scored."""
    own, scopes = run.summary.accuracy.mean, _scopes(run)
    means = {scope: s.accuracy.mean for scope, s in scopes.items() if s.accuracy.mean is not None}
    if own is None or not means:
        return ""
    scope = min(means, key=means.__getitem__)
    gap = own - means[scope]
    does = "loses" if gap >= 0 else "gains"
    return f"Against its own client’s test rows a model {does} {points(gap)} on those of {NAMES.get(scope, scope)}."
