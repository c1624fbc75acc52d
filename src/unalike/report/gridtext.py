"""A grid, or one comparison, as Markdown: sentences, the whole tables, and where they come from."""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import grid, markdown, matrix, verdicts
from .markdown import text
from .origin import origin
from .records import Compared, Comparison, Grid, Method
from .several import sentences
from .units import UNKNOWN, interval


def body(found: Grid) -> str:
    """Begins with a heading of the second level, so that it can stand below the head of any page."""
    reference = matrix.reference_of(found.rows)
    sentences = [text(sentence) for sentence in verdicts.grid(found, reference)]
    parts = ["## All regimes", " ".join(sentences)]
    parts += [markdown.table([_row(row, matrix.methods(found.rows, reference)) for row in found.rows])]
    parts += ["The best of each regime is bold."]
    parts += ["\n".join(f"- {text(row.regime.name)}: {_told(found, row, reference)}" for row in found.rows)]
    parts += [text(verdicts.HARDEST.format(reference))] if reference else []
    for row in found.rows:
        keys = text(row.regime.told)
        parts += [f"## {text(row.regime.name)}", _told(found, row, reference), keys and f"{keys}."]
        parts += [markdown.page(row.methods, row.classes)]
    return _joined([*parts, *_origin(found)])


def comparison(found: Comparison) -> str:
    """The same of one comparison."""
    told = " ".join(text(sentence) for sentence in sentences(found))
    return _joined(["## The methods", told, markdown.page(found.methods, found.classes), *_origin(found)])


def _origin(found: Grid | Comparison) -> list[str]:
    known = [(term, value) for term, value in origin(found) if value]
    lines = [f"- {term}: {text(value)}" for term, value in known]
    return ["## Where this comes from", "\n".join(lines)]


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def document(found: Grid) -> str:
    return f"# {text(found.about.title)}\n\n{body(found)}"


def renewed(page: str, title: str, below: str) -> str:
    """What stands in `page` before its first heading of the second level, then `below`; an empty page gets a title."""
    head = re.split(r"^## ", page, maxsplit=1, flags=re.MULTILINE)[0].rstrip()
    return f"{head or f'# {text(title)}'}\n\n{below}"


def _told(found: Grid, row: Compared, reference: str | None) -> str:
    return text(grid.told(row, reference, found.about.rivals))


def _row(row: Compared, names: list[str]) -> dict[str, str]:
    best = matrix.best(row)
    return {"regime": text(matrix.title(row))} | {n: _cell(matrix.cell(row, n), best) for n in names}


def _cell(m: Method | None, best: Method | None) -> str:
    if m is None or m.mean is None:
        return UNKNOWN if m is None else "failed"
    mean = interval(m.mean, m.ci95)
    return f"**{mean}**" if m is best else f"{mean}{' (failed)' if m.failed else ''}"
