"""The privacy gate: which received images are near-copies of a client's own training images.

Only the client can tell, and only it asks. The distance of two images is 1 − the largest correlation of their low
frequencies over shifts of a pixel or two: brightness, contrast, quantisation and small noise hardly change it. An
image is judged by its *margin*: its distance to the nearest training image in relation to that to the next one, d₁/d₂.
One that is merely alike is about as near to several of them; a copy is much nearer to one, in a dense class as well.
What is "much" is calibrated on held-out images of the same client: the quantile of split conformal prediction, so that
of new held-out images at most the share `alarms` is taken for copies, on average over clients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InputError

ALARMS = 0.03
"""Share of held-out images that may be taken for copies."""
FREQUENCIES = 8
"""Lowest frequencies of the cosine transform along each side that are compared."""
NEIGHBOURS = 4
"""Training images among which the next one is looked for, past those that are the nearest one over again."""
SAME = 0.002
"""Distance at which two images are certainly the same one over again; rows of that kind are not calibrated on."""
CALIBRATORS = 200
"""No more rows than this are calibrated on, evenly spaced."""
ENOUGH = 100
"""With fewer held-out rows than this, training rows, each against the others, are calibrated on as well."""
STRICT = 0.15
"""No larger margin counts as a copy's where there are too few rows to know what is usual."""
FLAT = 0.005
"""Images of less contrast than this share of the pixels' range (root mean square) resemble nothing."""
TINY = 1e-4
ROWS = 2048
"""Training images that are compared at once."""


@dataclass(frozen=True, eq=False)
class Near:
    """Of each of M images: the nearest training images (M, k) in order, and their distances in 0..2."""

    indices: Tensor
    distances: Tensor

    @property
    def nearest(self) -> Tensor:
        """Distance to the nearest training image (M,)."""
        return self.distances[:, 0]

    def rows(self, which: Tensor | slice) -> Near:
        """Of some of the images."""
        return Near(self.indices[which], self.distances[which])


@dataclass(frozen=True, eq=False)
class Gate:
    """A client's gate, from its own images."""

    train: Tensor
    same: float
    """Distance below which two training images are the same one over again: held-out ones are hardly ever so near."""
    threshold: float
    """Margin below which an image is a near-copy."""

    def margins(self, near: Near) -> Tensor:
        """d₁/d₂ of M images (M,), in 0..1: small for a copy."""
        return _margins(near, self.train, self.same)

    def near_copies(self, images: Tensor) -> Tensor:
        """Which of M images are near-copies of a training image, bool (M,)."""
        return self.margins(neighbours(images, self.train)) < self.threshold


def near_copies(received: Tensor, train: Tensor, held_out: Tensor, alarms: float = ALARMS) -> Tensor:
    """Which of the received images are near-copies of training images.

    Args:
        received: (M, channels, height, width), on the scale of `train`.
        train: the client's training images (n, channels, height, width).
        held_out: images of the same client that were not trained on (m, channels, height, width); m may be 0.
        alarms: share of held-out images that may be taken for copies.

    Returns:
        bool (M,), on the device of `received`.

    Raises:
        InputError: images of unlike shapes.
    """
    _require_alike(received, train)
    images, without = _calibrators(train, held_out)
    nothing = without.new_full((len(received),), -1)
    near = neighbours(torch.cat([received.float(), images]), train, torch.cat([nothing, without]))
    judged, usual = near.rows(slice(len(received))), near.rows(slice(len(received), None))
    own = _calibrated(usual, train, alarms)
    return own.margins(judged) < own.threshold


def refuses(received: Tensor, train: Tensor, held_out: Tensor, alarms: float = ALARMS) -> bool:
    """The one bit that a client returns: whether any received image is a near-copy."""
    return bool(near_copies(received, train, held_out, alarms).any())


def calibrate(train: Tensor, held_out: Tensor, alarms: float = ALARMS) -> Gate:
    """The gate of a client with these images (n, channels, height, width) and (m, channels, height, width).

    With m < `ENOUGH` training rows are calibrated on too, each against all others. With fewer than 1/alarms rows in
    all the smallest margin among them is the threshold, and at most `STRICT`.
    """
    images, without = _calibrators(train, held_out)
    return _calibrated(neighbours(images, train, without), train, alarms)


def _calibrators(train: Tensor, held_out: Tensor) -> tuple[Tensor, Tensor]:
    """Images to calibrate on, and the training row that each is (−1: none)."""
    few = spread(held_out, CALIBRATORS)
    own = torch.arange(len(train), device=train.device)
    own = spread(own, ENOUGH - len(few)) if len(few) < ENOUGH else own[:0]
    return torch.cat([few, train[own]]).float(), torch.cat([own.new_full((len(few),), -1), own])


def _calibrated(found: Near, train: Tensor, alarms: float) -> Gate:
    found = found.rows(found.nearest > SAME)
    same = max(SAME, lowest(found.nearest, alarms))
    margins = _margins(found, train, same)
    threshold = lowest(margins, alarms) if len(margins) else STRICT
    return Gate(train, same, threshold if (len(margins) + 1) * alarms >= 1 else min(threshold, STRICT))


def neighbours(images: Tensor, train: Tensor, without: Tensor | None = None) -> Near:
    """The nearest `NEIGHBOURS` training images of M images; of image i without training image `without[i]` (−1: none).

    Where there are fewer, the list is filled with distance 1, that of images which have nothing in common.
    """
    _require_alike(images, train)
    shift, flat = reach(train), _flat(train)
    asked = _features(images, shift, 0, 0, flat)
    best, places = asked.new_full((len(images), NEIGHBOURS), 0.0), asked.new_zeros(len(images), NEIGHBOURS).long()
    for start in range(0, len(train), ROWS):
        rows = train[start : start + ROWS]
        alike = asked.new_full((len(images), len(rows)), -1.0)
        for features in _shifted(rows, shift, flat):
            torch.maximum(alike, asked @ features.T, out=alike)
        if without is not None:
            mine = (without >= start) & (without < start + len(rows))
            alike[mine, without[mine] - start] = -1.0
        candidates = torch.cat([best, alike], 1)
        numbers = torch.cat([places, torch.arange(start, start + len(rows), device=places.device).expand_as(alike)], 1)
        best, chosen = candidates.topk(NEIGHBOURS, dim=1)
        places = numbers.gather(1, chosen)
    return Near(places, (1 - best).clamp_min(0.0))


def reach(images: Tensor) -> int:
    """Largest shift in pixels that is undone."""
    side = min(images.shape[-2:])
    return 2 if side >= 16 else 1 if side >= 5 else 0


def _margins(found: Near, train: Tensor, same: float) -> Tensor:
    """d₁/d₂, where 2 is the nearest training image that is not the nearest one over again."""
    first, others = found.indices[:, 0], found.indices[:, 1:]
    if not len(train) or not len(first):
        return torch.ones_like(found.nearest)
    apart = _between(train[first], train[others.flatten()].view(*others.shape, *train.shape[1:]), train)
    others_apart = torch.where(apart > same, found.distances[:, 1:], found.distances[:, -1:])
    return (found.nearest + TINY) / (others_apart.amin(1) + TINY)


def _between(images: Tensor, several: Tensor, train: Tensor) -> Tensor:
    """Distances (M, k) of M images to k images each, (M, k, channels, height, width)."""
    shift, flat = reach(train), _flat(train)
    own = _features(images, shift, 0, 0, flat)
    alike = own.new_full(several.shape[:2], -1.0)
    for features in _shifted(several.flatten(0, 1), shift, flat):
        alike = torch.maximum(alike, (features.view(*several.shape[:2], -1) * own[:, None]).sum(-1))
    return 1 - alike


def _shifted(images: Tensor, shift: int, flat: float) -> Iterator[Tensor]:
    """Features of the images at each shift in turn."""
    for x in range(-shift, shift + 1):
        rows = _across(images, shift, x)
        for y in range(-shift, shift + 1):
            yield _down(rows, images, shift, y, flat)


def _features(images: Tensor, shift: int, y: int, x: int, flat: float) -> Tensor:
    """(n, d): low frequencies of a window that leaves `shift` pixels free at each edge, of mean 0 and length 1.

    A window without contrast becomes 0.
    """
    return _down(_across(images, shift, x), images, shift, y, flat)


def _across(images: Tensor, shift: int, x: int) -> Tensor:
    width = images.shape[-1] - 2 * shift
    return images[..., shift + x : shift + x + width].float() @ _cosines(width, images).T


def _down(rows: Tensor, images: Tensor, shift: int, y: int, flat: float) -> Tensor:
    height = images.shape[-2] - 2 * shift
    waves = _cosines(height, images) @ rows[..., shift + y : shift + y + height, :]
    waves[..., 0, 0] -= waves[..., 0, 0].mean(1, keepdim=True)
    features = waves.flatten(1)
    pixels = images.shape[1] * height * (images.shape[-1] - 2 * shift)
    length = features.norm(dim=1, keepdim=True)
    return features * torch.where(length > flat * math.sqrt(pixels), 1 / length.clamp_min(1e-12), 0.0)


def _cosines(size: int, like: Tensor) -> Tensor:
    """The lowest frequencies of the orthonormal cosine transform (DCT-II): (min(FREQUENCIES, size), size)."""
    k = torch.arange(min(FREQUENCIES, size), device=like.device)[:, None]
    waves = torch.cos(math.pi * k * (2 * torch.arange(size, device=like.device) + 1) / (2 * size))
    scale = torch.where(k == 0, math.sqrt(1 / size), math.sqrt(2 / size))
    return waves * scale


def _flat(train: Tensor) -> float:
    return FLAT * float(train.max() - train.min()) if train.numel() else 0.0


def lowest(values: Tensor, share: float) -> float:
    """The k-th smallest, k = share · (n + 1) rounded down, at least the smallest; 0 where there is none."""
    k = max(1, int(share * (len(values) + 1)))
    return float(values.kthvalue(k).values) if len(values) else 0.0


def spread(images: Tensor, most: int) -> Tensor:
    """At most so many of the images, evenly spaced."""
    if len(images) <= most:
        return images
    return images[torch.linspace(0, len(images) - 1, most, device=images.device).long()]


def _require_alike(images: Tensor, train: Tensor) -> None:
    if images.ndim != 4 or images.shape[1:] != train.shape[1:]:
        raise InputError(
            f"the gate compares images of one shape (channels, height, width): {tuple(images.shape[1:])} were "
            f"received, {tuple(train.shape[1:])} were trained on"
        )
