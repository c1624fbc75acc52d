"""From finished cells to the lines of compare.json: over seeds, against the reference, against standalone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .. import summary
from ..report.alone import BASELINES
from .cells import Cell, Cells
from .spec import Comparison

REACHES = 0.95
"""The share of the reference's validation accuracy that is the target where none is given."""

NEARLY = 0.9
"""The share of its own last validation accuracy that a run is nearly done at: the sooner, the faster it learns."""


def lines(asked: Comparison, cells: Cells, reported: Mapping[str, Sequence[Cell]], trials: int) -> list[dict[str, Any]]:
    """A line for each method that has begun; `reported` holds its cells, a seed each, as far as they are known."""
    summaries = {
        label: {cell.seed: line["summary"] for cell in own if (line := cells.done(cell))}
        for label, own in reported.items()
    }
    target = asked.target or _within_reach(summaries.get(asked.judged, {}))
    alone = next((summaries[n] for n, own in asked.methods.items() if own["method"] in BASELINES), {})
    found = []
    for label, own in reported.items():
        reasons = list(dict.fromkeys(filter(None, map(cells.failed, own))))
        by_seed = summaries[label]
        finished = [cell for cell in own if cell.seed in by_seed]
        if not by_seed and not reasons:
            continue
        line = summary.over_seeds(label, [by_seed[s] for s in sorted(by_seed)], "; ".join(reasons))
        if not reasons and len(by_seed) < len(asked.seeds):
            line["status"] = "running"
        found.append(
            line
            | {"seeds": sorted(by_seed) or list(asked.seeds)}
            | {"runs": [cell.run for cell in finished]}
            | {"chosen": dict(own[0].chosen) if own else {}, "trials": trials}
            | {"difference": _difference(label, summaries, asked.judged, _accuracy)}
            | {"balanced_difference": _difference(label, summaries, asked.judged, _balanced)}
            | {"beats_standalone": _ahead(by_seed, alone)}
            | {"target": _until(cells, finished, target)}
            | {"rounds_to_90": _nearly(cells, finished)}
        )
    return found


def _within_reach(by_seed: Mapping[int, Mapping[str, Any]]) -> float | None:
    if not by_seed:
        return None
    return round(REACHES * summary.average(s["validation"]["accuracy"]["mean"] for s in by_seed.values()), 3)


def _accuracy(found: Mapping[str, Any]) -> float | None:
    """Mean over clients."""
    return float(found["accuracy"]["mean"])


def _balanced(found: Mapping[str, Any]) -> float | None:
    """Over all clients' rows together, where they were counted."""
    known: float | None = found.get("pooled", {}).get("balanced_accuracy")
    return known


def _difference(
    label: str,
    summaries: Mapping[str, Mapping[int, Mapping[str, Any]]],
    reference: str,
    of: Callable[[Mapping[str, Any]], float | None],
) -> dict[str, Any] | None:
    if label == reference:
        return None
    ours, theirs = (
        {seed: value for seed, s in summaries.get(name, {}).items() if (value := of(s)) is not None}
        for name in (label, reference)
    )
    return summary.difference(ours, theirs, reference)


def _ahead(by_seed: Mapping[int, Mapping[str, Any]], alone: Mapping[int, Mapping[str, Any]]) -> float | None:
    """The share of clients for whom the method beats training alone; None where that was not run."""
    both = sorted(by_seed.keys() & alone.keys())
    if not both or by_seed is alone:
        return None
    clients = [[s[seed]["accuracy"]["per_client"] for s in (by_seed, alone)] for seed in both]
    return summary.average(summary.share_ahead(ours, theirs) for ours, theirs in clients)


def _until(cells: Cells, own: Sequence[Cell], accuracy: float | None) -> dict[str, Any] | None:
    """Bytes and rounds until the target, over the seeds that reached it."""
    if accuracy is None or not own:
        return None
    reached = [found for cell in own if (found := summary.until(cells.events(cell), accuracy))]
    rounds, sent = ([float(f[i]) for f in reached] for i in (0, 1))
    return {
        "accuracy": accuracy,
        "bytes": summary.average(sent) if reached else None,
        "rounds": summary.average(rounds) if reached else None,
        "reached": len(reached),
        "seeds": len(own),
    }


def _nearly(cells: Cells, own: Sequence[Cell]) -> dict[str, Any] | None:
    """Rounds until `NEARLY` of the own end, over seeds; None where a run was scored only once."""
    rounds = [found for cell in own if (found := summary.rounds_to(cells.events(cell), NEARLY))]
    return summary.with_interval([float(r) for r in rounds]) if rounds and len(rounds) == len(own) else None
