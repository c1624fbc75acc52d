"""A round of impressions: what the server makes and sends, what a client does with it and says.

The server's state has two branches for it beside a method's own, once the first impressions are made:

    impressions   images (M, C, H, W) uint8 or float32, labels (M,) int64
    synthesis     told: figures for reports; lr: the step size that has succeeded, else 0; key: what images start from;
                  strength: what refusals have added to the total variation; counts: rows of each label, for `prior`
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import models, tree
from ..errors import InputError
from ..local import Mixture
from ..protocol import Arrival, Batch, Job, Spec
from ..rng import Key
from ..tree import Tree
from .gate import near_copies
from .settings import PUBLIC, Impressions, require_start
from .synthesis import Synthesis, by_name, hardened, label_of_each, noise, synthesise
from .transport import decode, encode

SERVER, UP = ("impressions", "synthesis"), ("refused", "counts")
"""Branches of the server's state, and of what clients send, that are no method's own."""
STRENGTH, STRONGEST = 0.01, 0.08
"""Weight of the total variation after the first refusal, and the most that it grows to: refusals also come by chance.

Each further round with refusals doubles it.
"""


def require(settings: Impressions, spec: Spec, method: str) -> None:
    """Raise `InputError` unless impressions of this model can be made."""
    require_start(settings.start)
    if len(spec.input) != 3:
        what = "windows" if len(spec.input) == 2 else "rows of a table"
        raise InputError(f"{method}: impressions are images, and the data are {what}: give images")
    if not models.has_linear_header(spec):
        raise InputError(
            f"{method}: impressions need a model whose header is one torch.nn.Linear, which that of {spec.name} is not"
        )
    if settings.start.startswith(PUBLIC):
        _start(settings, spec, 1, Key.root(0))


def renewed(
    settings: Impressions,
    spec: Spec,
    model: Tree,
    server: Mapping[str, Any],
    arrivals: Sequence[Arrival[Any]],
    key: Key,
    is_due: bool,
) -> dict[str, Any]:
    """The server's branches after a round that has ended with `model`, from the state before it.

    Args:
        is_due: whether the warm-up is over, so that images are to be made.
    """
    before = server.get("synthesis", {})
    refused = sum(int(arrival.up["refused"]) for arrival in arrivals if "refused" in arrival.up)
    counts = _pooled(before, arrivals) if settings.labels == "prior" else {}
    if not is_due:
        return {"synthesis": counts} if counts else {}
    strength = float(before.get("strength", 0.0))
    if refused:
        strength = min(max(STRENGTH, 2 * strength), STRONGEST)
    labels = label_of_each(settings.images, spec.classes, counts.get("counts"))
    lr = float(before.get("lr", 0.0))
    made = _made(settings, spec, model, labels, key, lr, strength, os.cpu_count() or 1)
    numbers = {"lr": made.lr if made.has_succeeded else 0.0, "strength": strength}
    told = {**by_name(made), "refused": float(refused)}
    images = encode(made.images) if settings.transport == "uint8" else made.images
    return {
        "impressions": {"images": images, "labels": labels},
        "synthesis": {**_scalars(numbers), **counts, "told": _scalars(told), "key": _bytes(key)},
    }


def _made(
    settings: Impressions,
    spec: Spec,
    model: Tree,
    labels: Tensor,
    key: Key,
    lr: float,
    strength: float,
    at_once: int = 1,
) -> Synthesis:
    """The synthesis that server and client can each make."""
    start = _start(settings, spec, settings.images, key)
    return synthesise(spec, model, labels, hardened(settings, strength), start, lr, at_once)


def _start(settings: Impressions, spec: Spec, n: int, key: Key) -> Tensor:
    if settings.start == "noise":
        return noise(n, spec, key)
    from .public import drawn

    return drawn(settings.start.removeprefix(PUBLIC), n, spec, key)


def _pooled(before: Mapping[str, Any], arrivals: Sequence[Arrival[Any]]) -> dict[str, Tensor]:
    """Rows of each label, summed over all visits so far."""
    told = [arrival.up["counts"] for arrival in arrivals]
    return {"counts": torch.stack([*told, before.get("counts", torch.zeros_like(told[0]))]).sum(0)}


def _scalars(numbers: Mapping[str, float]) -> dict[str, Tensor]:
    return {name: torch.tensor(number, dtype=torch.float64) for name, number in numbers.items()}


def _bytes(key: Key) -> Tensor:
    return torch.tensor(list(key.digest), dtype=torch.uint8)


def sent(settings: Impressions, server: Mapping[str, Any]) -> dict[str, Any]:
    """What travels to a client beside a method's own: nothing during the warm-up."""
    if "impressions" not in server:
        return {}
    if settings.transport != "regenerate":
        return {"impressions": server["impressions"]}
    made = server["synthesis"]
    recipe = {"key": made["key"], "lr": made["told"]["lr_img"], "strength": made["strength"]}
    return {"impressions": {"labels": server["impressions"]["labels"], **recipe}}


def report(server: Mapping[str, Any]) -> dict[str, float]:
    """Figures of the last synthesis: cross-entropy and ‖G‖ before and after, step size, refusals before it."""
    return {name: float(number) for name, number in server.get("synthesis", {}).get("told", {}).items()}


def keepsakes(server: Mapping[str, Any]) -> dict[str, Tensor]:
    """The images for a report, once there are some."""
    return dict(server.get("impressions", {}))


def received(settings: Impressions, spec: Spec, job: Job[Any, Any], branch: str) -> tuple[Batch, dict[str, Tensor]]:
    """What a client trains on, its rows with impressions beside them, and what it says to the server beside its own.

    Args:
        branch: where in what was sent the global model lies.
    """
    rows, said = job.data, {}
    if settings.labels == "prior":
        said["counts"] = torch.bincount(rows["y"], minlength=spec.classes)
    if "impressions" not in job.down:
        return rows, said
    found = job.down["impressions"]
    images = decode(found["images"] if "images" in found else _again(settings, spec, job.down[branch], found))
    images, labels = images.to(rows["x"].device), found["labels"]
    if settings.gate:
        refused = _near_copies(images, job)
        said["refused"] = refused.any().to(torch.uint8).cpu()
        images, labels = images[~refused], labels[~refused]
    return (beside(settings, rows, images, labels) if len(labels) else rows), said


def beside(settings: Impressions, rows: Batch, images: Tensor, labels: Tensor) -> Mixture:
    """A client's rows with impressions beside them, as many and as heavy as the settings say."""
    columns, frozen = {"x": images, "y": labels}, settings.syn_bn == "frozen"
    if settings.concat:
        return Mixture(rows, columns, None, None, frozen)
    return Mixture(rows, columns, settings.mix, settings.lam, frozen)


_LAST: dict[str, Tensor] = {}
"""The images that this process has made last, by what they were made from: its next client is sent the same."""


def _again(settings: Impressions, spec: Spec, model: Tree, recipe: Mapping[str, Tensor]) -> Tensor:
    """The server's images, made anew from the model that was sent, on the CPU as at the server."""
    known = tree.sha256({"model": model, "recipe": recipe})
    if known not in _LAST:
        cpu = torch.device("cpu")
        key, (lr, strength) = Key(bytes(recipe["key"].tolist())), (float(recipe[n]) for n in ("lr", "strength"))
        made = _made(settings, spec, tree.to(model, cpu), recipe["labels"].to(cpu), key, lr, strength)
        _LAST.clear()
        _LAST[known] = made.images
    return _LAST[known]


def _near_copies(images: Tensor, job: Job[Any, Any]) -> Tensor:
    """Which of the images come too near to the client's training rows, measured by its held-out ones: (M,) bool."""
    own = job.data["x"]
    return near_copies(images, own, job.held_out.get("x", own[:0]))
