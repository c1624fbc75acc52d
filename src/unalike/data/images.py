"""Images read from files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import InputError
from . import Array

IMAGES = {".png", ".jpg", ".jpeg", ".bmp"}


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """The image in a file; whatever Pillow raises meanwhile says that it is none."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            yield image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{file} is no readable image ({error}): replace or remove it") from error


def longer_side(file: Path) -> int:
    """Pixels along the longer side of an image, as its header says."""
    with _opened(file) as image:
        return int(max(image.size))


def decode(file: Path, size: tuple[int, int] | None) -> tuple[Array, bool]:
    """An image as uint8 (height, width, 3), and whether it is grey. Without `size` its own, at most 64 a side."""
    from PIL import Image, ImageOps

    with _opened(file) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16 bits
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        grey = image.mode in {"1", "L", "LA"}
        shrink = max(1.0, max(image.size) / 64)
        size = size or (max(1, round(image.width / shrink)), max(1, round(image.height / shrink)))
        image = image.convert("RGB")
        return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR)), grey
