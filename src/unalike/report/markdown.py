"""Tables in GitHub's Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import classes, columns
from .paired import ranked
from .records import Method


def methods(found: Sequence[Method]) -> str:
    """The whole table, best mean in bold, and below it what tuning chose."""
    best = next(iter(ranked(found)), None)
    rows = []
    for m, scores, costs in zip(found, columns.scores(found), columns.costs(found), strict=True):
        row = {name: text(value) for name, value in {**scores, "mean by seed": columns.by_seed(m), **costs}.items()}
        rows.append(row | {"mean": f"**{row['mean']}**"} if m is best else row)
    return f"{table(rows)}{tuned(found)}"


def page(found: Sequence[Method], names: Sequence[str] = ()) -> str:
    """compare.md: the table, what its columns mean, and the recall of each class by its name."""
    return f"{methods(found)}\n{text(columns.legend(found))}\n{recalls(found, names)}"


def recalls(found: Sequence[Method], names: Sequence[str]) -> str:
    """A table of classes by methods; nothing where no recall is known."""
    rows = [{name: text(cell) for name, cell in row.items()} for row in classes.by_class(found, names)]
    return f"\n{text(columns.RECALL)}\n\n{table(rows)}" if rows else ""


def tuned(found: Sequence[Method]) -> str:
    """A line for each method that was tuned."""
    lines = [
        f"- {text(m.method)}: {text(columns.chosen(m)) or 'nothing to choose'} ({m.trials} trials)"
        for m in found
        if m.trials
    ]
    return "\n".join(["\nChosen on validation:\n", *lines, ""]) if lines else ""


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows are of Markdown by column; a column empty throughout is left out. The first is set left, others right."""
    head = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    if not head:
        return ""
    lines = [[text(name) for name in head], ["---", *("--:" for _ in head[1:])]]
    lines += [[row[name] for name in head] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def text(plain: str) -> str:
    """Plain text so that nothing in it is markup, in one line."""
    return re.sub(r"([\\`*|\[\]<>]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(plain.split()))
