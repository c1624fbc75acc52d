"""The engine that serves one client after the other, in this process."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from ..data.federation import Federation
from .site import Setup, Site


class Serial:
    """An ordered map in this process. `open` before `map`."""

    name = "serial"
    workers = 1

    def open(self, setup: Setup, federation: Federation) -> None:
        self._site = Site(setup, federation)

    def map(self, requests: Iterable[bytes]) -> Generator[bytes, None, None]:
        yield from map(self._site.answer, requests)

    def close(self) -> None:
        """There is nothing to end."""

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
