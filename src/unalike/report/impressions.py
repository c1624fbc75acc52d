"""What a method has left as images: a grid of them, classes by rounds, of the files in a run's keepsakes/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ..errors import InputError
from .axes import shortened
from .classes import name_of
from .html import Html, figure, section
from .records import Run
from .svg import NARROW, WIDE, Picture, colour, inline
from .units import listing

TITLE = "Impressions over rounds"
EACH = 2
"""Images of a class and round."""
CLASSES = 20
"""A grid of more classes shows the first so many."""
ROUNDS_WIDE, ROUNDS_NARROW = 8, 3

Pixels = NDArray[np.uint8]
"""(height, width, 4): colours, and an opacity that lets the page show between images."""
Kept = tuple[NDArray[Any], NDArray[Any]]
"""Images (M, C, H, W) and labels (M,)."""


def single(run: Run) -> Html:
    """Nothing where the method has left no images with labels."""
    chosen = {r: kept for r in spread(sorted(run.keepsakes), ROUNDS_WIDE) if (kept := read(run.keepsakes[r]))}
    places = sorted({int(c) for _, labels in chosen.values() for c in labels})
    if not places:
        return Html("")
    caption = "Images that the server has made of its model: two of each class, after some of the rounds."
    if len(places) > CLASSES:
        caption += f" The first {CLASSES} of {len(places)} classes."
    drawing = grid(chosen, places[:CLASSES], run.partition.classes)
    return section(TITLE, figure(inline(drawing, "impressions"), caption))


def read(path: Path) -> Kept | None:
    """The images and labels of a file; None where it holds other things. `InputError` where it cannot be read."""
    try:
        found = load_file(path)
    except (OSError, SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}): delete it, or run again") from None
    images, labels = found.get("images"), found.get("labels")
    if images is None or labels is None or images.ndim != 4 or images.shape[1] not in (1, 3):
        return None
    return (images, labels) if labels.shape == images.shape[:1] else None


def spread(rounds: Sequence[int], most: int) -> list[int]:
    """At most so many, evenly apart, the first and the last among them."""
    if len(rounds) <= most:
        return list(rounds)
    return [rounds[round(i * (len(rounds) - 1) / (most - 1))] for i in range(most)]


def grid(found: Mapping[int, Kept], places: Sequence[int], classes: Sequence[str]) -> Picture:
    """Classes as rows and rounds as columns; a class without images in a round is left empty there."""
    names = [shortened(name_of(classes, c), 12) for c in places]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        shown = spread(list(found), ROUNDS_WIDE if wide else ROUNDS_NARROW)
        mosaic, cell = _mosaic([found[r] for r in shown], places)
        axes.imshow(mosaic, interpolation="none")
        axes.set_xticks([(i + 0.5) * cell[1] - 1 for i in range(len(shown))], [str(r) for r in shown])
        axes.set_yticks([(i + 0.5) * cell[0] - 1 for i in range(len(places))], names)
        axes.set_xlabel("after round")
        for side in ("left", "bottom"):
            axes.spines[side].set_visible(False)
        axes.patch.set_alpha(0)
        axes.tick_params(colors=colour("soft"))

    rows, columns = len(places), min(len(found), ROUNDS_WIDE)
    narrow = min(len(found), ROUNDS_NARROW)
    height, small = (
        60 + min(56.0, (width - 90) / (EACH * n)) * rows for width, n in ((WIDE, columns), (NARROW, narrow))
    )
    when = listing(list(found))
    alt = f"Images of {rows} classes after round{'s' * (len(found) > 1)} {when}: two of each class, a row a class."
    return Picture(alt, draw, height, small)


def _mosaic(columns: Sequence[Kept], places: Sequence[int]) -> tuple[Pixels, tuple[int, int]]:
    """All cells, and the height and width of one: its images side by side, a pixel's gap between, two around it."""
    high, wide = (max(images.shape[axis] for images, _ in columns) for axis in (2, 3))
    cell = high + 2, EACH * (wide + 1) + 2
    whole = np.zeros((cell[0] * len(places), cell[1] * len(columns), 4), np.uint8)
    for x, (images, labels) in enumerate(columns):
        for y, c in enumerate(places):
            for k, image in enumerate(images[labels == c][:EACH]):
                top, left = y * cell[0], x * cell[1] + k * (wide + 1)
                whole[top : top + image.shape[1], left : left + image.shape[2]] = _rgba(image)
    return whole, cell


def _rgba(image: NDArray[Any]) -> Pixels:
    """(C, H, W) of bytes, or of floats in 0..1, as (H, W, 4)."""
    bright = image if image.dtype == np.uint8 else np.nan_to_num(np.clip(image, 0, 1) * 255).round()
    colours = np.moveaxis(np.broadcast_to(bright, (3, *image.shape[1:])), 0, 2).astype(np.uint8)
    return np.dstack([colours, np.full(colours.shape[:2], 255, np.uint8)])
