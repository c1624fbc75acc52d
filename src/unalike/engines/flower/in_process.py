"""`--engine flower`: the whole way of Flower's messages in one process, a site for each client."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from ...data.federation import Federation
from ...protocol import ClientInfo
from ..site import Setup
from .client import client_app
from .engine import Flower
from .grid import LocalGrid, Recorder
from .host import Host, Local


class InProcess:
    """A `RemoteEngine` whose ServerApp side and ClientApp sides live here. `record` sees every message of Flower's."""

    name = "flower"

    def __init__(self, record: Recorder | None = None) -> None:
        self._record = record

    def open(self, setup: Setup, federation: Federation) -> None:
        hosts = [Host(self._local(setup, info), federation) for info in federation.clients]
        self.grid = LocalGrid([client_app(host.answer) for host in hosts], self._record)
        self._engine = Flower(self.grid, "here", at_least=len(hosts))
        self._engine.open(setup, federation)

    @staticmethod
    def _local(setup: Setup, info: ClientInfo) -> Local:
        return Local(
            name=str(info.id),
            clients=[info.id],
            folder=Path(setup.federation),
            states=Path(setup.store),
            memory=info.memory,
            modalities=info.modalities,
            device=setup.device,
            budget=setup.budget,
            at_home=str,  # the user who names code here runs it here
        )

    @property
    def workers(self) -> int:
        """They take turns."""
        return 1

    @property
    def sent(self) -> int:
        return self._engine.sent

    @property
    def received(self) -> int:
        return self._engine.received

    def present(self, clients: Sequence[ClientInfo]) -> Sequence[ClientInfo]:
        return self._engine.present(clients)

    def map(self, requests: Iterable[bytes]) -> Generator[bytes, None, None]:
        return self._engine.map(requests)

    def close(self) -> None:
        """There is nothing to end."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
