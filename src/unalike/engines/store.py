"""Where client states lie: files beside the workers, the hot ones in memory up to a budget."""

from __future__ import annotations

import contextlib
import math
import os
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from .. import tree
from ..errors import RunError
from ..files import write_atomically
from ..tree import Tree

DEFAULT_BUDGET = 512 * 2**20


class Store:
    """States by (client, version), where the version is the round that wrote it.

    A state is a file before `save` returns, so any worker of the machine can serve any client and a crash loses no
    committed round. Reading maps the file: a state costs memory only while it is used, or while it fits `budget`.
    """

    def __init__(self, folder: Path, budget: int = DEFAULT_BUDGET) -> None:
        self.folder = folder
        self.budget = budget
        self._hot: OrderedDict[int, tuple[int, int, dict[str, Any]]] = OrderedDict()
        self._held = 0

    def path(self, client: int, version: int) -> Path:
        return self.folder / str(client) / f"{version}.safetensors"

    def load(self, client: int, version: int, digest: str = "") -> dict[str, Any]:
        """The state that round `version` left; `RunError` when its file is gone, broken, or not of that sha256."""
        if client in self._hot and self._hot[client][0] == version:
            self._hot.move_to_end(client)
            return self._hot[client][2]
        path = self.path(client, version)
        try:
            state = tree.unflatten(load_file(path))
        except Exception as error:
            raise RunError(f"client {client}'s state of round {version} cannot be read: {path}: {error}") from error
        if digest and tree.sha256(state) != digest:
            raise RunError(f"{path} is damaged: its sha256 is not the one that was committed")
        self._keep(client, version, state)
        return state

    def save(self, client: int, version: int, state: Tree) -> str:
        """Keep a state under its version and return its canonical hash."""
        path = self.path(client, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, tree.to_bytes(state))
        self._keep(client, version, dict(state))
        return tree.sha256(state)

    def _keep(self, client: int, version: int, state: dict[str, Any]) -> None:
        self._forget(client)
        size = tree.nbytes(state)
        if size > self.budget:
            return
        self._hot[client] = (version, size, state)
        self._held += size
        while self._held > self.budget:
            self._forget(next(iter(self._hot)))

    def _forget(self, client: int) -> None:
        if client in self._hot:
            self._held -= self._hot.pop(client)[1]


def remove_unreferenced(
    folder: Path, clients: Iterable[int], referenced: set[tuple[int, int]], below: float = math.inf
) -> None:
    """Delete those versions of `clients`, below a number, that no kept checkpoint refers to.

    Clients that lie elsewhere are left out.
    """
    for client in clients:
        with contextlib.suppress(FileNotFoundError), os.scandir(folder / str(client)) as entries:
            for entry in entries:
                version = entry.name.removesuffix(".safetensors")
                if not version.isdigit() or (int(version) < below and (client, int(version)) not in referenced):
                    Path(entry.path).unlink(missing_ok=True)
