"""The last good generations of a run.

    checkpoint/clients/<id>/<round>.safetensors   states, written by the stores before the round commits
    checkpoint/server-<round>.safetensors         the server's state
    checkpoint/round-<round>.json                 written last: which versions belong together, with their sha256

A round is committed when its index is renamed into place; without it the files of that round are leftovers. Kept are
the last two generations and the one that scored best on validation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .. import tree
from ..errors import InputError, RunError
from ..files import write_atomically, write_json
from ..tree import Tree
from .store import remove_unreferenced


@dataclass(frozen=True, slots=True)
class Index:
    """One committed round."""

    round: int
    server: str = ""
    """sha256 of the server's state."""
    versions: Mapping[int, tuple[int, str]] = field(default_factory=dict)
    """Client to the round that wrote its state and the sha256 of it; clients without state are left out."""
    events: int = 0
    """Length of events.jsonl in bytes."""
    best_round: int = 0
    best_score: float = float("-inf")

    def state(self, client: int) -> tuple[int, str]:
        """Version and sha256 of a client's state; (0, "") for one that was never visited."""
        return self.versions.get(client, (0, ""))

    def state_sha256(self) -> str:
        """One hash over the server's and all clients' stored states."""
        lines = {f"client/{client}": digest for client, (_, digest) in self.versions.items()} | {"server": self.server}
        return _sha256("".join(f"{name} {lines[name]}\n" for name in sorted(lines)))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Checkpoints:
    """The folder `checkpoint/` of a run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.clients = folder / "clients"
        self._kept: dict[int, Index] = {}

    def commit(self, index: Index, server: Tree) -> Index:
        """Make a round the last good one, then drop generations nobody needs. The index is returned with its hash."""
        index = Index(**{**_fields(index), "server": tree.sha256(server)})
        write_atomically(self._server(index.round), tree.to_bytes(server))
        write_json(self._index(index.round), {**asdict(index), "best_score": _finite(index.best_score)})
        before = self._kept
        last = sorted(before)[-1:]
        self._kept = {r: before[r] for r in before if r in last or r == index.best_round} | {index.round: index}
        self._drop(before)
        return index

    def _drop(self, before: Mapping[int, Index]) -> None:
        gone = {r: i for r, i in before.items() if r not in self._kept}
        referenced = {(c, v) for i in self._kept.values() for c, (v, _) in i.versions.items()}
        stale = {c for i in gone.values() for c, (v, _) in i.versions.items() if (c, v) not in referenced}
        for round in gone:
            self._index(round).unlink(missing_ok=True)
            self._server(round).unlink(missing_ok=True)
        remove_unreferenced(self.clients, stale, referenced)

    def versions(self, client: int) -> list[int]:
        """The versions of a client's state that kept generations refer to."""
        return sorted({index.state(client)[0] for index in self._kept.values()} - {0})

    def open(self) -> Index:
        """The last committed round, after clearing away what a crash left behind; round 0 when there is none."""
        self.clients.mkdir(parents=True, exist_ok=True)
        self._kept = {index.round: index for index in self._indexes()}
        referenced = {(c, v) for i in self._kept.values() for c, (v, _) in i.versions.items()}
        remove_unreferenced(self.clients, (int(p.name) for p in self.clients.iterdir()), referenced)
        for path in self.folder.glob(".*.tmp"):
            path.unlink()
        for path in self.folder.glob("server-*.safetensors"):
            if int(path.stem.partition("-")[2]) not in self._kept:
                path.unlink()
        return self._kept[max(self._kept)] if self._kept else Index(0)

    def read(self, round: int | None = None) -> Index:
        """A kept generation (the last one by default), changing nothing."""
        found = {index.round: index for index in self._indexes()}
        if not found:
            raise InputError(f"{self.folder} holds no committed round: the run was stopped in its first one")
        wanted = max(found) if round is None else round
        if wanted not in found:
            raise InputError(f"{self.folder} keeps rounds {', '.join(map(str, sorted(found)))}, not round {wanted}")
        return found[wanted]

    def server(self, index: Index) -> dict[str, Any]:
        """The server's state of a generation, checked against its hash."""
        path = self._server(index.round)
        try:
            state = tree.from_bytes(path.read_bytes())
        except Exception as error:
            raise RunError(f"{path} cannot be read: {error}") from error
        if tree.sha256(state) != index.server:
            raise RunError(f"{path} is damaged: its sha256 is not the one in {self._index(index.round).name}")
        return state

    def _indexes(self) -> list[Index]:
        return [_read_index(path) for path in self.folder.glob("round-*.json")]

    def _index(self, round: int) -> Path:
        return self.folder / f"round-{round:06d}.json"

    def _server(self, round: int) -> Path:
        return self.folder / f"server-{round:06d}.safetensors"


def _fields(index: Index) -> dict[str, Any]:
    return {name: getattr(index, name) for name in Index.__slots__}


def _finite(score: float) -> float | None:
    return None if score == float("-inf") else score


def _read_index(path: Path) -> Index:
    try:
        found = json.loads(path.read_text())
        found["versions"] = {int(c): (int(v), str(digest)) for c, (v, digest) in found["versions"].items()}
        found["best_score"] = float("-inf") if found["best_score"] is None else found["best_score"]
        return Index(**found)
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged: {error}") from error
