"""Rows without labels, read in the shape that a trained model takes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import InputError
from . import X_NAMES, read_npz
from .images import IMAGES, decode
from .preprocess import Preprocess
from .tables import MISSING, columns, number


def read_rows(path: Path, preprocess: Preprocess) -> np.ndarray:
    """Raw rows (n, *preprocess.shape) from an .npz with `x`, a .csv, an image, or a folder of images (sorted by name).

    A table's columns are found by name, in any order; further columns are passed over.
    """
    suffix = path.suffix.lower()
    if not path.exists():
        raise InputError(f"there is no file or folder {path}")
    if suffix == ".npz":
        return _npz(path, preprocess)
    if suffix == ".csv":
        return _csv(path, preprocess)
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in IMAGES) if path.is_dir() else [path]
    if not files or any(f.suffix.lower() not in IMAGES for f in files):
        raise InputError(f"{path} holds no rows: give an .npz with x, a .csv, an image or a folder of images")
    if preprocess.kind != "image":
        raise InputError(f"the model takes a {preprocess.kind}, not images such as {files[0].name}")
    channels, height, width = preprocess.shape
    pixels = np.stack([decode(file, (width, height))[0] for file in files]).transpose(0, 3, 1, 2)
    grey = pixels.mean(1, keepdims=True) if channels == 1 else pixels
    return (grey * (2 * preprocess.mean[0] / 255)).astype(np.float32)


def _npz(path: Path, preprocess: Preprocess) -> np.ndarray:
    arrays = read_npz(path)
    x = next((arrays[name] for name in X_NAMES if name in arrays), None)
    if x is None:
        raise InputError(f"{path} has no array x; it has {', '.join(arrays) or 'nothing'}")
    if preprocess.kind == "image" and x.ndim == 3 and preprocess.shape[0] == 1:
        x = x[:, None]
    if x.ndim == 4 and x.shape[1:] != tuple(preprocess.shape) and x.shape[3] == preprocess.shape[0]:
        x = x.transpose(0, 3, 1, 2)
    if x.dtype.kind not in "biuf" or x.shape[1:] != tuple(preprocess.shape):
        wanted = ", ".join(map(str, preprocess.shape))
        raise InputError(f"{path}: x is {x.dtype} of shape {x.shape}; the model takes numbers (n, {wanted})")
    return _whole(np.asarray(x, dtype=np.float32), str(path), preprocess)


def _csv(path: Path, preprocess: Preprocess) -> np.ndarray:
    if preprocess.kind != "table":
        raise InputError(f"{path} is a table; the model takes a {preprocess.kind} of shape {preprocess.shape}")
    found = columns(path)
    _require_known_texts(found, preprocess.features, path)
    return _whole(np.stack([_column(name, found, path) for name in preprocess.features], axis=1), str(path), preprocess)


def _column(name: str, found: dict[str, list[str]], path: Path) -> np.ndarray:
    """A feature's values; "colour=red" is the indicator of a text in the column "colour"."""
    if name in found:
        for row, value in enumerate(found[name], start=1):
            if number(value) is None:
                raise InputError(f"{path}: row {row}, column {name!r}: {value!r} is no number")
        return np.array([number(value) for value in found[name]], dtype=np.float32)
    column = max((c for c in found if name.startswith(f"{c}=")), key=len, default=None)
    if column is None:
        raise InputError(f"{path} has no column {name!r}, which the model was trained on")
    text = name.removeprefix(f"{column}=")
    return np.array(
        [np.nan if value.lower() in MISSING else value == text for value in found[column]], dtype=np.float32
    )


def _require_known_texts(found: dict[str, list[str]], features: tuple[str, ...], path: Path) -> None:
    """Raise `InputError` at a text that training never saw: all its indicators would be 0, like nobody's."""
    for column in found:
        known = {name.removeprefix(f"{column}=") for name in features if name.startswith(f"{column}=")}
        for row, value in enumerate(found[column] if known and column not in features else [], start=1):
            if value not in known and value.lower() not in MISSING:
                raise InputError(
                    f"{path}: row {row}, column {column!r}: {value!r} is none of {', '.join(sorted(known))}"
                )


def _whole(x: np.ndarray, where: str, preprocess: Preprocess) -> np.ndarray:
    bad = np.isinf(x) if preprocess.imputes else ~np.isfinite(x)
    if bad.any():
        row, *rest = (int(i) + 1 for i in np.argwhere(bad)[0])
        raise InputError(f"{where}: row {row}, position {tuple(rest)} is no finite number, and the model fills no gaps")
    return x
