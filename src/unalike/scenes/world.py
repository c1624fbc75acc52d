"""Scenes of one to three coloured shapes, and the styles in which they are drawn."""

from __future__ import annotations

import colorsys
import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {"red": 0, "yellow": 60, "green": 120, "cyan": 180, "blue": 240, "purple": 300}
"""Name to hue in degrees."""
SIZES = {"small": 0.1, "large": 0.19}
"""Name to half the extent, as a share of the image's side."""
PLACES = ("top left", "top right", "bottom left", "bottom right")
SUPERSAMPLED = 3
"""Scenes are drawn so many times as large, and brought down."""
UNSEEN = 3
"""One pair of colour and shape in so many is left out of the neutral mixture."""


@dataclass(frozen=True, slots=True)
class Thing:
    """A shape somewhere in the picture."""

    shape: str
    colour: str
    size: str
    place: int
    """In `PLACES`; no two things are at one place."""


Scene = tuple[Thing, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """How a scene is drawn; its numbers can be blended."""

    ground: float = 215
    """Lightness of the ground, 0 to 255."""
    hue: float = 0
    """Degrees by which all colours are turned: a red thing at 120 is painted green, and still called red."""
    fill: float = 1
    """How much of its colour a thing has inside; its outline is always full."""
    saturation: float = 0.9
    noise: float = 4
    """Standard deviation, in 0 to 255, of what is added to each pixel."""
    blur: float = 0
    """Radius of a Gaussian blur, as a share of the side."""
    weave: float = 0
    """Contrast of coloured stripes on the ground, 0 to 255."""

    def at(self, strength: float) -> Style:
        """Between the neutral style (0) and this one (1)."""
        pairs = ((f.name, getattr(NEUTRAL, f.name), getattr(self, f.name)) for f in fields(self))
        return Style(**{name: (1 - strength) * neutral + strength * own for name, neutral, own in pairs})


NEUTRAL = Style()
STYLES = {
    "sketch": Style(ground=250, fill=0, saturation=0.5),
    "night": Style(ground=15, hue=-60, saturation=0.7),
    "grain": Style(noise=50, blur=0.03, saturation=0.8),
    "weave": Style(weave=110),
    "dyed": Style(ground=170, hue=120),
}


def pairs(neutral: bool) -> list[tuple[str, str]]:
    """The pairs of colour and shape that there are; in the neutral mixture a third of them never occur."""
    every = [(c, s, i + j) for i, c in enumerate(COLOURS) for j, s in enumerate(SHAPES)]
    return [(colour, shape) for colour, shape, n in every if not neutral or n % UNSEEN]


def scene(rng: np.random.Generator, neutral: bool = False) -> Scene:
    """One to three things at different places, two or three of them mostly."""
    known = pairs(neutral)
    places = rng.permutation(len(PLACES))[: int(rng.choice([1, 2, 3], p=[0.2, 0.4, 0.4]))]
    return tuple(_thing(*known[int(rng.integers(len(known)))], rng, int(place)) for place in places)


def _thing(colour: str, shape: str, rng: np.random.Generator, place: int) -> Thing:
    return Thing(shape, colour, list(SIZES)[int(rng.integers(2))], place)


def draw(found: Scene, style: Style, side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The picture of a scene, (side, side, 3); places, sizes and colours vary a little from one to the next."""
    large = SUPERSAMPLED * side
    image = _ground(style, large, rng)
    pen = ImageDraw.Draw(image)
    for thing in found:
        down, across = divmod(thing.place, 2)
        x, y = ((0.27 + 0.46 * at + rng.uniform(-0.05, 0.05)) * large for at in (across, down))
        size = SIZES[thing.size] * rng.uniform(0.9, 1.1) * large
        line = _painted(thing.colour, style, rng)
        inside = tuple(round(style.fill * c + (1 - style.fill) * style.ground) for c in line)
        _shape(pen, thing.shape, x, y, size, line, inside, max(1, round(0.035 * large)))
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur * large))
    small = np.asarray(image.resize((side, side), Image.Resampling.BOX), np.float32)
    drawn: NDArray[np.uint8] = np.rint((small + rng.normal(0, style.noise, small.shape)).clip(0, 255)).astype(np.uint8)
    return drawn


def _painted(colour: str, style: Style, rng: np.random.Generator) -> tuple[int, ...]:
    hue = (COLOURS[colour] + style.hue + rng.uniform(-10, 10)) % 360 / 360
    found = colorsys.hsv_to_rgb(hue, style.saturation * rng.uniform(0.85, 1), rng.uniform(0.75, 0.95))
    return tuple(round(255 * c) for c in found)


def _ground(style: Style, large: int, rng: np.random.Generator) -> Image.Image:
    ground = np.full((large, large, 3), style.ground, np.float32)
    if style.weave:
        angle, waves = rng.uniform(0, math.pi), rng.uniform(3, 6)
        tint = np.array([rng.uniform(-1, 1) for _ in range(3)], np.float32)
        across = np.arange(large) / large
        wave = np.sin(2 * math.pi * waves * (math.cos(angle) * across[:, None] + math.sin(angle) * across))
        ground += style.weave * wave[:, :, None].astype(np.float32) * tint
    return Image.fromarray(ground.clip(0, 255).astype(np.uint8))


def _shape(
    pen: Any, shape: str, x: float, y: float, size: float, line: tuple[int, ...], inside: tuple[int, ...], width: int
) -> None:
    if shape == "circle":
        pen.ellipse((x - size, y - size, x + size, y + size), fill=inside, outline=line, width=width)
        return
    pen.polygon([(x + size * a, y + size * b) for a, b in CORNERS[shape]], fill=inside, outline=line, width=width)


_ARM = 0.36
CORNERS = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "triangle": [(0, -1.05), (1.05, 0.9), (-1.05, 0.9)],
    "cross": [
        *[(-_ARM, -1.1), (_ARM, -1.1), (_ARM, -_ARM), (1.1, -_ARM), (1.1, _ARM), (_ARM, _ARM)],
        *[(_ARM, 1.1), (-_ARM, 1.1), (-_ARM, _ARM), (-1.1, _ARM), (-1.1, -_ARM), (-_ARM, -_ARM)],
    ],
}
"""Corners of a shape of size 1 around 0, downwards positive."""
