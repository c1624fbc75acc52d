"""Several sources of the same classes as one: each row's site is the source that it comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..errors import InputError
from . import Array, Source
from .resize import resized


def joined(name: str, parts: Sequence[Source], image_size: int | None = None) -> Source:
    """The rows of all `parts`, in their order; the classes stand in the order of the first.

    Images become uint8 in 0..255, of `image_size` pixels a side where that is given. An official test set counts only
    where every source has one; elsewhere its rows are rows like others. A row's group is one of its own source; rows of
    a source without groups are each their own.

    Raises:
        InputError: kind, classes, channels, size or columns differ.
    """
    first = parts[0]
    if image_size:
        parts = [replace(part, x=_sized(part, image_size)) if part.kind == "image" else part for part in parts]
    for part in parts:
        _require_alike(parts[0], part)
    return replace(
        first,
        name=name,
        x=np.concatenate([_in_bytes(part) if part.kind == "image" else part.x for part in parts]),
        y=np.concatenate([np.array([first.classes.index(c) for c in part.classes])[part.y] for part in parts]),
        test=np.concatenate([part.test for part in parts if part.test is not None])
        if all(part.test is not None for part in parts)
        else None,
        sites=np.repeat([part.name for part in parts], [len(part.y) for part in parts]),
        groups=_groups(parts),
        pixel_max=255.0 if first.kind == "image" else first.pixel_max,
    )


def _require_alike(first: Source, other: Source) -> None:
    def differ(what: str, ours: object, theirs: object, more: str = "") -> InputError:
        both = f"{first.name} and {other.name}"
        return InputError(f"{both} differ in {what}, {ours} and {theirs}: joined sources need the same{more}")

    ours, theirs = first.x.shape[1:], other.x.shape[1:]
    if first.kind != other.kind:
        raise differ("kind", first.kind, other.kind)
    for one, rest in ((other, first), (first, other)):
        for missing in sorted({*rest.classes} - {*one.classes})[:1]:
            raise InputError(
                f"{one.name} has no class {missing!r}, and {rest.name} has: joined sources need the same classes"
            )
    if first.kind == "image" and ours[0] != theirs[0]:
        raise differ("channels", ours[0], theirs[0], " (1 is grey, 3 is colour)")
    if first.kind == "image" and ours != theirs:
        sizes = [f"{height}x{width}" for height, width in (ours[1:], theirs[1:])]
        raise differ("size", sizes[0], sizes[1], f"; give --image-size {max(ours[1:])} or {max(theirs[1:])}")
    if ours != theirs:
        raise differ("shape", ours, theirs)
    if first.features != other.features:
        raise differ("columns", ", ".join(first.features), ", ".join(other.features), " in the same order")


def _sized(source: Source, side: int) -> Array:
    if source.x.shape[2:] == (side, side):
        return source.x
    x = resized(source.x, side, side)
    return np.rint(x).astype(source.x.dtype) if source.x.dtype.kind in "iu" else x


def _in_bytes(source: Source) -> Array:
    if source.x.dtype == np.uint8 and source.pixel_max == 255:
        return source.x
    found: Array = np.rint(np.clip(source.x.astype(np.float32) * (255 / source.pixel_max), 0, 255)).astype(np.uint8)
    return found


def _groups(parts: Sequence[Source]) -> Array | None:
    if all(part.groups is None for part in parts):
        return None
    each = [np.arange(len(part.y)).astype(str) if part.groups is None else part.groups for part in parts]
    return np.concatenate([np.char.add(f"{part.name} ", own) for part, own in zip(parts, each, strict=True)])
