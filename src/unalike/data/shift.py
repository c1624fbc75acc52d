"""Simulated domain shift: each client sees its images as through a scanner, a stain or a camera of its own.

A shift is simulated, and says so wherever it is named. Its strength is in 0..1 for each kind; a client's size u of it
is drawn in ½..1, so that none is spared by chance, and x is a pixel's share of white:

    stain        x ↦ x^γ for each channel, γ = exp(±strength·u): optical density times γ (Beer-Lambert); on grey a gamma
    blur         Gaussian, σ = strength·u pixels, and times side/16 where the longer side has more than 16
    resolution   made smaller and large again, to 1 − ¾·strength·u of each side
    contrast     x ↦ m + k(x − m) with the image's mean m, k = exp(±strength·u)
    noise        x ↦ x + N(0, σ²), σ = strength·u/4

They are applied in this order, of specimen, optics and sensor, and x is kept in 0..1. A strength of 0 leaves every bit
as it was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from ..errors import InputError
from ..files import with_tuples
from ..rng import Key
from . import Array, Source
from .resize import resized

KINDS = ("stain", "blur", "resolution", "contrast", "noise")
MIXED = "mixed"
FORMS = f"KIND:STRENGTH with KIND one of {', '.join(KINDS)}, several joined by commas, or {MIXED}:STRENGTH"
CHUNK = 512
"""Rows that are transformed at a time."""


@dataclass(frozen=True)
class Transform:
    """What one client's images go through. The defaults leave them as they are.

    stain: γ of each channel, or () for none; blur: σ in pixels; resolution: share of each side that is kept; contrast:
    k; noise: σ as a share of white, drawn from `seed` in the order of the rows.
    """

    stain: tuple[float, ...] = ()
    blur: float = 0.0
    resolution: float = 1.0
    contrast: float = 1.0
    noise: float = 0.0
    seed: int = 0

    def describe(self) -> dict[str, Any]:
        """What it does, as JSON values; `restore` is the inverse."""
        return {name: value for name, value in asdict(self).items() if value != getattr(Transform(), name)}

    @classmethod
    def restore(cls, description: Mapping[str, Any]) -> Transform:
        return cls(**with_tuples(description))

    def __call__(self, x: Array, white: float) -> Array:
        """Images (n, channels, height, width) of values in 0..white, in the same shape, range and type."""
        if not {*self.describe()} - {"seed"}:
            return x
        rng, done = np.random.default_rng(self.seed), np.empty_like(x)
        for start in range(0, len(x), CHUNK):
            seen = white * np.clip(self._see(x[start : start + CHUNK].astype(np.float32) / white, rng), 0, 1)
            done[start : start + CHUNK] = np.rint(seen) if x.dtype.kind in "iu" else seen
        return done

    def _see(self, x: Array, rng: np.random.Generator) -> Array:
        if self.stain:
            x = x ** np.asarray(self.stain, np.float32)[:, None, None]
        if self.blur > 1e-6:
            x = _blurred(x, self.blur)
        if self.resolution < 1:
            height, width = x.shape[2:]
            small = resized(x, *(max(1, round(self.resolution * side)) for side in (height, width)))
            x = resized(small, height, width)
        if self.contrast != 1:
            mean = x.mean(axis=(1, 2, 3), keepdims=True)
            x = mean + np.float32(self.contrast) * (x - mean)
        if self.noise:
            x = x + np.float32(self.noise) * rng.standard_normal(x.shape, np.float32)
        return x


def _blurred(x: Array, sigma: float) -> Array:
    from scipy.ndimage import gaussian_filter1d

    for axis in (2, 3):
        x = gaussian_filter1d(x, sigma, axis=axis, mode="nearest")
    return x


@dataclass(frozen=True)
class Shift:
    """The transforms of all clients, and the text that asked for them."""

    simulated: str
    clients: tuple[Transform, ...]

    def to_json(self) -> str:
        """As text; `from_json` is the inverse."""
        return json.dumps({"simulated": self.simulated, "clients": [client.describe() for client in self.clients]})

    @classmethod
    def from_json(cls, text: str) -> Shift:
        said = json.loads(text)
        return cls(said["simulated"], tuple(map(Transform.restore, said["clients"])))


def parse(text: str) -> dict[str, float]:
    """Kind to strength of "stain:0.8,blur:0.5".

    Raises:
        InputError: an unknown kind, a strength out of 0..1, a kind given twice, or `mixed` beside another.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        kind, _, strength = (word.strip() for word in part.partition(":"))
        if kind not in (*KINDS, MIXED):
            raise InputError(f"--shift {text}: {kind!r} is no kind of shift; give {FORMS}")
        try:
            value = float(strength)
        except ValueError:
            value = math.nan
        if not 0 <= value <= 1:
            raise InputError(f"--shift {text}: the strength of {kind} is {strength or 'missing'}; give 0 to 1")
        if kind in found:
            raise InputError(f"--shift {text} gives {kind} twice: give each kind once")
        found[kind] = value
    if MIXED in found and len(found) > 1:
        raise InputError(f"--shift {text}: {MIXED} gives each client one kind and stands alone; leave the others out")
    return found


def draw(text: str, clients: int, shape: Sequence[int], key: Key) -> Shift:
    """The transforms that `text` asks for: of each client its own, the same from the same key.

    With `mixed` each client has one kind; the kinds, in random order, are dealt round and round.

    Args:
        shape: channels, height and width of the images.
    """
    strengths = parse(text)
    order = (key / MIXED).numpy().permutation(KINDS)
    each = [{str(order[k % len(order)]): strengths[MIXED]} if MIXED in strengths else strengths for k in range(clients)]
    return Shift(text, tuple(_one(own, shape, key / k) for k, own in enumerate(each)))


def _one(strengths: Mapping[str, float], shape: Sequence[int], key: Key) -> Transform:
    def size(kind: str) -> float:
        """strength·u"""
        return strengths.get(kind, 0.0) * float((key / kind).numpy().uniform(0.5, 1))

    def factors(kind: str, n: int) -> tuple[float, ...]:
        """exp(±strength·u), n times."""
        rng = (key / kind).numpy()
        powers = strengths.get(kind, 0.0) * rng.uniform(0.5, 1, n) * rng.choice((-1, 1), n)
        return tuple(math.exp(power) for power in powers)

    return Transform(
        stain=factors("stain", shape[0]) if strengths.get("stain") else (),
        blur=size("blur") * max(1.0, max(shape[1:]) / 16),
        resolution=1 - 0.75 * size("resolution"),
        contrast=factors("contrast", 1)[0],
        noise=size("noise") / 4,
        seed=(key / "seed").seed if strengths.get("noise") else 0,
    )


def require_images(source: Source, text: str) -> None:
    """Raise `InputError` unless a shift can be applied: to images whose values lie in 0..white, and once."""
    if source.simulated_shift:
        raise InputError(
            f"the images of {source.name} are shifted already ({source.simulated_shift}): give the source as it was"
        )
    if source.kind != "image":
        raise InputError(f"--shift {text} changes images, and {source.name} is a {source.kind}: leave --shift out")
    low, high = source.x.min(), source.x.max()
    if low < 0 or high > source.pixel_max:
        raise InputError(
            f"--shift {text} needs pixels in 0..{source.pixel_max:g}, and those of {source.name} are in {low:g}.."
            f"{high:g}: give pixel_max in the .npz, or scale them"
        )


def shifted(source: Source, rows: Sequence[Array], shift: Shift) -> Source:
    """A source whose rows are as the clients see them; rows of nobody stay as they are.

    Args:
        rows: the row numbers of each client, all parts together, ascending.

    Raises:
        InputError: not images, or a shift of other channels.
    """
    require_images(source, shift.simulated)
    x = np.array(source.x)
    for mine, transform in zip(rows, shift.clients, strict=True):
        if len(transform.stain) not in (0, x.shape[1]):
            raise InputError(f"the shift is of {len(transform.stain)} channels, and {source.name} has {x.shape[1]}")
        x[mine] = transform(source.x[mine], source.pixel_max)
    return replace(source, x=x, simulated_shift=shift.simulated)
