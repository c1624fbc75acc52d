"""What a server does with what has arrived, when it averages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from . import tree
from .errors import RunError
from .models.narrow import Places, mesh
from .protocol import Arrival
from .tree import Tree, require_same_names_and_shapes, weighted_mean


def average(arrivals: Sequence[Arrival[Any]], branch: str) -> dict[str, Any]:
    """Σ n_k x_k / Σ n_k of one branch of what the clients sent, n_k their weights.

    Raises:
        RunError: names the client whose leaves differ from the first one's, or the clients when no weight is positive.
    """
    _total(arrivals)
    for arrival in arrivals:
        require_same_names_and_shapes(arrival.up[branch], arrivals[0].up[branch], f"client {arrival.info.id}")
    return weighted_mean([arrival.up[branch] for arrival in arrivals], [arrival.weight for arrival in arrivals])


def summed(arrivals: Sequence[Arrival[Any]], branch: str) -> dict[str, Any]:
    """Σ x_k of one branch of what the clients sent, whatever their weights.

    Raises:
        RunError: names the client whose leaves differ from the first one's.
    """
    sent = [arrival.up[branch] for arrival in arrivals]
    for arrival in arrivals:
        require_same_names_and_shapes(arrival.up[branch], sent[0], f"client {arrival.info.id}")
    return tree.map_leaves(lambda *leaves: sum(leaf.double() for leaf in leaves).to(leaves[0].dtype), *sent)


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


def average_held(
    arrivals: Sequence[Arrival[Any]], branch: str, whole: Tree, places: Callable[[Arrival[Any]], Mapping[str, Places]]
) -> dict[str, Any]:
    """Σ n_k x_k / Σ n_k for each element over the clients k that hold it; what nobody holds stays as in `whole`.

    Args:
        places: which leaves of `whole` a client holds, and where in them lies what it has sent of them.

    Where all clients hold everything this is `average`, bit for bit.

    Raises:
        RunError: names the client whose leaves are not those it holds, or the clients when no weight is positive.
    """
    flat, total = tree.flatten(whole), _total(arrivals)
    sums = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in flat.items()}
    held = {name: torch.zeros_like(leaf, dtype=torch.float64) for name, leaf in flat.items()}
    for arrival in arrivals:
        where, sent = places(arrival), tree.flatten(arrival.up[branch])
        require_same_names_and_shapes(arrival.up[branch], _expected(flat, where), f"client {arrival.info.id}")
        for name, x in sent.items():
            at = mesh(where[name]) if where[name] else ...
            sums[name][at] = torch.add(sums[name][at], x, alpha=arrival.weight / total)
            held[name][at] += arrival.weight
    return tree.unflatten({name: _settled(sums[name], total, held[name], leaf) for name, leaf in flat.items()})


def _settled(sums: Tensor, total: float, held: Tensor, before: Tensor) -> Tensor:
    mean = sums * (total / held)
    return torch.where(held > 0, mean if before.is_floating_point() else mean.round(), before).to(before.dtype)


def _expected(whole: tree.Flat, where: Mapping[str, Places]) -> Tree:
    """The leaves that a client has to send, on the meta device."""
    shapes = {name: [len(positions) for positions in found] or whole[name].shape for name, found in where.items()}
    meta = {n: torch.empty(shape, dtype=whole[n].dtype, device="meta") for n, shape in shapes.items()}
    return tree.unflatten(meta)


def _total(arrivals: Sequence[Arrival[Any]]) -> float:
    if not arrivals:
        raise RunError("nobody took part: no client that is there has the memory for it")
    total = float(sum(arrival.weight for arrival in arrivals))
    if not total > 0:
        raise RunError(f"clients {', '.join(str(a.info.id) for a in arrivals)} sent no positive weight to average by")
    return total
