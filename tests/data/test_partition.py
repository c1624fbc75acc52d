"""Who gets which rows: what every scheme promises, and each wrong request with the words that name it."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from refusals import refused

from unalike.data.partition import SCHEMES, Partition, _apportion, draw
from unalike.data.sources import Source
from unalike.errors import InputError
from unalike.rng import Key

KEY = Key.root(5)
RNG = KEY.numpy()
RANDOM = ["iid", "dirichlet:0.5", "pathological:2", "quantity:2"]


def source(n: int = 600, classes: int = 4, official: bool = False, sites: Any = None, seed: int = 0) -> Source:
    """Rows with random labels of unequal frequency; of the official test set is each sixth row."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n) // rng.integers(1, 3, n)
    y[: 2 * classes] = np.repeat(np.arange(classes), 2)
    test = np.arange(n) % 6 == 5 if official else None
    return Source("s", "table", np.zeros((n, 1), np.float32), y, tuple(map(str, range(classes))), test, sites)


def parts(partition: Partition) -> list[np.ndarray]:
    return [*partition.train, *partition.validation, *partition.test]


def sizes(partition: Partition) -> np.ndarray:
    triples = zip(partition.train, partition.validation, partition.test, strict=True)
    return np.array([[len(rows) for rows in triple] for triple in triples])


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("scheme", RANDOM)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), clients=st.integers(2, 12), classes=st.integers(2, 6))
def test_rows_are_disjoint_covered_and_repeatable(
    scheme: str, official: bool, seed: int, clients: int, classes: int
) -> None:
    data, key = source(classes=classes, official=official, seed=seed), Key.root(seed)
    assume(scheme != "pathological:2" or 2 * clients >= classes)
    partition = draw(data, scheme, clients=clients, key=key)
    rows = np.concatenate(parts(partition))
    assert len(rows) == len(set(rows.tolist()))
    assert set(rows.tolist()) == set(range(len(data.y)))
    assert all(len(r) and r.dtype == np.int64 and (np.diff(r) > 0).all() for r in parts(partition))
    assert (sizes(partition).sum(axis=1) >= 10).all()
    assert partition.names == tuple(map(str, range(clients)))
    if data.test is not None:
        assert data.test[np.concatenate(partition.test)].all()
        assert not data.test[np.concatenate(partition.train + partition.validation)].any()
    again = draw(data, scheme, clients=clients, key=key)
    assert again.hash == partition.hash != draw(data, scheme, clients=clients, key=key / "other").hash


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**6), st.tuples(*[st.integers(1, 90)] * 3))
def test_split_totals_are_exact_and_labels_stratified(seed: int, split: tuple[int, int, int]) -> None:
    data = source(seed=seed)
    share = np.array(split) / sum(split)
    partition = draw(data, "dirichlet:1", clients=5, key=Key.root(seed), split=split, min_per_client=20)
    for k in range(5):
        mine = [partition.train[k], partition.validation[k], partition.test[k]]
        n = sum(map(len, mine))
        quota = share * n
        if quota.min() >= 1:
            assert (np.abs([len(rows) for rows in mine] - quota) < 1).all()
        labels = np.array([np.bincount(data.y[rows], minlength=4) for rows in mine])
        assert (np.abs(labels - share[:, None] * labels.sum(axis=0)) < 2.5).all()


def test_split_60_20_20_by_hand() -> None:
    data = replace(source(100, 2), y=np.arange(100) % 2)
    partition = draw(data, "iid", clients=1, key=KEY)
    assert sizes(partition).tolist() == [[60, 20, 20]]
    assert partition.label_counts(data.y, 2).tolist() == [[30, 30]]


@given(
    st.lists(
        st.tuples(st.integers(0, 500), st.lists(st.integers(0, 9), min_size=3, max_size=3)), min_size=1, max_size=6
    )
)
def test_apportion_is_the_largest_remainder_rounding(rows: list[tuple[int, list[int]]]) -> None:
    totals, shares = np.array([t for t, _ in rows]), np.array([s for _, s in rows])
    counts = _apportion(totals, shares, RNG)
    for total, share, count in zip(totals, shares, counts, strict=True):
        if not share.sum():
            assert not count.any()
            continue
        quota = total * share / share.sum()
        assert count.sum() == total
        assert (np.abs(count - quota) < 1 + 1e-9).all()
        up, down = (count > quota + 1e-9), (count < quota - 1e-9)
        if up.any() and down.any():
            assert (quota % 1)[up].min() >= (quota % 1)[down].max() - 1e-6


def test_iid_sizes_differ_by_one_at_most() -> None:
    assert np.ptp(sizes(draw(source(601), "iid", clients=7, key=KEY)).sum(axis=1)) == 1


def test_dirichlet_is_less_alike_for_a_smaller_alpha() -> None:
    def unlikeness(alpha: float) -> float:
        counts = draw(source(3000), f"dirichlet:{alpha}", clients=6, key=KEY).label_counts(source(3000).y, 4)
        return float((counts / counts.sum(axis=1, keepdims=True)).std(axis=0).mean())

    assert unlikeness(100) < 0.1 < 0.15 < unlikeness(0.2)


def test_quantity_sizes_differ_but_labels_do_not() -> None:
    data = source(6000)
    counts = draw(data, "quantity:0.5", clients=4, key=KEY, min_per_client=200).label_counts(data.y, 4)
    assert counts.sum(axis=1).max() > 2 * counts.sum(axis=1).min()
    assert np.ptp(counts / counts.sum(axis=1, keepdims=True), axis=0).max() < 0.12


@pytest.mark.parametrize(("each", "clients"), [(1, 4), (2, 7), (3, 10), (4, 3), (2, 2)])
def test_pathological_classes_a_client_are_exact_and_all_are_covered(each: int, clients: int) -> None:
    data = replace(source(800), y=np.arange(800) % 4)
    counts = draw(data, f"pathological:{each}", clients=clients, key=KEY).label_counts(data.y, 4) > 0
    assert (counts.sum(axis=1) == each).all()
    assert np.ptp(counts.sum(axis=0)) <= 1
    assert counts.any(axis=0).all()


@pytest.mark.parametrize("scheme", ["dirichlet:0.5", "pathological:2"])
def test_official_test_rows_follow_the_training_rows(scheme: str) -> None:
    data = source(6000, official=True)
    partition = draw(data, scheme, clients=5, key=KEY, split=(3, 1, 1))
    train = partition.label_counts(data.y, 4)
    test = replace(partition, train=partition.test).label_counts(data.y, 4)
    assert data.test is not None
    totals = np.bincount(data.y[data.test], minlength=4)
    assert (np.abs(test - totals * train / train.sum(axis=0)) < 1 + 1e-9).all()
    assert not test[train == 0].any()
    both = sizes(partition)[:, :2]
    assert (np.abs(both[:, 0] - 0.75 * both.sum(axis=1)) < 1).all()


def test_a_test_share_of_nothing_is_lent_one_row_of_the_clients_majority_class() -> None:
    data = replace(source(600, 2), y=np.arange(600) % 2, test=np.arange(600) >= 576)
    partition = draw(data, "quantity:0.7", clients=12, key=KEY, min_per_client=2)
    train = partition.label_counts(data.y, 2)
    assert (24 * train.sum(axis=1) / train.sum() < 0.5).any(), "the case must occur for the test to mean anything"
    assert sizes(partition)[:, 2].min() == 1
    assert sizes(partition)[:, 2].sum() == 24
    few = replace(data, test=np.arange(600) >= 595)
    refused(lambda: draw(few, "iid", clients=12, key=KEY), "has no test row; ask for fewer clients")


def test_a_small_client_has_each_part() -> None:
    assert sizes(draw(source(24), "iid", clients=8, key=KEY, min_per_client=3)).tolist() == [[1, 1, 1]] * 8


def test_sites() -> None:
    sites = np.array(["10", "9", "b"])[np.arange(600) % 3]
    partition = draw(source(sites=sites), "site", key=KEY)
    assert partition.names == ("9", "10", "b")
    for k, name in enumerate(partition.names):
        for rows in (partition.train[k], partition.validation[k], partition.test[k]):
            assert (sites[rows] == name).all()
    official = source(official=True, sites=np.array(["a", "b"])[np.arange(600) % 2])
    refused(lambda: draw(official, "site", key=KEY), "client a of site has no test row")
    data = source(official=True, sites=np.array(["a", "b"])[np.arange(600) // 300])
    assert data.test is not None
    partition = draw(data, "site", clients=2, key=KEY)
    assert partition.test[0].tolist() == np.flatnonzero(data.test[:300]).tolist()
    assert draw(data, "iid", clients=3, key=KEY).names == ("0", "1", "2")


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    partition = draw(source(), "dirichlet:0.5", clients=4, key=KEY)
    partition.save(path)
    loaded = Partition.load(path)
    assert (loaded.hash, loaded.scheme, loaded.names) == (partition.hash, "dirichlet:0.5", ("0", "1", "2", "3"))
    assert draw(source(), f"file:{path}", key=KEY / "any").hash == partition.hash
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]


def test_hash_is_of_little_endian_rows_and_tells_parts_and_clients_apart() -> None:
    def of(*rows: list[int]) -> Partition:
        train, validation, test = (tuple(np.array([r]) for r in part) for part in rows)
        return Partition(train, validation, test, "iid")

    assert len({of([0, 1], [2, 3], [4, 5]).hash, of([1, 0], [2, 3], [4, 5]).hash, of([2, 3], [0, 1], [4, 5]).hash}) == 3
    rows = b"".join(b"<i8(1,)" + bytes([row]) + bytes(7) for row in (0, 1, 2))
    assert of([0], [1], [2]).hash == hashlib.sha256(rows).hexdigest()


@pytest.mark.parametrize("prefix", ["", "client_"])
def test_rows_a_client_from_a_file(tmp_path: Path, prefix: str) -> None:
    groups = np.split(np.random.default_rng(0).permutation(600)[:550], 11)
    np.savez(tmp_path / "p.npz", **{f"{prefix}{k}": rows for k, rows in enumerate(groups)})
    partition = draw(source(), f"file:{tmp_path}/p.npz", clients=11, key=KEY)
    assert sizes(partition).tolist() == [[30, 10, 10]] * 11
    for k, rows in enumerate(groups):
        mine = np.concatenate([partition.train[k], partition.validation[k], partition.test[k]])
        assert set(mine.tolist()) == set(rows.tolist())
    official = source(official=True)
    assert official.test is not None
    own_test = draw(official, f"file:{tmp_path}/p.npz", key=KEY, min_per_client=5)
    assert set(own_test.test[3].tolist()) == {r for r in groups[3].tolist() if official.test[r]}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"0": [0, 1], "1": [1, 2]}, "gives row 1 twice"),
        ({"0": [0, 1], "1": [2, 600]}, "names row 600; rows are 0..599"),
        ({"0": [-1, 1]}, "names row -1"),
        ({"0": [0.5]}, "must be flat arrays of integers"),
        ({"0": [[1]]}, "must be flat arrays of integers"),
        ({"0": [1], "2": [2]}, "must have arrays 0, 1, ..."),
        ({"train_sizes": [1]}, "is no saved partition: it has no array names"),
        ({"0": np.arange(30), "1": np.arange(30, 35)}, "client 1 of file:"),
    ],
)
def test_wrong_partition_files(tmp_path: Path, arrays: dict[str, Any], words: str) -> None:
    np.savez(tmp_path / "p.npz", **arrays)
    refused(lambda: draw(source(), f"file:{tmp_path}/p.npz", key=KEY), words)


def test_wrong_places_and_damaged_partition_files(tmp_path: Path) -> None:
    refused(lambda: draw(source(), f"file:{tmp_path}", key=KEY), "is a folder", "--partition site")
    refused(lambda: draw(source(), f"file:{tmp_path}/no.npz", key=KEY), "does not exist")
    path = tmp_path / "p.npz"
    draw(source(), "iid", clients=4, key=KEY).save(path)
    refused(lambda: draw(source(), f"file:{path}", clients=5, key=KEY), "has 4 clients, not 5: leave --clients out")
    refused(lambda: draw(source(100), f"file:{path}", key=KEY), "rows are 0..99")
    arrays = dict(np.load(path))
    np.savez(path, **(arrays | {"train": arrays["train"][1:]}))
    refused(lambda: Partition.load(path), "its sizes do not fit its rows")


@pytest.mark.parametrize(
    ("scheme", "words"),
    [
        ("foo", "--partition foo is unknown; it must be one of iid, dirichlet:ALPHA"),
        ("", "is unknown"),
        ("iid:3", "the form is iid"),
        ("dirichlet:-1", "the form is dirichlet:ALPHA, ALPHA a number > 0"),
        ("dirichlet:x", "the form is dirichlet:ALPHA"),
        ("dirichlet:nan", "the form is dirichlet:ALPHA"),
        ("dirichlet:inf", "the form is dirichlet:ALPHA"),
        ("dirichlet", "the form is dirichlet:ALPHA"),
        ("quantity:0", "the form is quantity:ALPHA, ALPHA a number > 0"),
        ("pathological:0", "the form is pathological:CLASSES, CLASSES in 1..4"),
        ("pathological:99", "CLASSES in 1..4"),
        ("pathological:1.5", "CLASSES in 1..4"),
        ("pathological:1", "over 3 clients covers 3 of 4 classes; ask for 4 clients"),
        ("site", "--partition site: s has no sites; give --site-column"),
        ("site:x", "the form is site"),
        ("file:", "the form is file:PATH"),
    ],
)
def test_wrong_schemes(scheme: str, words: str) -> None:
    refused(lambda: draw(source(), scheme, clients=3, key=KEY), words)


def test_wrong_numbers() -> None:
    refused(
        lambda: draw(source(), "iid", clients=601, key=KEY), "needs --clients in 1..600, the rows to divide; not 601"
    )
    refused(lambda: draw(source(), "iid", key=KEY), "needs --clients")
    refused(lambda: draw(source(), "iid", clients=3, key=KEY, min_per_client=-1), "--min-per-client -1 is negative")
    for split in ((1, 0, 1), (1, 1), (1, -1, 1), (1, float("nan"), 1)):
        refused(lambda s=split: draw(source(), "iid", clients=3, key=KEY, split=s), "--split", "three positive shares")
    refused(
        lambda: draw(source(), "iid", clients=100, key=KEY),
        "iid over 100 clients leaves client",
        "with 6 rows after 1 draw; ask for fewer clients or --min-per-client 6",
    )
    refused(
        lambda: draw(source(), "pathological:4", clients=300, key=KEY, min_per_client=0),
        "gives class",
        "ask for fewer clients",
    )
    sites = np.where(np.arange(600) < 4, "small", "large")
    refused(lambda: draw(source(sites=sites), "site", key=KEY), "client small of site has 4 rows, fewer than")
    refused(lambda: draw(source(sites=sites), "site", clients=3, key=KEY), "has 2 clients, not 3")


def test_too_few_rows_after_all_draws_names_client_and_a_remedy_that_works() -> None:
    def ask(least: int) -> Partition:
        return draw(source(), "dirichlet:0.3", clients=20, key=KEY, min_per_client=least)

    with pytest.raises(InputError, match=r"leaves client \d+ with \d+ rows after 1000 draws") as caught:
        ask(25)
    remedy = str(caught.value)
    assert "ask for fewer clients, a larger alpha or --min-per-client " in remedy
    least = int(remedy.rsplit(" ", 1)[1])
    assert sizes(ask(least)).sum(axis=1).min() == least
    refused(lambda: draw(source(), "dirichlet:0.01", clients=50, key=KEY, min_per_client=0), "has no train row")


def test_sixty_thousand_rows_and_a_thousand_clients_are_fast() -> None:
    data = source(70000, 10, official=True)
    start = time.perf_counter()
    for scheme in ("iid", "dirichlet:5", "pathological:2"):
        draw(data, scheme, clients=1000, key=KEY)
    assert time.perf_counter() - start < 3


def test_every_scheme_is_described() -> None:
    assert [form.partition(":")[0] for form in SCHEMES] == [
        "iid",
        "dirichlet",
        "pathological",
        "quantity",
        "site",
        "site",
        "file",
    ]
