"""Trees: flattening, averaging, hashing, aliasing."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unalike import tree
from unalike.errors import InputError, RunError

names = st.text(alphabet="abc.~0", min_size=1, max_size=4)
leaves = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=4).map(torch.tensor)
trees = st.recursive(
    st.dictionaries(names, leaves, min_size=1, max_size=3),
    lambda inner: st.dictionaries(names, st.one_of(leaves, inner), min_size=1, max_size=3),
    max_leaves=6,
)


@given(trees)
def test_flatten_and_bytes_round_trip(value: tree.Tree) -> None:
    assert tree.equal(tree.unflatten(tree.flatten(value)), value)
    assert tree.equal(tree.from_bytes(tree.to_bytes(value)), value)


@given(trees)
def test_a_clone_is_equal_and_shares_nothing(value: tree.Tree) -> None:
    copy = tree.clone(value)
    assert tree.equal(copy, value)
    assert not tree.shares_storage(copy, value)
    assert tree.shares_storage(value, value)


def test_a_view_shares_storage() -> None:
    base = torch.zeros(4)
    assert tree.shares_storage({"a": base}, {"b": base[2:]})


def test_hash_sees_name_dtype_shape_and_value() -> None:
    base = {"a": torch.zeros(4)}
    others = [
        {"b": torch.zeros(4)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.tensor([0.0, 0, 0, 1])},
    ]
    assert len({tree.sha256(t) for t in [base, *others]}) == 5
    assert tree.sha256(base) == tree.sha256({"a": torch.zeros(8)[::2]})


def test_leaves_of_several_trees_are_mapped_by_name_and_those_of_the_first_decide() -> None:
    a, b = {"x": {"w": torch.tensor([1.0])}}, {"x": {"other": torch.tensor([9.0]), "w": torch.tensor([2.0])}}
    found = tree.map_leaves(lambda a, b, c: a + 10 * b + 100 * c, a, b, a)
    assert tree.equal(found, {"x": {"w": torch.tensor([121.0])}})


def test_merged_trees_have_the_leaves_of_both_and_the_second_one_wins() -> None:
    one, two, three = (torch.tensor([v]) for v in (1.0, 2.0, 3.0))
    found = tree.merge({"x": {"a": one, "b": one}}, {"x": {"b": two}, "y": {"c": three}})
    assert tree.equal(found, {"x": {"a": one, "b": two}, "y": {"c": three}})


def test_weighted_mean_by_hand() -> None:
    found = tree.weighted_mean([{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([4.0, 2.0])}], [1, 2])
    assert found["w"].tolist() == [3.0, pytest.approx(4 / 3)]


def test_weighted_mean_does_not_depend_on_which_tensor_objects_are_reused() -> None:
    """The public pFedAFM stores uploads by reference to one reused network, so its mean is the last client's."""
    reused = {"w": torch.tensor([1.0])}
    first = tree.clone(reused)
    reused["w"].fill_(3.0)
    assert tree.weighted_mean([first, reused], [1, 1])["w"].item() == 2.0


def test_weighted_mean_rounds_integers_and_keeps_dtypes() -> None:
    found = tree.weighted_mean([{"n": torch.tensor(3)}, {"n": torch.tensor(4)}], [1, 3])
    assert found["n"].dtype == torch.int64
    assert found["n"].item() == 4


def test_a_stranger_in_the_mean_is_named() -> None:
    with pytest.raises(RunError, match=r"sent fc/weight \(2, 2\) float32; the others have \(1, 2\) float32"):
        tree.weighted_mean([{"fc": {"weight": torch.zeros(1, 2)}}, {"fc": {"weight": torch.zeros(2, 2)}}], [1, 1])
    with pytest.raises(RunError, match="did not send b"):
        tree.weighted_mean([{"a": torch.zeros(1), "b": torch.zeros(1)}, {"a": torch.zeros(1)}], [1, 1])


def test_weights_must_be_usable() -> None:
    for weights in ([0, 0], [-1, 2]):
        with pytest.raises(ValueError, match="positive sum"):
            tree.weighted_mean([{"a": torch.zeros(1)}] * 2, weights)


def test_only_tensors_and_dicts_and_no_slash() -> None:
    with pytest.raises(InputError, match="is a list"):
        tree.flatten({"a": [1]})
    with pytest.raises(InputError, match="contains '/'"):
        tree.flatten({"a/b": torch.zeros(1)})


def test_non_finite_leaves_are_named() -> None:
    value = {"a": torch.tensor([1.0, float("nan")]), "b": torch.tensor([1]), "c": torch.tensor([float("inf")])}
    assert list(tree.non_finite(value)) == ["a", "c"]


def test_nbytes_and_count() -> None:
    value = {"a": torch.zeros(3), "b": {"c": torch.zeros(2, dtype=torch.float64)}}
    assert (tree.nbytes(value), tree.count(value)) == (28, 5)
