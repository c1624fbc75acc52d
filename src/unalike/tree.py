"""Trees: nested dicts of tensors, the one kind of value that is trained, kept, sent and hashed.

A name is the path of a leaf joined by "/" (`theta/extractor/0.weight`). Functions here return new trees and change
nothing they are given; `shares_storage` tells whether two trees could change one another.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from safetensors.torch import load as _load_bytes
from safetensors.torch import save as _save_bytes
from torch import Tensor

from .errors import InputError, RunError

Tree: TypeAlias = Mapping[str, Any]
"""Nested mapping of names without "/" to tensors or further trees."""
Batch: TypeAlias = Mapping[str, Tensor]
"""Named tensors with one row a sample: for classification "x" (B, ...) float and "y" (B,) int64."""
Flat: TypeAlias = dict[str, Tensor]
"""The same tree with one level: "/"-joined name to tensor."""


def flatten(tree: Tree, prefix: str = "") -> Flat:
    """Leaves by name, in sorted order of names at every level. Empty branches vanish."""
    flat: Flat = {}
    for name in sorted(tree):
        leaf = tree[name]
        if "/" in name:
            raise InputError(f"tree name {prefix + name!r} contains '/', which separates levels")
        if isinstance(leaf, Tensor):
            flat[prefix + name] = leaf
        elif isinstance(leaf, Mapping):
            flat |= flatten(leaf, f"{prefix}{name}/")
        else:
            raise InputError(f"{prefix}{name} is a {type(leaf).__name__}; a tree holds tensors and dicts only")
    return flat


def unflatten(flat: Mapping[str, Tensor]) -> dict[str, Any]:
    """The inverse of `flatten` for trees without empty branches."""
    tree: dict[str, Any] = {}
    for name, leaf in flat.items():
        *path, last = name.split("/")
        branch = tree
        for part in path:
            branch = branch.setdefault(part, {})
        branch[last] = leaf
    return tree


def map_leaves(function: Callable[..., Tensor], tree: Tree, *others: Tree) -> dict[str, Any]:
    """`function` of every leaf and the leaves of that name in `others`, in the same nesting."""

    def mapped(name: str, found: Any) -> Any:
        below = (found, *(other[name] for other in others))
        return function(*below) if isinstance(found, Tensor) else map_leaves(function, *below)

    return {name: mapped(name, found) for name, found in tree.items()}


def merge(a: Tree, b: Tree) -> dict[str, Any]:
    """The leaves of both; those of `b` where both have one."""
    return unflatten(flatten(a) | flatten(b))


def clone(tree: Tree) -> dict[str, Any]:
    """A detached copy that shares no storage with `tree`."""
    return map_leaves(lambda leaf: leaf.detach().clone(), tree)


def to(tree: Tree, device: torch.device) -> dict[str, Any]:
    """The tree on `device`; leaves that are there already are not copied."""
    return map_leaves(lambda leaf: leaf.detach().to(device), tree)


def nbytes(tree: Tree) -> int:
    """Bytes of tensor payload."""
    return sum(leaf.numel() * leaf.element_size() for leaf in flatten(tree).values())


def count(tree: Tree) -> int:
    """Number of scalars."""
    return sum(leaf.numel() for leaf in flatten(tree).values())


def require_same_names_and_shapes(tree: Tree, like: Tree, sender: str) -> None:
    """Raise `RunError` unless `tree` has the leaves of `like`: same names, shapes and dtypes."""
    mine, theirs = flatten(tree), flatten(like)
    for name in sorted(mine.keys() | theirs.keys()):
        if name not in mine:
            raise RunError(f"{sender} did not send {name}, which the others have {tuple(theirs[name].shape)}")
        if name not in theirs:
            raise RunError(f"{sender} sent {name} {tuple(mine[name].shape)}, which the others do not have")
        if mine[name].shape != theirs[name].shape or mine[name].dtype != theirs[name].dtype:
            described = [f"{tuple(t.shape)} {str(t.dtype)[6:]}" for t in (mine[name], theirs[name])]
            raise RunError(f"{sender} sent {name} {described[0]}; the others have {described[1]}")


def weighted_mean(trees: Sequence[Tree], weights: Sequence[float]) -> dict[str, Any]:
    """Σ wᵢ treeᵢ / Σ wᵢ leaf by leaf, summed in float64 in the order given; integer leaves are rounded.

    Raises `RunError` when a tree differs in names or shapes, `ValueError` when no weight is positive.
    """
    total = float(sum(weights))
    if not trees or min(weights) < 0 or not total > 0:
        raise ValueError(f"a weighted mean needs non-negative weights with a positive sum, got {list(weights)}")
    for i, other in enumerate(trees[1:], start=1):
        require_same_names_and_shapes(other, trees[0], f"participant {i}")
    flats = [flatten(t) for t in trees]

    def mean(name: str, like: Tensor) -> Tensor:
        accumulated = torch.zeros_like(like, dtype=torch.float64)
        for flat, weight in zip(flats, weights, strict=True):
            accumulated.add_(flat[name], alpha=weight / total)
        return (accumulated if like.is_floating_point() else accumulated.round()).to(like.dtype)

    return unflatten({name: mean(name, leaf) for name, leaf in flats[0].items()})


def storages(tree: Tree) -> set[int]:
    """Addresses of the non-empty storages below `tree`."""
    return {leaf.untyped_storage().data_ptr() for leaf in flatten(tree).values() if leaf.numel()}


def shares_storage(a: Tree, b: Tree) -> bool:
    """Whether writing into a leaf of one could change a leaf of the other."""
    return not storages(a).isdisjoint(storages(b))


def sha256(tree: Tree) -> str:
    """Canonical hash: names sorted, each with dtype, shape and little-endian bytes."""
    digest = hashlib.sha256()
    for name, leaf in sorted(flatten(tree).items()):
        tensor = leaf.detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype)[6:]}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def to_bytes(tree: Tree) -> bytes:
    """The tree as safetensors."""
    return _save_bytes({name: leaf.detach().cpu().contiguous() for name, leaf in flatten(tree).items()})


def from_bytes(data: bytes) -> dict[str, Any]:
    """The inverse of `to_bytes`."""
    return unflatten(_load_bytes(data))


def equal(a: Tree, b: Tree) -> bool:
    """Bit equality of names, dtypes, shapes and values (NaNs of equal bits are equal)."""
    return sha256(a) == sha256(b)


def non_finite(tree: Tree) -> Iterable[str]:
    """Names of floating leaves that hold a NaN or an infinity."""
    return (n for n, t in flatten(tree).items() if t.is_floating_point() and not bool(torch.isfinite(t).all()))
