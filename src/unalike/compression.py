"""What of a tree need not travel: matrices as the few singular triples that carry most of their energy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .tree import Tree


def compress(tree: Tree, energy: float) -> dict[str, Any]:
    """Each matrix A as {"u" (m, K), "s" (K,), "v" (K, n)} with A ≈ u · diag(s) · v, where that is smaller than A.

    K is the smallest number of singular values with Σ_{i≤K} σᵢ² / Σ σᵢ² > `energy` (all that are not 0 if none is
    enough); a matrix of zeros has K = 0 and empty factors. A leaf of more axes is the matrix (first axis, the rest).
    Vectors, integers, and matrices whose factors would be no smaller stay as they are.
    """
    return {
        name: compress(below, energy) if isinstance(below, Mapping) else _compressed(below, energy)
        for name, below in tree.items()
    }


def decompress(compressed: Tree, like: Tree) -> dict[str, Any]:
    """The tree that `compressed` stands for; `like` has its names and shapes."""
    return {
        name: decompress(compressed[name], below) if isinstance(below, Mapping) else _whole(compressed[name], below)
        for name, below in like.items()
    }


def _compressed(leaf: Tensor, energy: float) -> Tensor | dict[str, Tensor]:
    if leaf.ndim < 2 or not leaf.is_floating_point() or not bool(torch.isfinite(leaf).all()):
        return leaf
    matrix = leaf.flatten(1)
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    k = rank(s, energy)
    if k * (sum(matrix.shape) + 1) >= matrix.numel():
        return leaf
    kept = {"u": u[:, :k], "s": s[:k], "v": v[:k]}
    return {name: factor.to(leaf.dtype, memory_format=torch.contiguous_format) for name, factor in kept.items()}


def rank(s: Tensor, energy: float) -> int:
    """The smallest K with Σ_{i≤K} σᵢ² / Σ σᵢ² > `energy`, for singular values in descending order."""
    carried = s.square().cumsum(0)
    return min(int((carried <= energy * carried[-1]).sum()) + 1, int((s > 0).sum()))


def _whole(compressed: Tensor | Tree, like: Tensor) -> Tensor:
    if isinstance(compressed, Tensor):
        return compressed
    u, s, v = compressed["u"], compressed["s"], compressed["v"]
    whole: Tensor = (u * s) @ v
    return whole.reshape(like.shape)
