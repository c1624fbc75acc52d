"""A small vision transformer (Dosovitskiy et al. 2021; arXiv 2010.11929), its tokens averaged."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cnn import assemble, scaled
from .units import Chain


class Patches(nn.Module):
    """(B, C, H, W) to tokens (B, N, d): each patch through one linear map, a trained position added."""

    def __init__(self, input: tuple[int, ...], side: int, d: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(input[0], d, side, side)
        self.position = nn.Parameter(0.02 * torch.randn((input[1] // side) * (input[2] // side), d))

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.embed(x).flatten(2).transpose(1, 2)
        return tokens + self.position


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, N, d)."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=2))
        mixed: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return mixed


class Encoder(nn.Module):
    """x + attention(norm(x)), then the same with a two-layer perceptron of width 4 d."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.before, self.attention = nn.LayerNorm(d), Attention(d, heads)
        self.between = nn.LayerNorm(d)
        self.perceptron = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.before(x))
        y: Tensor = x + self.perceptron(self.between(x))
        return y


class MeanOfTokens(nn.Module):
    """(B, N, d) to (B, d)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(
    input: tuple[int, ...], classes: int, width: float = 1.0, depth: int = 6, heads: int = 3, patch: int = 4
) -> nn.Module:
    """ViT of width d = heads · round(64 · width): patches, `depth` encoders, a norm, the mean of the tokens.

    Args:
        input: (channels, height, width), sides of 8 pixels and more; what no whole patch covers is left out.
        width: factor on the width of a head.
        depth: number of encoders.
        heads: heads of attention in each.
        patch: side of a patch in pixels.

    Units are the patches and each encoder, the norm in the last.
    """
    d = heads * scaled(64, width)
    units: OrderedDict[str, nn.Module] = OrderedDict(patches=Patches(input, patch, d))
    for i in range(1, depth + 1):
        encoder = Encoder(d, heads)
        units[f"encoder{i}"] = encoder if i < depth else nn.Sequential(encoder, nn.LayerNorm(d))
    return assemble(Chain(units, [MeanOfTokens()]), nn.Linear(d, classes))
