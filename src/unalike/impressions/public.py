"""Public images to start from. The one place where a method's work reads data: none of a client's."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data import Source
from ..data.sources import load
from ..errors import InputError
from ..protocol import Spec
from ..rng import Key


def drawn(data: str, n: int, spec: Spec, key: Key) -> Tensor:
    """(n, *spec.input) in [−1, 1]: images of the set drawn at random, resized, and grey or coloured as the model's."""
    source = _images(data)
    rows = key.numpy().choice(len(source.x), n, replace=n > len(source.x))
    x = torch.from_numpy(source.x[rows].astype(np.float32)) * (2 / source.pixel_max) - 1
    channels, height, width = spec.input
    if x.shape[1] != channels:
        x = x.mean(1, keepdim=True).expand(-1, channels, -1, -1)
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True).clamp(-1, 1).contiguous()


@functools.lru_cache(maxsize=1)
def _images(data: str) -> Source:
    source = load(data)
    if source.kind != "image":
        raise InputError(f"impressions cannot start from public:{data}: it is a {source.kind}, not images")
    return source
