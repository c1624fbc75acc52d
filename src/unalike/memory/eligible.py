"""Who takes part under memory budgets: the best of some levels that a client holds, and a draw among those that fit.

A level is whatever a method trains at a client: a width, a depth, a step. Needs and budgets are in bytes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from ..errors import InputError, NobodyFitsError
from ..protocol import ClientInfo
from ..rng import Key

Level = TypeVar("Level")

MANY = 32
"""Rows that a client with a budget evaluates at once where it holds them easily."""
FEW = 8
"""Most rows that it evaluates at once otherwise."""


def fits(client: ClientInfo, need: Callable[[], int]) -> bool:
    """Whether the client's memory holds `need()` bytes. Without a budget it holds everything, and none is asked for."""
    return client.memory is None or need() <= client.memory


def best(client: ClientInfo, levels: Iterable[Level], need: Callable[[Level], int]) -> Level | None:
    """The first of `levels`, the best first, whose need the client's memory holds; None where it holds none.

    Needs are asked for in turn and no further than that: of a client without a budget none is.
    """
    return next((level for level in levels if fits(client, functools.partial(need, level))), None)


def rows_at_once(client: ClientInfo, need: Callable[[int], int]) -> int | None:
    """How many rows a client evaluates at once: with a budget the most that it holds, at least one.

    `MANY` only where its memory holds the weights once more: it may be given more of them than `need` knows of. None is
    any number, for a client without a budget. `need` is asked for two rows at least: one is no batch to normalise by.
    """
    if client.memory is None:
        return None
    if need(MANY) + need(FEW // 4) <= client.memory:
        return MANY
    return best(client, (FEW, FEW // 2, FEW // 4), need) or 1


def in_parts(function: Callable[[Tensor], Tensor], x: Tensor, rows: int | None) -> Tensor:
    """`function(x)` (B, ...), which takes each row by itself, for so many `rows` at once.

    While a model is being exported all pass at once: then they are any number.
    """
    if rows is None or torch.compiler.is_compiling():
        return function(x)
    return torch.cat([function(part) for part in torch.split(x, rows)])


def instead(
    drawn: Sequence[ClientInfo], clients: Sequence[ClientInfo], takes_part: Callable[[ClientInfo], bool], key: Key
) -> Sequence[ClientInfo]:
    """As many clients as were `drawn` uniformly, uniformly among those that take part; all of these if they are fewer.

    Kept are those of `drawn` that take part: when all do, this is `drawn` itself. The others are replaced by drawing on
    from `clients`, which may be lazy and have a million members. By ascending id.
    """
    found = [client for client in drawn if takes_part(client)]
    if len(found) == len(drawn):
        return drawn
    asked = {client.id for client in drawn}
    for position in _shuffled(len(clients), key / "instead"):
        if len(found) == len(drawn):
            break
        client = clients[position]
        if client.id not in asked and takes_part(client):
            found.append(client)
    return sorted(found, key=lambda client: client.id)


def _shuffled(n: int, key: Key) -> Iterator[int]:
    """0 to n - 1 in random order, drawn as they are asked for: Fisher and Yates, with only what has moved in memory."""
    generator, moved = key.numpy(), dict[int, int]()
    for last in range(n - 1, -1, -1):
        at = int(generator.integers(last + 1))
        yield moved.get(at, at)
        moved[at] = moved.pop(last, last)


def require_prediction(method: str, clients: Sequence[ClientInfo], need: Callable[[], int]) -> None:
    """Raise `InputError` naming the first client whose memory does not hold what it takes to predict a row.

    It would end the run when it is scored, and could make no use of the model.
    """
    for client in clients:
        if not fits(client, need):
            raise InputError(
                f"{method}: to predict with the whole model takes {need() / 2**20:.2f} MiB, and client {client.id} has "
                f"{(client.memory or 0) / 2**20:.2f} MiB: leave such clients out, or take a narrower model"
            )


def require_some(
    method: str,
    clients: Sequence[ClientInfo],
    need: Callable[[], int],
    what: str,
    remedy: str = "take smaller batches or a narrower model",
) -> None:
    """Raise `NobodyFitsError` naming need and largest budget unless some client's memory holds what `what` needs.

    `need` is not asked for when there is a client without a budget.
    """
    if any(fits(client, need) for client in clients):
        return
    richest = max(clients, key=lambda client: client.memory or 0)
    raise NobodyFitsError(
        f"{method}: no client's memory holds {what}: it needs {need() / 2**20:.1f} MiB, and the largest budget is "
        f"{(richest.memory or 0) / 2**20:.1f} MiB (client {richest.id}): {remedy}"
    )
