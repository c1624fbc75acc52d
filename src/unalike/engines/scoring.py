"""What a round's event says of scores: each client's, and those over the rows of all clients together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..protocol import Arrival
from ..tasks import Task

HELD_OUT = ("validation", "test")
"""The parts of a client's rows that are scored: to choose, and to report."""


def by_part(scores: Mapping[int, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Client to part, or scope, to scores as part to client to scores."""
    parts = dict.fromkeys(part for found in scores.values() for part in found)
    return {part: {str(client): scores[client][part] for client in sorted(scores)} for part in parts}


def mean(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each score; of the number of rows, "n", the sum."""
    return {name: sum(s[name] for s in found) / (1 if name == "n" else len(found)) for name in found[0]}


def together(task: Task, heads: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """As "pooled" the task's scores over the rows of all clients, by part, from the heads of their replies.

    Nothing where they tell no counts.
    """
    counts = [heads[client]["counts"] for client in sorted(heads) if "counts" in heads[client]]
    if not counts:
        return {}
    return {"pooled": {part: task.together(added(found[part] for found in counts)) for part in HELD_OUT}}


def added(counts: Iterable[Mapping[str, Any]]) -> dict[str, Tensor]:
    """The tallies of several clients, as their replies have them, in one; whole numbers stay exact up to 2**53."""
    total: dict[str, Tensor] = {}
    for found in counts:
        for name, listed in found.items():
            count = torch.tensor(listed, dtype=torch.float64)
            total[name] = total[name] + count if name in total else count
    return total


def means(arrivals: Sequence[Arrival[Any]]) -> dict[str, float]:
    """Mean over the round's clients of every metric that all of them sent."""
    names = set.intersection(*(set(a.metrics) for a in arrivals)) if arrivals else set()
    return {name: sum(a.metrics[name] for a in arrivals) / len(arrivals) for name in sorted(names)}
