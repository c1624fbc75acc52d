"""From rows as stored to what a model takes, fitted on nothing but a client's own training rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..files import with_tuples
from . import Source, text


@dataclass(frozen=True)
class Preprocess:
    """x ↦ (fill(x) − mean) / std along the feature axis; for images the constants ½ after division by white.

    `mean`, `std` and `fill` have one entry a feature (table), a channel (window), or one for all (image). Missing
    values are filled only where the run was told to (`imputes`).
    """

    kind: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fill: tuple[float, ...] = ()
    imputes: bool = False
    features: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    model: str = ""
    """The model whose tokens texts and questions become."""

    @classmethod
    def fit(cls, source: Source, rows: np.ndarray, model: str = "") -> Preprocess:
        """Statistics of `rows` of a table or of sensor windows; an image's scale is a constant of its source.

        A feature that never varies, or is missing in every row, becomes 0. Of texts and questions nothing is taken.
        """
        shape = tuple(source.x.shape[1:])
        if source.kind in ("text", "vqa"):
            return cls(source.kind, shape, mean=(), std=(), model=model)  # its classes are others' answers
        if source.kind == "image":
            half = source.pixel_max / 2
            return cls(source.kind, shape, mean=(half,), std=(half,), classes=source.classes)
        x = source.x[rows].astype(np.float64)
        values = x if source.kind == "table" else x.transpose(0, 2, 1).reshape(-1, x.shape[1])
        gaps = np.isnan(values)
        known: Any = np.ma.masked_array(values, gaps)
        centres = {
            "mean": known.mean(axis=0),
            "median": np.ma.median(known, axis=0),  # type: ignore[no-untyped-call]
            "zero": np.zeros(values.shape[1]),
        }
        fill = np.ma.filled(centres[source.impute or "mean"], 0.0)
        filled = np.where(gaps, fill, values)
        std = filled.std(axis=0)
        return cls(
            source.kind,
            shape,
            mean=tuple(filled.mean(axis=0).tolist()),
            std=tuple(np.where(std > 0, std, 1.0).tolist()),
            fill=tuple(np.broadcast_to(fill, (values.shape[1],)).tolist()),
            imputes=source.impute is not None,
            features=source.features,
            classes=source.classes,
        )

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Rows (n, *shape) of any dtype to float32 of the same shape, texts to tokens (n, T)."""
        if self.kind == "text":
            return text.prompts(self.model, x)
        tail = (1,) * (len(self.shape) - 1) if self.kind != "image" else ()
        mean, std = (np.asarray(v, dtype=np.float32).reshape(-1, *tail) for v in (self.mean, self.std))
        values = np.asarray(x, dtype=np.float32)
        if self.fill:
            values = np.where(np.isnan(values), np.asarray(self.fill, dtype=np.float32).reshape(-1, *tail), values)
        scaled: np.ndarray = (values - mean) / std
        return scaled

    def describe(self) -> dict[str, Any]:
        """As JSON values; `restore` is the inverse."""
        return asdict(self)

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Preprocess:
        return cls(**with_tuples(description))
