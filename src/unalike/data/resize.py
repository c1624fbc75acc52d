"""Images brought to another size."""

from __future__ import annotations

import numpy as np

from . import Array


def resized(x: Array, height: int, width: int) -> Array:
    """Images (n, channels, H, W) as float32 (n, channels, height, width), by bilinear interpolation.

    Where it shrinks, the triangle is as wide as the step, so every pixel counts (as in Pillow's `BILINEAR`). Values
    stay in their range.
    """
    down, across = _weights(x.shape[2], height), _weights(x.shape[3], width)
    found: Array = np.matmul(np.matmul(down, x.astype(np.float32)), across.T)
    return found


def _weights(source: int, target: int) -> Array:
    """(target, source): the share of each old pixel in each new one."""
    step = source / target
    centres = (np.arange(target)[:, None] + 0.5) * step
    weights = np.maximum(0, 1 - np.abs(np.arange(source) + 0.5 - centres) / max(step, 1))
    shares: Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return shares
