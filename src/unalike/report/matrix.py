"""A grid of comparisons as a matrix: rows are regimes, columns methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from . import columns
from .paired import named, ranked, reference_name
from .records import Compared, Grid, Method


def methods(rows: Sequence[Compared], reference: str | None) -> list[str]:
    """All methods, the reference first, then in the order in which they are met."""
    met = dict.fromkeys(m.method for row in rows for m in row.methods)
    return ([reference] if reference in met else []) + [name for name in met if name != reference]


def reference_of(rows: Sequence[Compared]) -> str | None:
    """The one that the differences in the regimes are to."""
    return next((name for row in rows if (name := reference_name(row.methods))), None)


def title(row: Compared) -> str:
    """A regime's name, and its status where it is not done."""
    return row.regime.name if row.regime.status == "done" else f"{row.regime.name} ({row.regime.status})"


def cell(row: Compared, name: str) -> Method | None:
    return named(row.methods, name)


def best(row: Compared) -> Method | None:
    return next(iter(ranked(row.methods)), None)


def records(found: Grid) -> list[dict[str, Any]]:
    """grid.csv: a line for each regime and method; of a regime that has not begun, one line with its keys."""
    out = []
    for row in found.rows:
        regime = {"regime": row.regime.name, "folder": row.regime.folder, "regime_status": row.regime.status}
        lines: list[dict[str, Any]] = [columns.plain(m) for m in row.methods] or [{}]
        out += [{**regime, **row.regime.keys, **line} for line in lines]
    return out
