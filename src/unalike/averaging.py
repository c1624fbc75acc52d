"""What a server does with what has arrived, when it averages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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


def gather(arrivals: Sequence[Arrival[Any]], branch: str) -> dict[str, Tensor]:
    """Leaves that only some clients send: each name to what was sent under it (m, ...), in the order of the arrivals.

    Raises:
        RunError: names the client whose leaf differs in shape or dtype from the first one of that name.
    """
    sent: dict[str, list[Tensor]] = {}
    for arrival in arrivals:
        for name, leaf in arrival.up.get(branch, {}).items():
            sent.setdefault(name, []).append(leaf)
            require_same_names_and_shapes({name: leaf}, {name: sent[name][0]}, f"client {arrival.info.id}")
    return {name: torch.stack(leaves) for name, leaves in sent.items()}
