"""How near a run's impressions came to its clients' images, as `unalike audit` has found."""

from __future__ import annotations

from .html import Html, prose, section, table
from .records import Audit, Run
from .units import whole


def audited(run: Run) -> Html:
    """Nothing where the run was not audited."""
    found = run.audit
    if found is None:
        return Html("")
    note = (
        f"{whole(found.train)} training images of all clients and {whole(found.held_out)} held-out ones, put together "
        "for this simulation. Distance: 1 − the largest correlation with a training image over small shifts. Margin: "
        f"that distance in relation to the one to the next training image; below {found.threshold:.2f} it is a copy’s."
    )
    return section(
        "Impressions against the clients’ images",
        prose(found.verdict, class_="verdict"),
        table("Likeness of impressions and of held-out images", _rows(found)),
        prose(note),
        _by_round(found),
    )


def _rows(found: Audit) -> list[dict[str, str]]:
    kinds = {"impressions": found.impressions, "held-out images": found.others}
    names = {"lowest": "lowest", "p1": "1 %", "p5": "5 %", "p50": "median"}
    return [
        {"": f"{measure} of {kind}", **{told: f"{quantiles[measure].get(name, 0):.3f}" for name, told in names.items()}}
        for measure in ("distances", "margins")
        for kind, quantiles in kinds.items()
        if measure in quantiles
    ]


def _by_round(found: Audit) -> Html:
    suspicious = [r for r in found.rounds if r.copies]
    rows = [{"round": str(r.round), "impressions": whole(r.images), "copies": whole(r.copies)} for r in suspicious]
    return table("Rounds with copies", rows) if rows else Html("")
