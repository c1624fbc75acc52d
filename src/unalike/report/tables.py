"""A comparison as files for other programs and for papers: CSV, LaTeX and Markdown."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..files import write_atomically
from . import columns, latex, markdown
from .records import Comparison


def write(folder: Path, found: Comparison) -> None:
    """compare.csv, compare.tex and compare.md."""
    texts = {
        "compare.csv": as_csv([columns.plain(m) for m in found.methods]),
        "compare.tex": latex.table(found.methods, latex.caption(found)),
        "compare.md": markdown.page(found.methods, found.classes),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode())


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """One line a record, with the columns of all of them; what is not known is empty."""
    file = io.StringIO()
    head = list(dict.fromkeys(name for record in records for name in record))
    writer = csv.DictWriter(file, head, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return file.getvalue()
