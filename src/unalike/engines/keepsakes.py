"""keepsakes/ of a run folder: what a method leaves for reports, a file for each evaluated round.

They are no part of a run's state: nothing reads them back, and a resumed run writes the same bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from .. import tree
from ..files import write_atomically

FOLDER = "keepsakes"


def keep(folder: Path, round: int, found: Mapping[str, Tensor]) -> None:
    """Write keepsakes/round-<round>.safetensors below the run's `folder`, unless there is nothing to keep."""
    if not found:
        return
    below = folder / FOLDER
    below.mkdir(exist_ok=True)
    for left in below.glob(".*.tmp"):  # by a run that was killed while it wrote
        left.unlink()
    write_atomically(below / f"round-{round:06d}.safetensors", tree.to_bytes(found))
