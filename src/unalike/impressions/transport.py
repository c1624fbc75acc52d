"""How images travel: as they are, as bytes, or not at all."""

from __future__ import annotations

import torch
from torch import Tensor

from .synthesis import BLACK, WHITE

LEVELS = 255


def encode(images: Tensor) -> Tensor:
    """Pixels in [−1, 1] as uint8, the nearest of 256 equal steps."""
    return ((images - BLACK) * (LEVELS / (WHITE - BLACK))).round().to(torch.uint8)


def decode(images: Tensor) -> Tensor:
    """Pixels as networks see them, of what `encode` has made, or as they are."""
    if images.dtype != torch.uint8:
        return images
    return images.float() * ((WHITE - BLACK) / LEVELS) + BLACK
