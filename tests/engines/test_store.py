"""Client states as files: versions, the memory budget, and files that are gone or broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import tree
from unalike.engines.store import Store, remove_unreferenced
from unalike.errors import RunError

BYTES = 400
"""Payload of `state`: 100 float32."""


def state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((60,), float(value)), "~mean": torch.full((40,), -float(value))}}


def held(store: Store) -> int:
    """Bytes of the states that are in memory, counted from the tensors."""
    return sum(tree.nbytes(kept) for _, _, kept in store._hot.values())


def test_every_version_is_kept_under_its_client_and_round(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for client, version in [(3, 1), (3, 2), (12, 2)]:
        digest = store.save(client, version, state(client + version / 10))
        assert digest == tree.sha256(state(client + version / 10))
        assert (tmp_path / str(client) / f"{version}.safetensors").is_file()
    for reader in (store, Store(tmp_path), Store(tmp_path, budget=0)):
        for client, version in [(3, 1), (12, 2), (3, 2), (3, 1)]:
            assert tree.equal(reader.load(client, version), state(client + version / 10))


def test_memory_stays_within_the_budget_and_the_longest_unused_goes_first(tmp_path: Path) -> None:
    store = Store(tmp_path, budget=3 * BYTES + 10)
    for client in range(6):
        store.save(client, 1, state(client))
        assert held(store) == store._held <= store.budget
    assert list(store._hot) == [3, 4, 5]
    store.load(3, 1)
    store.load(0, 1)
    assert list(store._hot) == [5, 3, 0]
    assert held(store) == store._held == 3 * BYTES


def test_a_new_version_takes_the_place_of_the_old_one_in_memory(tmp_path: Path) -> None:
    store = Store(tmp_path, budget=2 * BYTES)
    for version in (1, 2, 3):
        store.save(0, version, state(version))
    assert held(store) == store._held == BYTES
    assert tree.equal(store.load(0, 2), state(2))
    assert held(store) == store._held == BYTES


def test_a_state_beyond_the_budget_is_a_file_only(tmp_path: Path) -> None:
    store = Store(tmp_path, budget=BYTES - 1)
    store.save(0, 1, state(1.0))
    assert not store._hot
    assert tree.equal(store.load(0, 1), state(1.0))
    assert store._held == 0


def test_a_state_in_memory_is_not_read_from_its_file_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.save(0, 1, state(1.0))
    store.path(0, 1).unlink()
    assert tree.equal(store.load(0, 1), state(1.0))


@pytest.mark.parametrize("damage", ["gone", "cut", "rubbish", "empty"])
def test_a_damaged_file_is_one_line_that_names_client_round_and_file(tmp_path: Path, damage: str) -> None:
    store = Store(tmp_path, budget=0)
    store.save(7, 4, state(1.0))
    path = store.path(7, 4)
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:-8], "rubbish": b"\xff" * len(content), "empty": b""}[damage])
    with pytest.raises(RunError, match=r"client 7's state of round 4 cannot be read") as caught:
        store.load(7, 4)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_failed_write_leaves_the_state_that_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path)
    store.save(0, 1, state(1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        store.save(0, 1, state(2.0))
    assert tree.equal(Store(tmp_path).load(0, 1), state(1.0))
    assert tree.equal(store.load(0, 1), state(1.0))
    assert [p.name for p in (tmp_path / "0").iterdir()] == ["1.safetensors"]


def test_only_what_no_checkpoint_refers_to_is_removed(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for client in (1, 2, 3):
        for version in (1, 2, 3):
            store.save(client, version, state(version))
    (tmp_path / "1" / ".3.safetensors.99.tmp").write_bytes(b"half")
    remove_unreferenced(tmp_path, [1, 2], {(1, 1), (1, 3), (2, 2)})
    left = {k: sorted(p.name for p in (tmp_path / str(k)).iterdir()) for k in (1, 2, 3)}
    assert left[1] == ["1.safetensors", "3.safetensors"]
    assert left[2] == ["2.safetensors"]
    assert len(left[3]) == 3
