"""Which client has which rows, and what it does with them: training, validation, test.

Every random scheme is a table of shares s(g, i): client i's part of the rows of group g. One group of all rows gives
"iid" and "quantity"; one group a class gives "dirichlet" and "pathological". Counts are the shares' largest-remainder
rounding, and the same two steps, round and deal, divide an official test set among the clients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..rng import Key
from . import Source, read_npz
from .divided import PARTS, Partition
from .groups import apart

__all__ = ["PARTS", "SCHEMES", "Partition", "draw"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

SCHEMES = {
    "iid": "rows dealt at random, as many to each client",
    "dirichlet:ALPHA": "each class divided among clients by Dirichlet(ALPHA); the smaller ALPHA > 0, the less alike",
    "pathological:CLASSES": "each client has exactly CLASSES classes; equal shares of each class",
    "quantity:ALPHA": "rows dealt at random, clients' sizes by Dirichlet(ALPHA)",
    "site": "one client for each site of the source",
    "site:SCHEME": "clients take the sites in turn; each site's rows divided among its own by SCHEME, such as iid",
    "file:PATH": "a partition made elsewhere: an .npz with one array of row numbers for each client, or a saved one",
}
RANDOM_SIZES = ("dirichlet", "quantity")
DRAWS = 1000


def draw(
    source: Source,
    scheme: str,
    *,
    clients: int | None = None,
    key: Key,
    split: Sequence[float] = (0.6, 0.2, 0.2),
    min_per_client: int = 10,
) -> Partition:
    """Divide the rows of `source` by `scheme` (see `SCHEMES`); the same key gives the same partition.

    Without an official test set each client's rows are split train : validation : test as `split` says, stratified by
    label. With one, only the other rows are divided and split, train : validation, and each class's test rows go to
    the clients in proportion to their training rows of it. `min_per_client` counts the rows that are split. `clients`
    may be omitted for "site" and "file:PATH", which know how many there are.

    Where the source has groups, each group trains, validates or tests as a whole, whichever clients its rows go to: the
    groups are split first (`groups.apart`), and the scheme then divides the rows of each part by the same shares.
    """
    ratio = np.array(split, dtype=float)
    if ratio.shape != (3,) or not (np.isfinite(ratio) & (ratio > 0)).all():
        raise InputError(f"--split {'/'.join(map(str, split))} is wrong: give three positive shares, such as 60/20/20")
    if min_per_client < 0:
        raise InputError(f"--min-per-client {min_per_client} is negative: give 0 or more")
    kind, _, argument = scheme.partition(":")
    owner = place = None
    if kind == "file" and argument:
        found = _from_file(Path(argument).expanduser(), len(source.y))
        _agree(clients, len(found), scheme)
        if isinstance(found, Partition):
            return _complete(found)
        owner, names = np.full(len(source.y), -1), tuple(map(str, range(len(found))))
        owner[np.concatenate(found)] = np.repeat(np.arange(len(found)), [len(rows) for rows in found])
    elif scheme == "site":
        owner, names = _by_site(source)
        _agree(clients, len(names), scheme)
    elif kind == "site":
        _require_inner(scheme, argument)
        place, sites = _by_site(source)
        names = _clients_of(sites, clients or 0, scheme)
    else:
        names = tuple(map(str, range(clients or 0)))
    whose = place if owner is None else owner
    part = None if _alike(source, scheme) else apart(source, whose, ratio, (key / "groups").numpy())
    if place is not None:
        owner = _within_sites(source, argument, place, len(names), min_per_client, key, part)
    elif owner is None:
        owner = _by_chance(source, scheme, clients or 0, min_per_client, key, part)
    own = _free(source)
    own = own[owner[own] >= 0]
    _require_rows(np.bincount(owner[own], minlength=len(names)), names, scheme, min_per_client)
    rng, y = (key / "split").numpy(), source.strata[0]
    if part is None:
        part = np.empty(len(source.y), np.int64)
        part[own] = _stratified(owner[own], y[own], ratio if source.test is None else ratio[:2], len(names), rng)
    train, validation, test = (_gather(own[part[own] == p], owner, len(names)) for p in range(3))
    if source.test is not None:
        cell = y if place is None else place * (int(y.max()) + 1) + y
        test = _official(np.flatnonzero(source.test), cell, owner, train, rng)
    return _complete(Partition(train, validation, test, scheme, names))


def _alike(source: Source, scheme: str) -> bool:
    """Whether there is nothing to keep together: no groups, or every client is one, as a slide that is a site."""
    groups, sites = source.groups, source.sites
    return groups is None or (scheme == "site" and sites is not None and np.array_equal(groups, sites))


def _free(source: Source) -> Ints:
    """The rows outside of the official test set."""
    return np.arange(len(source.y)) if source.test is None else np.flatnonzero(~source.test)


def _by_chance(source: Source, scheme: str, clients: int, least: int, key: Key, part: Ints | None) -> Ints:
    """The owner of each row, -1 for official test rows; drawn anew until each client has `least` rows.

    The rows of each part, where groups have decided that already, are divided by the same shares.
    """
    rows = _free(source)
    kind, value = _parse(scheme, source)
    if not 1 <= clients <= len(rows):
        raise InputError(f"--partition {scheme} needs --clients in 1..{len(rows)}, the rows to divide; not {clients}")
    y = source.strata[0][rows]
    groups = y if kind in ("dirichlet", "pathological") else np.zeros_like(y)
    totals = np.bincount(groups)
    inside = (
        [np.arange(len(rows))] if part is None else [np.flatnonzero(part[rows] == p) for p in np.unique(part[rows])]
    )
    least = max(least, len(inside)) if len(inside) > 1 else least
    draws = DRAWS if kind in RANDOM_SIZES else 1  # the others' sizes are not random
    best, client = -1, 0
    for attempt in range(draws):
        rng = (key / attempt).numpy()
        shares = _shares(kind, value, totals, clients, rng)
        counts = [_apportion(np.bincount(groups[i], minlength=len(totals)), shares, rng) for i in inside]
        sizes = _each_part(counts, least)
        if sizes.min() >= least:
            owner = np.full(len(source.y), -1)
            for i, dealt in zip(inside, counts, strict=True):
                owner[rows[i]] = _deal(groups[i], dealt, rng)
            return owner
        if sizes.min() > best:
            best, client = int(sizes.min()), int(sizes.argmin())
    remedies = ["fewer clients"] + ["a larger alpha"] * (draws > 1)
    remedies += [f"--min-per-client {best}"] * (best >= 2)
    raise InputError(
        f"{scheme} over {clients} clients leaves client {client} with {best} rows after {draws} "
        f"draw{'s'[: draws - 1]}; ask for {', '.join(remedies[:-1])}{' or ' * (len(remedies) > 1)}{remedies[-1]}"
    )


def _each_part(counts: Sequence[Ints], least: int) -> Ints:
    """Clients' rows (clients,); if all have `least`, each is lent, in place, a row of any of several parts it lacks.

    What is lent makes no client larger: of its rows before and after, the fewer count.
    """
    have = np.sum(counts, axis=0)
    sizes: Ints = have.sum(axis=0)
    if len(counts) < 2 or sizes.min() < least:
        return sizes
    for part in counts:
        _lend(part, have)
    after: Ints = np.sum(counts, axis=(0, 1))
    return np.minimum(sizes, after)


def _parse(scheme: str, source: Source) -> tuple[str, float]:
    """The scheme's name and number."""
    kind, _, argument = scheme.partition(":")
    forms = {form.partition(":")[0]: form for form in SCHEMES}
    if kind not in forms:
        raise InputError(f"--partition {scheme} is unknown; it must be one of {', '.join(SCHEMES)}")
    if scheme == "iid":
        return kind, 0.0
    most = len(np.unique(source.strata[0][_free(source)]))
    try:
        value = int(argument) if kind == "pathological" else float(argument)
    except ValueError:
        value = 0
    if (kind in RANDOM_SIZES and 1e-6 <= value <= 1e9) or (kind == "pathological" and 1 <= value <= most):
        return kind, value
    hints = dict.fromkeys(RANDOM_SIZES, ", ALPHA a number > 0 such as 0.3") | {
        "pathological": f", CLASSES in 1..{most}"
    }
    raise InputError(f"--partition {scheme} is wrong: the form is {forms[kind]}{hints.get(kind, '')}")


def _shares(kind: str, value: float, totals: Ints, clients: int, rng: np.random.Generator) -> Floats:
    """Shares (groups, clients) of each group's rows."""
    if kind == "pathological":
        return _holders(totals, int(value), clients, rng)
    if kind == "iid":
        return np.ones((1, clients))
    return rng.dirichlet(np.full(clients, value), size=len(totals))


def _holders(totals: Ints, each: int, clients: int, rng: np.random.Generator) -> Floats:
    """1 where a client holds a class: the classes, in random order, are dealt round and round, `each` a client.

    As in HtFLlib, each class thus has as many holders as any other, give or take one.
    """
    deck = rng.permutation(np.flatnonzero(totals))
    if clients * each < len(deck):
        raise InputError(
            f"pathological:{each} over {clients} clients covers {clients * each} of {len(deck)} classes; ask for "
            f"{math.ceil(len(deck) / each)} clients or more classes each"
        )
    dealt = deck[np.arange(clients * each) % len(deck)].reshape(clients, each)[rng.permutation(clients)]
    held = np.zeros((len(totals), clients))
    held[dealt, np.arange(clients)[:, None]] = 1
    for label in np.flatnonzero(held.sum(axis=1) > totals):
        raise InputError(
            f"pathological:{each} over {clients} clients gives class {label} {int(held[label].sum())} holders for its "
            f"{totals[label]} rows; ask for fewer clients"
        )
    return held


def _by_site(source: Source) -> tuple[Ints, tuple[str, ...]]:
    if source.sites is None:
        raise InputError(f"--partition site: {source.name} has no sites; give --site-column or, in an .npz, array site")
    found, place = np.unique(source.sites, return_inverse=True)
    names = [str(name) for name in found]
    order = sorted(range(len(names)), key=lambda i: (int(names[i]) if names[i].isdecimal() else math.inf, names[i]))
    return np.argsort(order)[place], tuple(names[i] for i in order)


def _require_inner(scheme: str, inner: str) -> None:
    if inner.partition(":")[0] not in ("iid", "dirichlet", "pathological", "quantity"):
        raise InputError(
            f"--partition {scheme} is wrong: the form is site, or site:SCHEME with a scheme that draws, such as "
            "site:iid or site:dirichlet:0.5"
        )


def _clients_of(sites: Sequence[str], clients: int, scheme: str) -> tuple[str, ...]:
    """The names of clients that take the sites in turn: berlin-1, rome-1, berlin-2; berlin where it is its only one."""
    if clients < len(sites):
        raise InputError(f"--partition {scheme} needs --clients {len(sites)} or more, one for each site; not {clients}")
    several = [len(range(k, clients, len(sites))) > 1 for k in range(len(sites))]
    turns = [divmod(k, len(sites)) for k in range(clients)]
    return tuple(f"{sites[s]}-{turn + 1}" if several[s] else sites[s] for turn, s in turns)


def _within_sites(
    source: Source, inner: str, place: Ints, clients: int, least: int, key: Key, part: Ints | None
) -> Ints:
    """The owner of each row: those of site s are divided by the scheme `inner` among clients s, s + S, s + 2S, ..."""
    owner, sites = np.full(len(source.y), -1), int(place.max()) + 1
    for s in range(sites):
        mine, numbers = np.flatnonzero(place == s), np.arange(s, clients, sites)
        decided = None if part is None else part[mine]
        try:
            own = _by_chance(source.take(mine), inner, len(numbers), least, key / "site" / s, decided)
        except InputError as error:
            assert source.sites is not None
            raise InputError(f"site {source.sites[mine[0]]}: {error}") from error
        owner[mine] = np.where(own < 0, -1, numbers[own])
    return owner


def _from_file(path: Path, n: int) -> Partition | list[Ints]:
    """A saved partition, or the rows of each client; no row twice."""
    if path.is_dir():
        raise InputError(f"file:{path} is a folder; divided clients carry rows: give --data {path} --partition site")
    if not path.is_file():
        raise InputError(f"file:{path} does not exist: give an .npz with an array of row numbers for each client")
    arrays = read_npz(path)
    saved = Partition.load(path) if "train_sizes" in arrays else None
    if saved:
        rows = [r for part in PARTS for r in getattr(saved, part)]
    else:
        numbers = {name.removeprefix("client_"): array for name, array in arrays.items()}
        if not numbers or set(numbers) != set(map(str, range(len(arrays)))):
            raise InputError(f"file:{path} must have arrays 0, 1, ... or client_0, ...; it has {', '.join(arrays)}")
        rows = [numbers[str(i)] for i in range(len(numbers))]
    if any(r.ndim != 1 or (r.dtype.kind not in "iu" and len(r)) for r in rows):
        raise InputError(f"file:{path}: row numbers must be flat arrays of integers")
    seen = np.concatenate(rows).astype(np.int64)
    if len(seen) and not 0 <= seen.min() <= seen.max() < n:
        raise InputError(f"file:{path} names row {seen.max() if seen.min() >= 0 else seen.min()}; rows are 0..{n - 1}")
    values, times = np.unique(seen, return_counts=True)
    for row in values[times > 1][:1]:
        raise InputError(f"file:{path} gives row {row} twice: each row may belong to one client and one part")
    return saved or [r.astype(np.int64) for r in rows]


def _agree(clients: int | None, found: int, scheme: str) -> None:
    if clients not in (None, found):
        raise InputError(f"--partition {scheme} has {found} clients, not {clients}: leave --clients out")


def _require_rows(sizes: Ints, names: Sequence[str], scheme: str, least: int) -> None:
    for client in np.flatnonzero(sizes < least)[:1]:
        raise InputError(
            f"client {names[client]} of {scheme} has {sizes[client]} rows, fewer than --min-per-client {least}: lower "
            "it, or leave the client out"
        )


def _official(
    official: Ints, cell: Ints, owner: Ints, train: tuple[Ints, ...], rng: np.random.Generator
) -> tuple[Ints, ...]:
    """Each client's share of the `official` test rows, where they have no owner yet: in each cell (the class, at a site
    where clients have one) in proportion to its training rows."""
    if (owner[official] < 0).all():
        cells = int(cell.max()) + 1
        have = np.stack([np.bincount(cell[r], minlength=cells) for r in train], axis=1)
        counts = _apportion(np.bincount(cell[official], minlength=cells), have, rng)
        _lend(counts, have)
        owner = owner.copy()
        owner[official] = _deal(cell[official], counts, rng)
    return _gather(official[owner[official] >= 0], owner, len(train))


def _stratified(owner: Ints, y: Ints, ratio: Floats, n: int, rng: np.random.Generator) -> Ints:
    """The part (0, 1, ...) of each row. A client's totals are exact, and each label's within a row or two.

    A client's rows, sorted by label (labels in random order), meet the parts spread evenly: part p's j-th of m rows
    sits at (j + 1/2) / m.
    """
    sizes = _apportion(np.bincount(owner, minlength=n), np.tile(ratio, (n, 1)), rng)
    for client in np.flatnonzero((sizes == 0).any(axis=1)):
        _lend(sizes[client : client + 1], sizes[client : client + 1])
    rank = rng.random((n, int(y.max()) + 1))
    rows = np.lexsort((rng.random(len(y)), rank[owner, y], owner))
    flat = sizes.ravel()
    which = np.repeat(np.arange(len(flat)), flat)  # client * parts + part
    nth = np.arange(len(which)) - np.repeat(flat.cumsum() - flat, flat)
    spread = np.lexsort(((nth + 0.5) / flat[which], which // len(ratio)))
    part = np.empty(len(y), np.int64)
    part[rows] = which[spread] % len(ratio)
    return part


def _apportion(totals: Ints, shares: Floats | Ints, rng: np.random.Generator) -> Ints:
    """Whole numbers (groups, m) in proportion to `shares`, by largest remainders, ties at random.

    A row sums to its group's total, or to 0 if all its shares are 0.
    """
    whole = shares.sum(axis=1, keepdims=True)
    quotas = totals[:, None] * np.divide(shares, whole, out=np.zeros(shares.shape), where=whole > 0)
    counts: Ints = np.floor(quotas + 1e-9).astype(np.int64)
    left = np.where(whole[:, 0] > 0, totals - counts.sum(axis=1), 0)
    chance = (quotas - counts).round(9) + 1e-10 * rng.random(quotas.shape)
    rank = np.argsort(np.argsort(-chance, axis=1), axis=1)
    counts += rank < left[:, None]
    return counts


def _deal(groups: Ints, counts: Ints, rng: np.random.Generator) -> Ints:
    """The owner of each row: counts[g, i] random rows of group g go to client i, and what is left to nobody (-1)."""
    left = np.bincount(groups, minlength=len(counts)) - counts.sum(axis=1)
    owners = np.tile(np.append(np.arange(counts.shape[1]), -1), len(counts))
    owner = np.empty(len(groups), np.int64)
    owner[np.lexsort((rng.random(len(groups)), groups))] = np.repeat(owners, np.column_stack([counts, left]).ravel())
    return owner


def _lend(counts: Ints, have: Ints) -> None:
    """In `counts` (groups, m), each column left with nothing is lent 1, in place, in the group it `have`s most of.

    The lender is the group's largest holder that keeps something itself.
    """
    for column in np.flatnonzero(counts.sum(axis=0) == 0):
        group = have[:, column].argmax()
        lender = (counts[group] * (counts.sum(axis=0) > 1)).argmax()
        if counts[group, lender] and counts[:, lender].sum() > 1:
            counts[group, [column, lender]] += 1, -1


def _gather(rows: Ints, owner: Ints, n: int) -> tuple[Ints, ...]:
    """`rows` (ascending) of each of the n clients."""
    order = np.argsort(owner[rows], kind="stable")
    return tuple(np.split(rows[order], np.bincount(owner[rows], minlength=n).cumsum()[:-1]))


def _complete(partition: Partition) -> Partition:
    for part in PARTS:
        for client, rows in enumerate(getattr(partition, part)):
            if not len(rows):
                name = partition.names[client] if partition.names else client
                raise InputError(
                    f"client {name} of {partition.scheme} has no {part} row; ask for fewer clients or a larger "
                    "--min-per-client"
                )
    return partition
