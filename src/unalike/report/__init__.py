"""A run folder told on one page: self-contained HTML, readable offline, the same bytes each time.

Imports neither torch nor anything of unalike that computes: what a run left behind is enough.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..files import write_atomically
from . import several, single, story
from .read import find_baseline, is_comparison, read_comparison, read_run, shared_clients
from .records import Run

__all__ = ["sentence", "write"]


def write(folder: Path, *, against: Path | None = None) -> Path:
    """Writes folder/report.html and returns its path.

    A folder with compare.json gets the page of a comparison, any other run folder that of a run. A run is set against
    `against`, or else against the best finished standalone run beside it, of the same partition and seed.

    Raises:
        InputError: the folder is no run, a file in it is broken, or `against` does not have the same clients.
    """
    if not is_comparison(folder):
        page = single.page(*_pair(folder, against))
    elif against is None:
        page = several.page(read_comparison(folder))
    else:
        raise InputError(f"{folder} is a comparison, which is set against nothing: leave out --against")
    path = folder / "report.html"
    write_atomically(path, page.encode())
    return path


def sentence(folder: Path) -> str:
    """The result in words, as at the head of the page: did federating pay, and for whom?"""
    if is_comparison(folder):
        return " ".join(story.comparison(read_comparison(folder).methods))
    return story.verdict(*_pair(folder, None))


def _pair(folder: Path, against: Path | None) -> tuple[Run, Run | None]:
    run = read_run(folder)
    if against is None:
        return run, find_baseline(folder, run)
    other = read_run(against)
    differ = {run.partition_hash, other.partition_hash} - {None}
    if len(differ) > 1 or not shared_clients(run, other):
        raise InputError(f"{against} and {folder} have not the same clients: run both on one --partition and --seed")
    return run, other
