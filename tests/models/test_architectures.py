"""ResNet, VGG and ViT: sizes by hand, any input, the shortcut."""

from __future__ import annotations

import pytest
import torch

from unalike import models
from unalike.models.resnet import BasicBlock
from unalike.models.vit import Attention
from unalike.protocol import Spec


def convolution(a: int, b: int, side: int = 3, bias: bool = False) -> int:
    return a * b * side**2 + b * bias


def norm(c: int) -> int:
    return 2 * c


def linear(a: int, b: int) -> int:
    return a * b + b


def basic(a: int, b: int) -> int:
    shortcut = convolution(a, b, 1) + norm(b) if a != b else 0
    return convolution(a, b) + norm(b) + convolution(b, b) + norm(b) + shortcut


def resnet(*depths: int) -> int:
    found, a = convolution(3, 64) + norm(64), 64
    for depth, b in zip(depths, (64, 128, 256, 512), strict=True):
        found += basic(a, b) + (depth - 1) * basic(b, b)
        a = b
    return found + linear(512, 10)


def vgg(*channels: int) -> int:
    pairs = zip((3, *channels), channels, strict=False)
    return sum(convolution(a, b, bias=True) + norm(b) for a, b in pairs) + linear(512, 10)


ENCODER = 2 * norm(192) + linear(192, 3 * 192) + linear(192, 192) + linear(192, 768) + linear(768, 192)
BY_HAND = {
    "resnet18": resnet(2, 2, 2, 2),
    "resnet34": resnet(3, 4, 6, 3),
    "vgg11": vgg(64, 128, 256, 256, 512, 512, 512, 512),
    "vgg16": vgg(64, 64, 128, 128, *(256,) * 3, *(512,) * 6),
    "vit-tiny": convolution(3, 192, 4, bias=True) + 64 * 192 + 6 * ENCODER + norm(192) + linear(192, 10),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_parameters_are_those_counted_by_hand(name: str) -> None:
    assert models.parameters(Spec(name, (3, 32, 32), 10)) == BY_HAND[name]


def test_the_familiar_sizes_of_the_small_image_networks() -> None:
    assert [BY_HAND[n] for n in ("resnet18", "resnet34", "vgg11", "vgg16")] == [
        11_173_962,
        21_282_122,
        9_231_114,
        14_728_266,
    ]


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 9, 30)])
def test_any_image_of_eight_pixels_and_more_passes_at_any_width(name: str, shape: tuple[int, ...]) -> None:
    spec = Spec(f"{name}(width=0.1)", shape, 3)
    models.check(spec)
    assert models.parameters(spec) < BY_HAND[name] / 20


def test_a_block_whose_residual_is_zero_passes_the_positive_part() -> None:
    block = BasicBlock(4, 4, 1).eval()
    torch.nn.init.zeros_(block.residual[-1].weight)
    x = torch.randn(2, 4, 5, 5)
    assert torch.equal(block(x), x.clamp(min=0))


def test_attention_to_equal_tokens_is_their_value() -> None:
    """softmax weights sum to one, so tokens that are all v come back as out(v)."""
    attention = Attention(6, heads=2)
    token = torch.randn(1, 1, 6)
    value = attention.qkv(token)[..., 12:]
    assert torch.allclose(attention(token.expand(1, 5, 6)), attention.out(value).expand(1, 5, 6), atol=1e-6)
