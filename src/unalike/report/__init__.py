"""Runs, comparisons and grids told on a page: self-contained HTML, readable offline, the same bytes each time.

Imports neither torch nor anything of unalike that computes: what a run left behind is enough.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import write_atomically
from . import grid, gridtext, matrix, several, single, story, tables, verdicts
from .read import find_baseline, is_comparison, is_grid, read_comparison, read_grid, read_run, shared_clients
from .records import Run

__all__ = ["sentence", "write"]


def write(folder: Path, *, against: Path | None = None, page: Path | None = None) -> Path:
    """Writes folder/report.html and returns its path.

    A folder with grid.json gets the page of a grid, and grid.csv and grid.md; one with compare.json that of a
    comparison, and compare.csv, compare.tex and compare.md; any other run folder that of a run. A run is set against
    `against`, or else against the best finished standalone run beside it, of the same partition and seed. What a grid
    or a comparison says is also written into the Markdown file `page`, below whatever stands there before its first
    "## ".

    Raises:
        InputError: the folder is no run, a file in it is broken, or `against` does not have the same clients.
    """
    whole = is_grid(folder) or is_comparison(folder)
    if against is not None and whole:
        raise InputError(f"{folder} is a comparison, which is set against nothing: leave out --against")
    if page is not None and not whole:
        raise InputError(f"{folder} is one run, and only comparisons are written into a page: leave out --page")
    if is_grid(folder):
        return _write_grid(folder, page)
    if is_comparison(folder):
        found = read_comparison(folder)
        tables.write(folder, found)
        _renew(page, found.about.title or found.name, gridtext.comparison(found))
        return _written(folder / "report.html", several.page(found))
    return _written(folder / "report.html", single.page(*_pair(folder, against)))


def sentence(folder: Path) -> str:
    """The result in words, as at the head of the page: did federating pay, and for whom?"""
    if is_grid(folder):
        found = read_grid(folder)
        return " ".join(verdicts.grid(found, matrix.reference_of(found.rows)))
    if is_comparison(folder):
        return " ".join(several.sentences(read_comparison(folder)))
    return story.verdict(*_pair(folder, None))


def _write_grid(folder: Path, page: Path | None) -> Path:
    found = read_grid(folder)
    _written(folder / "grid.csv", tables.as_csv(matrix.records(found)))
    _written(folder / "grid.md", gridtext.document(found))
    _renew(page, found.about.title, gridtext.body(found))
    return _written(folder / "report.html", grid.page(found))


def _renew(page: Path | None, title: str, below: str) -> None:
    if page is not None:
        before = page.read_text(encoding="utf-8") if page.is_file() else ""
        _written(page, gridtext.renewed(before, title, below))


def _written(path: Path, text: str) -> Path:
    write_atomically(path, text.encode())
    return path


def _pair(folder: Path, against: Path | None) -> tuple[Run, Run | None]:
    run = read_run(folder)
    if against is None:
        return run, find_baseline(folder, run)
    other = read_run(against)
    differ = {run.partition_hash, other.partition_hash} - {None}
    if len(differ) > 1 or not shared_clients(run, other):
        raise InputError(f"{against} and {folder} have not the same clients: run both on one --partition and --seed")
    return run, other
