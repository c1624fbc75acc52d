"""The pooled audit of a simulated run: its impressions against the images of all clients put together.

In a federation nobody has all images, and the gate at each client is all there is (`impressions.gate`). In a
simulation they lie in one place, so that one can see whether the gates did their work.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from . import runs
from .data.federation import Federation
from .engines.checkpoint import Checkpoints
from .engines.keepsakes import FOLDER
from .errors import InputError
from .files import write_json
from .impressions import gate
from .impressions.transport import decode

AUDIT = "audit.json"
HELD_OUT = 1000
"""No more held-out images than this are told of."""
SHOWN = 10
"""So many of the impressions that are most like a training image are told of."""


def audit(folder: Path, given: Federation | None = None) -> dict[str, Any]:
    """Compare the impressions that a run has kept with all clients' images, and write it to audit.json.

    Args:
        given: what the run was given, where its data were arrays in memory.

    Returns:
        what was written: "verdict", "images", "copies", "rounds", "impressions" and "others" (quantiles), "nearest".

    Raises:
        InputError: no run, a run over a network, or one without impressions.
    """
    runs.open_run(folder)
    if not rows_known(folder):
        raise InputError(
            f"{folder} is a run over a network, whose images are at the sites: an audit needs them in one place and "
            "exists for simulations only; at each site the gate compares with its own images"
        )
    kept = impressions(folder)
    found = runs.reopen(folder, given).federation
    train, held_out = (_images(found, *parts) for parts in (("train",), ("validation", "test")))
    for round, images in kept.items():
        if images.shape[1:] != train.shape[1:]:
            raise InputError(
                f"{folder}: the impressions of round {round} have the shape {tuple(images.shape[1:])}, the clients' "
                f"images {tuple(train.shape[1:])}"
            )
    told = _compared(found, kept, train, held_out)
    write_json(folder / AUDIT, told)
    return told


def verdict(told: Mapping[str, Any]) -> str:
    """The result in lines of text: verdict, quantiles, and the impressions that are most like a training image."""
    lines = [told["verdict"], "", f"{'':24}{'lowest':>9}{'1 %':>9}{'5 %':>9}{'median':>9}"]
    for name, kind in (("impressions", "impressions"), ("held-out images", "others")):
        for measure in ("distances", "margins"):
            cells = "".join(f"{value:9.3f}" for value in told[kind][measure].values())
            lines.append(f"{f'{name}, {measure}':24}{cells}".rstrip())
    lines += ["", f"A margin below {told['threshold']:.3f} is a copy's."]
    for one in told["nearest"]:
        if one["copy"]:
            lines.append(
                f"round {one['round']}, impression {one['image']}: distance {one['distance']:.3f}, margin "
                f"{one['margin']:.3f} to training image {one['row']} of client {one['client']}"
            )
    return "\n".join(lines)


def rows_known(folder: Path) -> bool:
    """Whether the run had its clients' rows, as a simulation has; a deployment's server has none."""
    try:
        return bool(json.loads((folder / runs.MANIFEST).read_text())["data"]["rows"])
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / runs.MANIFEST} is missing or damaged: {error}") from None


def impressions(folder: Path) -> dict[int, Tensor]:
    """Impressions (M, channels, height, width) on the scale of a model's input, by the round that made them.

    Those of evaluated rounds are keepsakes; those of the last round are in the server's state as well.

    Raises:
        InputError: the run has none, or a file of them is damaged.
    """
    found = {}
    for path in sorted((folder / FOLDER).glob("round-*.safetensors")):
        try:
            found[int(path.stem.partition("-")[2])] = _kept(load_file(path))
        except Exception as error:
            raise InputError(f"{path} is damaged: {error}") from None
    if any((folder / "checkpoint").glob("round-*.json")):
        checkpoints = Checkpoints(folder / "checkpoint")
        index = checkpoints.read()
        last = _kept(checkpoints.server(index).get("impressions", {}))
        found |= {} if last is None else {index.round: last}
    made = {round: images for round, images in found.items() if images is not None and len(images)}
    if not made:
        raise InputError(f"{folder} has no impressions to audit: its method makes none, or it was stopped before")
    return made


def _kept(branch: Mapping[str, Tensor]) -> Tensor | None:
    """The images among what was kept, None where there are none."""
    images = branch.get("images")
    return None if images is None else decode(images)


def _images(found: Federation, *parts: str) -> Tensor:
    rows = [found.data(client, part)["x"] for client in range(len(found.clients)) for part in parts]
    return torch.cat(rows)


def _compared(found: Federation, kept: Mapping[int, Tensor], train: Tensor, held_out: Tensor) -> dict[str, Any]:
    own = gate.calibrate(train, held_out)
    near = gate.neighbours(torch.cat([images.float() for images in kept.values()]), train)
    margins = own.margins(near)
    copies = margins < own.threshold
    others = gate.neighbours(gate.spread(held_out, HELD_OUT), train)
    by_round = dict(zip(kept, torch.split(copies, [len(images) for images in kept.values()]), strict=True))
    return {
        "verdict": _sentence(int(copies.sum()), len(copies)),
        "images": len(copies),
        "copies": int(copies.sum()),
        "train": len(train),
        "held_out": len(held_out),
        "threshold": own.threshold,
        "alarms": gate.ALARMS,
        "rounds": [{"round": r, "images": len(c), "copies": int(c.sum())} for r, c in by_round.items()],
        "impressions": {"distances": _quantiles(near.nearest), "margins": _quantiles(margins)},
        "others": {"distances": _quantiles(others.nearest), "margins": _quantiles(own.margins(others))},
        "nearest": _nearest(found, kept, near, margins, copies),
    }


def _sentence(copies: int, images: int) -> str:
    if not copies:
        return f"No copies: none of {images} impressions is nearer to a training image than held-out images are."
    told = (
        f"{copies} of {images} impressions {'is a near-copy' if copies == 1 else 'are near-copies'} of training images"
    )
    chance = gate.ALARMS * images
    if copies <= chance:
        return f"{told}; among as many held-out images up to {chance:.0f} would be taken for such: look at them."
    return f"Copies found: {told}."


def _nearest(
    found: Federation, kept: Mapping[int, Tensor], near: gate.Near, margins: Tensor, copies: Tensor
) -> list[dict[str, Any]]:
    """The impressions of the smallest margins, with the training image that each is like."""
    places = [(round, image) for round, images in kept.items() for image in range(len(images))]
    clients = np.concatenate([np.full(len(found.rows(k, "train")), k) for k in range(len(found.clients))])
    rows = np.concatenate([found.rows(k, "train") for k in range(len(found.clients))])
    return [
        {
            "round": places[i][0],
            "image": places[i][1],
            "client": int(clients[which := int(near.indices[i, 0])]),
            "row": int(rows[which]),
            "distance": round(float(near.nearest[i]), 6),
            "margin": round(float(margins[i]), 6),
            "copy": bool(copies[i]),
        }
        for i in margins.argsort(stable=True)[:SHOWN].tolist()
    ]


def _quantiles(values: Tensor) -> dict[str, float]:
    shares = {"lowest": 0.0, "p1": 0.01, "p5": 0.05, "p50": 0.5}
    return {name: round(float(values.quantile(share)), 6) if len(values) else 0.0 for name, share in shares.items()}
