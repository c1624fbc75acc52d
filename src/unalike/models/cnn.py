"""The five convolutional networks of the pFedAFM experiments, for any input size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

FEATURES = 500
"""Width of every CNN's features; the shared extractor mixes with any of them."""
WIDTHS = {1: (16, 32, 2000), 2: (16, 16, 2000), 3: (16, 32, 1000), 4: (16, 32, 800), 5: (16, 32, 500)}
"""Model number to channels of the two convolutions and width of the first linear layer."""


def scaled(channels: int, width: float) -> int:
    """round(width · channels), at least 1."""
    return max(1, round(width * channels))


class UpsampleTo(nn.Module):
    """Bilinear scaling of (B, C, H, W) until both sides reach `side` pixels; larger images pass as they are."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) >= self.side:
            return x
        scale = self.side / min(x.shape[-2:])
        size = [round(length * scale) for length in x.shape[-2:]]
        return nn.functional.interpolate(x, size=size, mode="bilinear", align_corners=False)


def cnn(
    number: int, input: tuple[int, ...], classes: int, dropout: float = 0.0, norm: bool = False, width: float = 1.0
) -> nn.Module:
    """CNN-`number`: two 5x5 convolutions each with ReLU and 2x2 max-pool, two linear layers with ReLU, a linear header.

    Args:
        input: (channels, height, width). Sides below 16 pixels are scaled up to 28 first.
        dropout: probability of dropping a feature before the header's input (0: none, as in the paper).
        norm: whether a BatchNorm follows each convolution (the paper has none).
        width: factor on all channel counts and on the widths of the linear layers.

    The pool stands before the ReLU: the two commute, and the ReLU then touches a quarter of the elements.
    """
    first, second, hidden, features = (scaled(n, width) for n in (*WIDTHS[number], FEATURES))

    def block(channels: int, filters: int) -> list[nn.Module]:
        normalise = [nn.BatchNorm2d(filters)] if norm else []
        return [nn.Conv2d(channels, filters, 5), *normalise, nn.MaxPool2d(2), nn.ReLU()]

    scale = [UpsampleTo(28)] if min(input[1:]) < 16 else []
    stem = nn.Sequential(*scale, *block(input[0], first), *block(first, second), nn.Flatten())
    with torch.no_grad():
        flat = stem.eval()(torch.zeros(1, *input)).shape[1]
    drop = [nn.Dropout(dropout)] if dropout else []
    extractor = nn.Sequential(*stem, nn.Linear(flat, hidden), nn.ReLU(), nn.Linear(hidden, features), nn.ReLU(), *drop)
    return assemble(extractor, nn.Linear(features, classes))


class Assembled(nn.Module):
    """A model in its two parts: `header(extractor(x))`."""

    def __init__(self, extractor: nn.Module, header: nn.Module) -> None:
        super().__init__()
        self.extractor = extractor
        self.header = header

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.header(self.extractor(x))
        return outputs


def assemble(extractor: nn.Module, header: nn.Module) -> nn.Module:
    """A model whose features are `extractor(x)` (B, d) and whose outputs are `header` of them."""
    return Assembled(extractor, header)
