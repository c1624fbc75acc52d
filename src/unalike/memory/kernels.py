"""What a kernel takes within itself, where no tensor tells: oneDNN's convolutions on a CPU.

They compute on copies whose channels are laid out in blocks of 16, and copy the result back. With X, W, Y the bytes of
input, weight and output, x, w, y those of their copies (channels rounded up to 16), and beside tensors that are there
before or after:

    forward    max(x + w + y, y + Y) - Y
    backward   max(y + w + x, 2 X or with a stride 3 X, X + x + y + w, X + w + W) - X - W    input and weight wanted
               max(x + y + w, w + W) - W                                                      only the weight
               max(y + w + x, 2 X or 3 X) - X                                                 only the input

Up to 3 channels the input is read as it is: x = 0 but for its own gradient. Found by replaying the allocations of
torch 2.13 with AVX-512, layer by layer; a test holds the formulas against such a replay. They are used whatever machine
predicts, so that a plan does not depend on where it is made. With AVX2 alone blocks are of 8: layers of 8 channels or
fewer then take less than predicted, of a network of such layers up to a fifth less.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

BLOCK, FEW = 16, 3
_FORWARD, _BACKWARD = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default


def workspace(function: Any, arguments: Any, outputs: Any) -> int:
    """Bytes that the operation takes beyond its arguments and outputs while it runs; 0 where none are known of."""
    if function is _FORWARD and _is_onednn(arguments[0], transposed=arguments[6]):
        return _forward(arguments[0], arguments[1], outputs)
    if function is _BACKWARD and _is_onednn(arguments[0], transposed=arguments[7]):
        gradient, x, weight, strides, wanted = (arguments[i] for i in (0, 1, 2, 4, 10))
        return _backward(gradient, x, weight, max(strides) > 1, wanted[0], wanted[1])
    return 0


def _is_onednn(tensor: Tensor, transposed: bool) -> bool:
    return tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.bfloat16) and not transposed


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _blocked(tensor: Tensor, *axes: int) -> int:
    """Bytes of a copy whose `axes` are rounded up to whole blocks."""
    sizes = [math.ceil(n / BLOCK) * BLOCK if i in axes else n for i, n in enumerate(tensor.shape)]
    return math.prod(sizes) * tensor.element_size()


def _copies(x: Tensor, weight: Tensor) -> tuple[int, int]:
    """x, w: of the input as it is read, and of the weight."""
    if x.shape[1] <= FEW:
        return 0, _bytes(weight)
    return _blocked(x, 1), _blocked(weight, 0) if weight.shape[1] < BLOCK else _blocked(weight, 0, 1)


def _forward(given: Tensor, weight: Tensor, output: Tensor) -> int:
    (x, w), y = _copies(given, weight), _blocked(output, 1)
    return max(x + w + y, y + _bytes(output)) - _bytes(output)


def _backward(gradient: Tensor, given: Tensor, weight: Tensor, strided: bool, of_x: bool, of_w: bool) -> int:
    (x, w), y, X, W = _copies(given, weight), _blocked(gradient, 1), _bytes(given), _bytes(weight)
    for_input = max(y + w + _blocked(given, 1), (3 if strided else 2) * X)
    if of_x and of_w:
        return max(for_input, X + x + y + w, X + w + W) - X - W
    return max(x + y + w, w + W) - W if of_w else for_input - X if of_x else 0
