"""What a method is held against: gradients and steps without the library's own training, and the sizes of CNN-5."""

from __future__ import annotations

from typing import Any

import torch

from unalike import api, models, tree
from unalike.data.federation import Federation
from unalike.protocol import Arrival, Job
from unalike.rng import Key

INIT, KEY = Key.root(0) / "init", Key.root(0) / "round" / 1

CONVOLUTIONS = (16 * 1 * 5 * 5 + 16) + (32 * 16 * 5 * 5 + 32)
EXTRACTOR = CONVOLUTIONS + (512 * 500 + 500) + (500 * 500 + 500)  # 28 pixels, 24, pooled 12, 8, pooled 4: 32 · 4 · 4
HEADER = 500 * 10 + 10
CNN5 = EXTRACTOR + HEADER
"""Weights of CNN-5 on digits."""


def prepared(name: str, federation: Federation, **parameters: Any) -> Any:
    """A method that trains on all rows as one batch, with plain SGD."""
    plain = {"local_epochs": 1, "batch_size": 10**6, "lr": 0.05, "momentum": 0.0, "weight_decay": 0.0}
    return api.prepare(name, federation, **{**plain, **parameters}).algorithm


def job(method: Any, federation: Federation, client: int = 0, *, down: Any = None, **state: Any) -> Job[Any, Any]:
    """A visit with what the server and the client begin with, or with what is given in its place."""
    info = federation.clients[client]
    private = {**method.init_client(info, INIT), **state}
    sent = method.broadcast(method.init_server(INIT), info, 1)
    return Job(info, 1, down or sent, private, federation.data(client, "train"), KEY / client)


def gradient(method: Any, model: tree.Tree, data: Any) -> dict[str, Any]:
    """∇L over all rows of `data`: the leaves of `model` without its buffers."""
    working = tree.clone(model)
    weights = {name: leaf for name, leaf in tree.flatten(working).items() if "~" not in name}
    for leaf in weights.values():
        leaf.requires_grad_()
    loss = models.supervised_loss(method.shared, method.task, {"model": working}, {}, data)
    return tree.unflatten(dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)))


def minus(a: tree.Tree, scale: float, b: tree.Tree) -> dict[str, Any]:
    """a − scale · b, of the leaves that b has."""
    return tree.map_leaves(lambda b, a: a - scale * b, b, a)


def noise(like: tree.Tree, seed: int, size: float) -> dict[str, Any]:
    """Normal numbers in the shape of a tree."""
    generator = Key.root(seed).torch()
    return tree.map_leaves(lambda leaf: size * torch.randn(leaf.shape, generator=generator), like)


def close(found: tree.Tree, expected: tree.Tree, atol: float = 1e-6) -> bool:
    """Whether `found` has the leaves of `expected`, with nearly their values."""
    a, b = tree.flatten(found), tree.flatten(expected)
    return a.keys() >= b.keys() and all(torch.allclose(a[name], b[name], atol=atol, rtol=1e-4) for name in b)


def constant(like: tree.Tree, value: float) -> dict[str, Any]:
    """A tree of one number."""
    return tree.map_leaves(lambda leaf: torch.full_like(leaf, value), like)


def arrivals(federation: Federation, *ups: tuple[Any, float]) -> list[Arrival[Any]]:
    """What client 0, 1, ... sent, and the weights of it."""
    return [Arrival(federation.clients[k], up, weight, {}) for k, (up, weight) in enumerate(ups)]


def is_all(value: tree.Tree, number: float) -> bool:
    return all(bool((leaf == number).all()) for leaf in tree.flatten(value).values())


def outputs(method: Any, found: Job[Any, Any], state: Any, down: Any = None) -> torch.Tensor:
    """What the client predicts for its first rows."""
    ready = method.prepare(found.info, down or found.down, state, found.data, KEY)
    predicted: torch.Tensor = method.predict(ready, {"x": found.data["x"][:4]})
    return predicted
