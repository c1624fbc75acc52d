"""What methods for texts are held against: steps by torch's own AdamW, on gradients taken here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from unalike import api
from unalike.data.federation import Federation
from unalike.models import language
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1
LR = 0.01


def prepared(name: str, asked: Federation, **parameters: Any) -> Any:
    """A method whose visits are one step of AdamW on all rows."""
    plain = {"local_epochs": 1, "batch_size": 10**6, "lr": LR, "clip": 1e9, "max_new_tokens": 2}
    return api.prepare(name, asked, **{**plain, **parameters}).algorithm


def job(method: Any, asked: Federation, client: int = 0, *, round: int = 1, down: Any = None, **state: Any) -> Any:
    """A visit with what the server and the client begin with, or with what is given in its place."""
    info = asked.clients[client]
    private = {**method.init_client(info, INIT), **state}
    sent = down or method.broadcast(method.init_server(INIT), info, round)
    return Job(info, round, sent, private, asked.data(client, "train"), KEY / client)


def stepped(
    method: Any, data: Any, trains: Mapping[str, Any], beside: Mapping[str, Any] | None = None, a: float | None = None
) -> dict[str, Tensor]:
    """The one adapter of `trains` after a step of AdamW at the weight `a` of the local one."""
    ((name, adapter),) = trains.items()
    found = {leaf: w.clone().requires_grad_() for leaf, w in adapter.items()}
    share = None if a is None else torch.full((len(data["x"]),), a)
    logits = language.answer_logits(method.shared, {**(beside or {}), name: found}, data, share)
    loss = method.task.loss(logits, data)
    optimiser = torch.optim.AdamW(list(found.values()), lr=LR, weight_decay=0.0)
    loss.backward()
    optimiser.step()
    return {leaf: w.detach() for leaf, w in found.items()}


def noisy(method: Any, seed: int, size: float = 0.3) -> dict[str, Tensor]:
    """An adapter that has been trained, as it were: its B is not 0."""
    generator, fresh = Key.root(seed).torch(), language.initial(method.shared, Key.root(seed))
    return {name: leaf + size * torch.randn(leaf.shape, generator=generator) for name, leaf in fresh.items()}


def close(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    """Whether two adapters are the same, but for the order of sums: AdamW's first step is lr · sign of a gradient, so
    that a gradient of nearly 0 may fall either way."""
    assert found.keys() == expected.keys()
    near = torch.cat([(found[n] - expected[n]).abs().flatten() < LR / 10 for n in expected])
    return bool(near.float().mean() > 0.99)


def arrivals(asked: Federation, *ups: tuple[Any, float]) -> list[Arrival[Any]]:
    """What client 0, 1, ... sent, and the weights of it."""
    return [Arrival(asked.clients[k], up, weight, {}) for k, (up, weight) in enumerate(ups)]
