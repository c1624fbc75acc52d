"""VGG networks with BatchNorm for small images (Simonyan, Zisserman 2015; arXiv 1409.1556), one linear layer."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

from torch import nn

from .cnn import assemble, scaled
from .units import Chain

STAGES: Mapping[int, Sequence[Sequence[int]]] = {
    11: ((64,), (128,), (256, 256), (512, 512), (512, 512)),
    16: ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
}
"""Number of layers to channels of the convolutions between two pools."""


def vgg(layers: int, input: tuple[int, ...], classes: int, width: float = 1.0, cut: int = 2) -> nn.Module:
    """VGG-`layers` (11 or 16) with BatchNorm: 3x3 convolutions in five stages, each with a 2x2 max-pool at its end.

    Args:
        input: (channels, height, width), sides of 8 pixels and more; a pool leaves a side of one pixel as it is.
        width: factor on all channel counts.
        cut: the pool after which ProFL cuts the chain in two blocks, 2 or 3.

    Units are convolution, BatchNorm, ReLU, and the pool where one follows.
    """
    channels, units, ends = input[0], OrderedDict[str, nn.Module](), [0]
    for stage, filters in enumerate(STAGES[layers], start=1):
        for i, wide in enumerate(filters, start=1):
            pool = [nn.MaxPool2d(2, ceil_mode=True)] if i == len(filters) else []
            convolution = nn.Conv2d(channels, scaled(wide, width), 3, padding=1)
            channels = scaled(wide, width)
            units[f"stage{stage}_{i}"] = nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(), *pool)
        ends.append(len(units))
    chain = Chain(units, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], (0, ends[cut], len(units)))
    return assemble(chain, nn.Linear(channels, classes))
