"""Rows of one group train, validate or test together, whichever clients they go to."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused

from unalike.data import Source, source_of
from unalike.data.federation import Federation, federation
from unalike.data.groups import _split
from unalike.data.partition import PARTS, Partition, draw
from unalike.data.sources import load
from unalike.errors import InputError
from unalike.rng import Key

KEY = Key.root(5)


def slides(n: int = 600, groups: int = 40, official: bool = False, sites: bool = False, seed: int = 0) -> Source:
    """Rows of 4 classes of unequal frequency in groups of unequal size; whole groups are the official test set."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n) // rng.integers(1, 3, n)
    y[:8] = np.repeat(np.arange(4), 2)
    group = np.minimum(rng.geometric(2 / groups, n), groups) - 1
    group[:groups] = np.arange(groups)
    more: dict[str, Any] = {"test": group % 6 == 5} if official else {}
    more |= {"sites": np.array(["a", "b", "c"])[np.arange(n) % 3]} if sites else {}
    return Source("s", "table", np.zeros((n, 1), np.float32), y, tuple("0123"), groups=group.astype(str), **more)


def groups_of(source: Source, partition: Partition) -> list[set[str]]:
    """The groups that all clients together train, validate and test on."""
    assert source.groups is not None
    return [set(source.groups[np.concatenate(getattr(partition, part))].tolist()) for part in PARTS]


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("scheme", ["iid", "dirichlet:0.3", "pathological:2", "quantity:2", "site"])
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), clients=st.integers(2, 8), groups=st.integers(20, 200))
def test_no_group_lies_in_two_parts_of_all_clients_together(
    scheme: str, official: bool, seed: int, clients: int, groups: int
) -> None:
    data = slides(groups=groups, official=official, sites=scheme == "site", seed=seed)
    asked: Any = {"key": Key.root(seed)} | ({} if scheme == "site" else {"clients": clients})
    partition = draw(data, scheme, **asked)
    train, validation, test = groups_of(data, partition)
    assert not train & validation
    assert not train & test
    assert not validation & test
    rows = np.concatenate([np.concatenate(getattr(partition, part)) for part in PARTS])
    assert sorted(rows.tolist()) == list(range(600))
    assert all(len(r) for part in PARTS for r in getattr(partition, part))
    sizes = [len(a) + len(b) for a, b in zip(partition.train, partition.validation, strict=True)]
    assert min(sizes) + (0 if official else min(map(len, partition.test))) >= 8
    if data.test is not None:
        assert data.test[np.concatenate(partition.test)].all()
    assert draw(data, scheme, **asked).hash == partition.hash


def test_parts_have_their_share_of_the_rows_of_every_label() -> None:
    data = slides(3000, 300)
    partition = draw(data, "dirichlet:0.1", clients=8, key=KEY, split=(60, 20, 20))
    labels = [np.bincount(data.y[np.concatenate(getattr(partition, part))], minlength=4) for part in PARTS]
    share = np.array(labels) / np.bincount(data.y)
    assert np.abs(share - np.array([[0.6], [0.2], [0.2]])).max() < 0.02
    groups = [groups_of(data, draw(data, "iid", clients=3, key=KEY / seed))[2] for seed in range(3)]
    assert len(groups[0] & groups[1] & groups[2]) < 0.5 * len(groups[0])


def test_every_part_of_a_client_is_divided_by_the_same_shares() -> None:
    data = slides(6000, 600)
    partition = draw(data, "dirichlet:0.5", clients=4, key=KEY, min_per_client=100)
    counts = [partition.label_counts(data.y, 4), replace(partition, train=partition.test).label_counts(data.y, 4)]
    share = [count / count.sum(axis=0) for count in counts]
    assert np.abs(share[0] - share[1]).max() < 0.02
    assert share[0].max() > 0.5


@given(st.lists(st.integers(1, 60), min_size=3, max_size=30), st.tuples(*[st.integers(1, 90)] * 3), st.integers(0, 99))
def test_no_part_is_left_without_a_group(sizes: list[int], ratio: tuple[int, int, int], seed: int) -> None:
    group = np.repeat(np.arange(len(sizes)), sizes)
    part = _split(group, np.zeros(len(group), np.int64), np.array(ratio, float), Key.root(seed).numpy())
    assert set(part.tolist()) == {0, 1, 2}


def test_three_groups_by_hand() -> None:
    """Wanted are 9, 3 and 3 of 15 rows. 9 rows: χ² rises by −9 in part 0, by 9 in 1 and 2; then 4, then 2 fit best."""
    group, ratio = np.repeat([0, 1, 2], [2, 9, 4]), np.array([0.6, 0.2, 0.2])
    part = _split(group, np.zeros(15, np.int64), ratio, KEY.numpy())
    assert part.tolist() == [2, 0, 1]


def test_the_floor_counts_rows_that_a_client_has_in_its_own_right() -> None:
    def ask(least: int) -> Partition:
        return draw(slides(), "dirichlet:0.3", clients=12, key=KEY, min_per_client=least)

    sizes = np.sum([[len(rows) for rows in getattr(ask(10), part)] for part in PARTS], axis=0)
    assert sizes.min() >= 10
    with pytest.raises(InputError, match=r"leaves client \d+ with \d+ rows after 1000 draws; ask for") as caught:
        ask(40)
    assert ask(int(str(caught.value).rsplit(" ", 1)[1]))
    refused(lambda: draw(slides(), "dirichlet:0.01", clients=40, key=KEY, min_per_client=0), "leaves client", "rows")


def test_clients_of_a_file_keep_groups_apart_and_a_saved_partition_is_taken_as_it_is(tmp_path: Path) -> None:
    data = slides()
    np.savez(tmp_path / "p.npz", **{str(k): np.arange(k, 550, 5) for k in range(5)})
    partition = draw(data, f"file:{tmp_path}/p.npz", key=KEY)
    train, validation, test = groups_of(data, partition)
    assert not train & validation | train & test | validation & test
    assert all(len(rows) >= 5 for part in PARTS for rows in getattr(partition, part))
    mixed = draw(replace(data, groups=None), "iid", clients=3, key=KEY)
    mixed.save(tmp_path / "saved.npz")
    assert draw(data, f"file:{tmp_path}/saved.npz", key=KEY).hash == mixed.hash


def test_too_few_groups_and_groups_astride_the_official_test_set() -> None:
    two = replace(slides(), groups=np.array(["a", "b"])[np.arange(600) % 2])
    refused(lambda: draw(two, "iid", clients=2, key=KEY), "s has 2 groups for the 3 parts of the split", "column none")
    one = replace(two, groups=np.full(600, "a"))
    refused(lambda: draw(one, "iid", clients=2, key=KEY), "s has 1 group for the 3 parts")
    astride = replace(two, test=np.arange(600) < 99)
    refused(lambda: draw(astride, "iid", clients=2, key=KEY), "group a has rows in the official test set and outside")
    narrow = replace(slides(sites=True), groups=np.array(["a1", "b1", "c1", "a2", "b2", "c2"])[np.arange(600) % 6])
    refused(lambda: draw(narrow, "site", key=KEY), "client", "of site has no", "row")


def test_arrays_that_are_groups(tmp_path: Path) -> None:
    def read(**more: Any) -> Source:
        np.savez(tmp_path / "a.npz", x=np.zeros((40, 3)), y=np.arange(40) % 2, **more)
        return load(str(tmp_path / "a.npz"))

    patient, site = np.arange(40) // 4, np.arange(40) // 10
    for name in ("group", "groups"):
        source = read(**{name: patient, "site": site})
        assert source.groups is not None
        assert source.sites is not None
        assert source.groups.tolist() == patient.astype(str).tolist()
        assert source.sites.tolist() == site.astype(str).tolist()
    source = read(slide=patient)
    assert source.groups is not None
    assert source.groups.tolist() == (source.sites if source.sites is None else source.sites.tolist())
    assert len(draw(source, "site", key=KEY, min_per_client=3)) == 10, "a slide that is a client is split in itself"
    train, validation, test = groups_of(source, draw(source, "iid", clients=2, key=KEY))
    assert not train & test | train & validation | validation & test

    other = read(ward=patient)
    assert other.groups is None
    named = load(str(tmp_path / "a.npz"), group_column="ward")
    assert named.groups is not None
    assert named.take(np.array([0, 39])).groups is not None
    read(slide=patient)
    assert load(str(tmp_path / "a.npz"), group_column="none").groups is None
    refused(lambda: load(str(tmp_path / "a.npz"), group_column="ward"), "has no array ward; it has x, y, slide")
    refused(lambda: load("digits", group_column="ward"), "--group-column does not apply to digits")
    refused(lambda: read(group=patient[:5]), "all arrays must have one entry per row", "groups has 5")


def test_a_column_that_names_groups_is_no_feature(tmp_path: Path) -> None:
    lines = [f"{i},{i % 2},p{i // 4},{'ab'[i // 40]}" for i in range(80)]
    (tmp_path / "a.csv").write_text("\n".join(["v,label,patient,ward", *lines]))
    source = load(str(tmp_path / "a.csv"), group_column="patient", site_column="ward")
    assert source.features == ("v",)
    assert source.groups is not None
    train, _, test = groups_of(source, draw(source, "site", key=KEY))
    assert not train & test
    refused(lambda: load(str(tmp_path / "a.csv"), group_column="bed"), "has no column 'bed' (--group-column)")


def test_a_share_of_a_federation_has_no_groups_and_the_same_rows(tmp_path: Path) -> None:
    whole = federation(replace(slides(), kind="table"), clients=3, partition="iid", models=["mlp-1"])
    whole.only([1]).save(tmp_path)
    assert len(Federation.load(tmp_path).rows(1, "test")) == len(whole.rows(1, "test"))
    assert source_of("t", np.zeros((4, 2)), np.arange(4) % 2).groups is None
