"""What a server does with what has arrived, when it averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .errors import RunError
from .protocol import Arrival
from .tree import require_same_names_and_shapes, weighted_mean


def average(arrivals: Sequence[Arrival[Any]], branch: str) -> dict[str, Any]:
    """Σ n_k x_k / Σ n_k of one branch of what the clients sent, n_k their weights.

    Raises:
        RunError: names the client whose leaves differ from the first one's, or the clients when no weight is positive.
    """
    for arrival in arrivals:
        require_same_names_and_shapes(arrival.up[branch], arrivals[0].up[branch], f"client {arrival.info.id}")
    if not sum(arrival.weight for arrival in arrivals) > 0:
        raise RunError(f"clients {', '.join(str(a.info.id) for a in arrivals)} sent no positive weight to average by")
    return weighted_mean([arrival.up[branch] for arrival in arrivals], [arrival.weight for arrival in arrivals])
