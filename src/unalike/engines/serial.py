"""The engine that serves one client after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch

from ..data.federation import Federation
from .site import Setup, Site


class Serial:
    """An ordered map in this process. `open` before `map`; `close` gives torch its threads back."""

    name = "serial"
    workers = 1

    def open(self, setup: Setup, federation: Federation) -> None:
        self._threads = torch.get_num_threads()
        torch.set_num_threads(setup.threads)
        self._site = Site(setup, federation)

    def map(self, requests: Iterable[bytes]) -> Generator[bytes, None, None]:
        yield from map(self._site.answer, requests)

    def close(self) -> None:
        if hasattr(self, "_threads"):
            torch.set_num_threads(self._threads)

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
