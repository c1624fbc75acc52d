"""Residual networks for small images (He, Zhang, Ren, Sun 2016; arXiv 1512.03385), stem without pooling."""

from __future__ import annotations

from collections import OrderedDict
from itertools import accumulate

from torch import Tensor, nn

from .cnn import assemble, scaled
from .units import Chain

DEPTHS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Number of layers to basic blocks in each of the four stages."""
WIDTHS = (64, 128, 256, 512)
"""Channels of the stages."""


class BasicBlock(nn.Module):
    """relu(f(x) + shortcut(x)): f two 3x3 convolutions with BatchNorm, the shortcut 1x1 where shapes differ."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
        )
        plain = stride == 1 and channels == filters
        projection = [nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)]
        self.shortcut = nn.Identity() if plain else nn.Sequential(*projection)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.relu(self.residual(x) + self.shortcut(x))
        return y


def resnet(layers: int, input: tuple[int, ...], classes: int, width: float = 1.0) -> nn.Module:
    """ResNet-`layers` (18 or 34): a 3x3 stem and four stages of basic blocks, pooled to one pixel.

    Args:
        input: (channels, height, width), sides of 8 pixels and more.
        width: factor on all channel counts.

    Units are the stem and each basic block; the paper's cuts are one block a stage, the stem in the first.
    """
    depths, channels = DEPTHS[layers], scaled(WIDTHS[0], width)
    stem = [nn.Conv2d(input[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
    units: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(*stem))
    for stage, (depth, wide) in enumerate(zip(depths, WIDTHS, strict=True), start=1):
        for i in range(depth):
            filters, stride = scaled(wide, width), 2 if i == 0 and stage > 1 else 1
            units[f"stage{stage}_{i + 1}"] = BasicBlock(channels, filters, stride)
            channels = filters
    cuts = (0, *(1 + passed for passed in accumulate(depths)))
    return assemble(Chain(units, [nn.AdaptiveAvgPool2d(1), nn.Flatten()], cuts), nn.Linear(channels, classes))
