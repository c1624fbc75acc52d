"""Keys: derived, never advanced, and revealing nothing but what lies below them."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from unalike.rng import Key

parts = st.lists(st.one_of(st.integers(-5, 10**6), st.text(max_size=8)), min_size=1, max_size=4)


def follow(key: Key, path: list[int | str]) -> Key:
    for part in path:
        key = key / part
    return key


@given(st.integers(), parts)
def test_the_same_path_gives_the_same_key(seed: int, path: list[int | str]) -> None:
    assert follow(Key.root(seed), path) == follow(Key.root(seed), path)


@given(st.integers(), parts, parts)
def test_different_paths_give_different_keys(seed: int, a: list[int | str], b: list[int | str]) -> None:
    root = Key.root(seed)
    assert (follow(root, a) == follow(root, b)) == (a == b)


def test_a_number_and_its_text_are_different_children() -> None:
    assert Key.root(0) / 3 != Key.root(0) / "3"


def test_a_key_holds_a_digest_and_no_path_or_seed() -> None:
    key = Key.root(123456) / "client" / 7
    assert Key.__slots__ == ("digest",)
    assert len(key.digest) == 32
    assert "123456" not in repr(key)


def test_drawing_does_not_change_the_key() -> None:
    key = Key.root(0) / "x"
    first = torch.rand(4, generator=key.torch())
    assert torch.equal(first, torch.rand(4, generator=key.torch()))
    assert (key.numpy().random(3) == key.numpy().random(3)).all()


def test_scope_seeds_and_restores_the_global_generator() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with Key.root(9).scope():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    with Key.root(9).scope():
        assert torch.equal(torch.rand(3), inside)


def test_keys_of_this_version_stay_what_they_are() -> None:
    """Golden values: a change here changes the bits of every run. Made by evaluating the expressions themselves."""
    assert Key.root(0).digest.hex()[:16] == "aece525f6325eb54"
    assert (Key.root(0) / "round" / 1).seed == 6190319251732379932
