"""Generations: what is kept, what a crash leaves, what damage is found, and what a full disk does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import api, cli, tree
from unalike.engines.checkpoint import Checkpoints, Index
from unalike.engines.store import Store
from unalike.errors import InputError, RunError

SMALL = {"data": "wine", "clients": 4, "models": ("mlp-5",), "min_per_client": 20, "engine": "serial"}


def server(round: int) -> dict[str, Any]:
    return {"theta": {"w": torch.full((8,), float(round))}}


def state(client: int, round: int) -> dict[str, Any]:
    return {"model": torch.full((5,), client + round / 100)}


class Run:
    """A run without a loop: two of four clients a round, the best round told by hand."""

    def __init__(self, folder: Path) -> None:
        self.checkpoints = Checkpoints(folder / "checkpoint")
        self.index = self.checkpoints.open()
        self.store = Store(self.checkpoints.clients, budget=0)

    def train(self, round: int) -> dict[int, tuple[int, str]]:
        """Clients `round` and `round + 1`, modulo 4."""
        visited = [round % 4, (round + 1) % 4]
        return dict(self.index.versions) | {c: (round, self.store.save(c, round, state(c, round))) for c in visited}

    def commit(self, round: int, best: int = 1) -> None:
        versions = self.train(round)
        told = replace(self.index, round=round, versions=versions, best_round=best, best_score=0.5, events=round)
        self.index = self.checkpoints.commit(told, server(round))


def rounds_on_disk(folder: Path) -> set[int]:
    return {int(p.stem.partition("-")[2]) for p in folder.glob("checkpoint/round-*.json")}


def states_on_disk(folder: Path) -> set[tuple[int, int]]:
    return {(int(p.parent.name), int(p.stem)) for p in folder.glob("checkpoint/clients/*/*")}


def test_kept_are_the_last_two_generations_and_the_best(tmp_path: Path) -> None:
    """And of the clients' states, those that these generations refer to."""
    run = Run(tmp_path)
    for round, best in [(1, 1), (2, 2), (3, 2), (4, 2), (5, 2), (6, 6), (7, 6), (8, 6), (9, 6)]:
        run.commit(round, best)
        expected = {round, max(1, round - 1), best}
        assert rounds_on_disk(tmp_path) == expected
        assert {int(p.stem[7:]) for p in tmp_path.glob("checkpoint/server-*")} == expected
        kept = [run.checkpoints.read(r) for r in expected]
        assert states_on_disk(tmp_path) == {(c, v) for i in kept for c, (v, _) in i.versions.items()}
        for index in kept:
            assert tree.equal(run.checkpoints.server(index), server(index.round))
            for client, (version, digest) in index.versions.items():
                assert tree.sha256(run.store.load(client, version)) == digest
    assert run.checkpoints.read() == run.index
    assert Run(tmp_path).index == run.index


def test_the_hash_of_all_states_depends_on_each_of_them() -> None:
    index = Index(3, server="a", versions={1: (3, "b"), 10: (2, "c")})
    changed = [
        replace(index, server="x"),
        replace(index, versions={1: (3, "x"), 10: (2, "c")}),
        replace(index, versions={1: (3, "b")}),
        replace(index, versions={2: (3, "b"), 10: (2, "c")}),
    ]
    assert len({i.state_sha256() for i in [index, *changed]}) == 5
    reordered = replace(index, round=4, versions={10: (1, "c"), 1: (2, "b")})
    assert reordered.state_sha256() == index.state_sha256()


def test_leftovers_of_a_round_that_was_not_committed_are_cleared(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.commit(1)
    run.commit(2)
    before = (rounds_on_disk(tmp_path), states_on_disk(tmp_path))
    run.train(3)  # ... and then the power goes, with the server's file written and its index not
    folder = tmp_path / "checkpoint"
    (folder / "server-000003.safetensors").write_bytes(b"half")
    (folder / "clients" / "0" / ".3.safetensors.77.tmp").write_bytes(b"half")
    (folder / ".round-000003.json.77.tmp").write_text("{")
    (folder / ".server-000003.safetensors.77.tmp").write_bytes(b"half")
    again = Run(tmp_path)
    assert again.index == run.index
    assert (rounds_on_disk(tmp_path), states_on_disk(tmp_path)) == before
    left = sorted(p.name for p in folder.rglob("*") if p.is_file())
    assert not [name for name in left if "3" in name or name.endswith(".tmp")], left


def test_a_run_that_never_committed_has_no_generation(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.train(1)
    with pytest.raises(InputError, match="holds no committed round: the run was stopped in its first one"):
        run.checkpoints.read()
    assert Run(tmp_path).index == Index(0)
    assert states_on_disk(tmp_path) == set()


def test_a_round_that_is_not_kept_is_refused_with_those_that_are(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for round in range(1, 6):
        run.commit(round)
    with pytest.raises(InputError, match="keeps rounds 1, 4, 5, not round 3"):
        run.checkpoints.read(3)


def test_a_damaged_server_file_is_found_by_its_hash(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.commit(1)
    path = tmp_path / "checkpoint" / "server-000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunError, match=r"server-000001\.safetensors is damaged: its sha256 is not the one in round-"):
        run.checkpoints.server(run.index)
    path.write_bytes(content[:-3])
    with pytest.raises(RunError, match=r"server-000001\.safetensors cannot be read"):
        run.checkpoints.server(run.index)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"round": 1}', '{"versions": {}, "best_score": 0, "x": 1}'])
def test_a_damaged_index_is_one_line_that_names_it(tmp_path: Path, content: str) -> None:
    run = Run(tmp_path)
    run.commit(1)
    (tmp_path / "checkpoint" / "round-000001.json").write_text(content)
    with pytest.raises(RunError, match=r"round-000001\.json is damaged"):
        run.checkpoints.read()


@pytest.mark.parametrize("call", range(4))
@pytest.mark.parametrize("fails", ["replace", "open"])
def test_a_write_that_fails_leaves_the_previous_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str, call: int
) -> None:
    """The disk is full at the first, second, third (server) or fourth (index) file of round 3."""
    run = Run(tmp_path)
    run.commit(1)
    run.commit(2)
    done, real = [0], getattr(Path, fails)

    def full(self: Path, *args: Any) -> Any:
        if fails == "open" and args != ("wb",):
            return real(self, *args)
        done[0] += 1
        if done[0] > call:
            raise OSError(28, "No space left on device", str(self))
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Path, fails, full)
        with pytest.raises(OSError, match="No space left"):
            run.commit(3)
    assert done[0] == call + 1
    again = Run(tmp_path)
    assert again.index.round == 2
    assert rounds_on_disk(tmp_path) == {1, 2}
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and ("3" in p.name or p.suffix == ".tmp")]
    for client, (version, digest) in again.index.versions.items():
        assert tree.sha256(again.store.load(client, version)) == digest
    assert tree.equal(again.checkpoints.server(again.index), server(2))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2.5 MB, which a run of `SMALL` fills in its second round."""
    place = tmp_path / "disk"
    place.mkdir()
    asked = ["mount", "-t", "tmpfs", "-o", "size=2500k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(asked, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("needs root to mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_run_on_a_full_disk_fails_in_one_line_and_goes_on_when_there_is_room(disk: Path, tmp_path: Path) -> None:
    keys = {**SMALL, "models": "mlp-1", "rounds": 4, "local_epochs": 1}
    expected = api.run("pfedafm", out=tmp_path / "undisturbed", report=False, **keys).summary["state_sha256"]
    options = [part for name, value in keys.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "unalike", "run", "pfedafm", *options, "--out", str(disk / "run"), "--quiet"]
    full = subprocess.run(command, capture_output=True, text=True, check=False)
    assert full.returncode == 1, full.stderr
    assert full.stdout == ""
    assert len(full.stderr.splitlines()) == 1
    assert "No space left on device" in full.stderr
    assert "unalike resume" in full.stderr
    committed = Checkpoints(disk / "run" / "checkpoint").read().round
    assert 1 <= committed < 4
    subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
    with pytest.raises(SystemExit) as ended:
        cli.main(["resume", str(disk / "run"), "--quiet"])
    assert ended.value.code == 0
    assert api.Result(disk / "run").summary["state_sha256"] == expected
