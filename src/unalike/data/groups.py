"""Rows that belong together, as the cells of one slide do, kept on one side: all train, all validate or all test."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from . import UNGROUPED, Source

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
ANYWAY = f"give --group-column {UNGROUPED} to split rows whatever their group"


def apart(source: Source, owner: Ints | None, ratio: Floats, rng: np.random.Generator) -> Ints:
    """The part of each row, 0 train, 1 validation, 2 test, so that no group lies in two of them, at whichever client.

    Official test rows are test, and the groups of the others are split train : validation.

    Args:
        owner: the clients of the rows where they are known, -1 for nobody's: each then gets its share of every part.
        ratio: train, validation, test.

    Raises:
        InputError: fewer groups than parts, or a group on both sides of the official test set.
    """
    assert source.groups is not None
    free = np.ones(len(source.y), bool) if source.test is None else ~source.test
    if source.test is not None:
        ratio = ratio[:2]
        for name in np.intersect1d(source.groups[free], source.groups[source.test])[:1]:
            raise InputError(
                f"{source.name}: group {name} has rows in the official test set and outside of it: move them, or "
                f"{ANYWAY}"
            )
    if owner is not None:
        free &= owner >= 0
    names, group = np.unique(source.groups[free], return_inverse=True)
    if len(names) < len(ratio):
        raise InputError(
            f"{source.name} has {len(names)} group{'s'[: len(names) - 1]} for the {len(ratio)} parts of the split, "
            f"which share none: {ANYWAY}"
        )
    y, names_of_y = source.strata
    cell = y if owner is None else owner * len(names_of_y) + y
    part = np.full(len(source.y), 2)
    part[free] = _split(group, np.unique(cell[free], return_inverse=True)[1], ratio, rng)[group]
    return part


def _split(group: Ints, cell: Ints, ratio: Floats, rng: np.random.Generator) -> Ints:
    """The part of each group, so that each part has about its share of the rows of every cell.

    Large groups first, those of about a size (within a factor of 2) in random order, each goes where
    χ² = Σ (rows − wanted)² / wanted, over cells and parts, rises least. A part left with nothing is given the smallest
    group of the part that has most of them.
    """
    wanted = np.outer(ratio / ratio.sum(), np.bincount(cell))
    rows, sizes = np.zeros(wanted.shape), np.bincount(group)
    members = np.split(np.argsort(group, kind="stable"), sizes.cumsum()[:-1])
    part = np.empty(len(sizes), np.int64)
    for g in np.lexsort((rng.random(len(sizes)), -np.floor(np.log2(sizes)))):
        cells, more = np.unique(cell[members[g]], return_counts=True)
        rise = (more * (more + 2 * (rows[:, cells] - wanted[:, cells])) / wanted[:, cells]).sum(axis=1)
        part[g] = rise.argmin()
        rows[part[g], cells] += more
    for empty in np.setdiff1d(np.arange(len(ratio)), part):
        most = np.flatnonzero(part == np.bincount(part).argmax())
        part[most[sizes[most].argmin()]] = empty
    return part
