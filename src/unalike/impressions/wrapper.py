"""Impressions for any method with a global model: a method around another one.

    server    round of the inner method, which leaves w; impressions (X, y) of w; send what it sends, and (X, y)
    client    visit of the inner method on the client's rows with (X, y) beside them

The inner method has no line about it, and neither inherits from the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from torch import Tensor

from ..errors import InputError
from ..protocol import Algorithm, Arrival, Batch, ClientInfo, Job, Ready, Update
from ..rng import Key
from . import exchange
from .settings import Impressions, read


def require_support(kind: type[Algorithm[Any, Any, Any]], method: str) -> None:
    """Raise `InputError` unless a method can have impressions."""
    if issubclass(kind, Impressions):
        raise InputError(f"{method} makes impressions already: give its own parameters")
    if kind.memory_aware:
        raise InputError(f"{method} takes no impressions: what its clients train depends on their memory")
    if not kind.global_model:
        raise InputError(f"{method} takes no impressions: it has no global model to make them of, as fedavg has")


@dataclass(frozen=True, kw_only=True)
class WithImpressions(Algorithm[Any, Any, Any]):
    """A method whose clients train on impressions of its global model beside their own rows."""

    inner: Algorithm[Any, Any, Any]
    settings: Impressions

    @classmethod
    def around(cls, inner: Algorithm[Any, Any, Any]) -> Self:
        """The method with the impressions that its parameter `impressions` asks for."""
        common = {f.name: getattr(inner, f.name) for f in fields(Algorithm)}
        return cls(**common, inner=inner, settings=read(inner.impressions))

    @property
    def global_model(self) -> str:  # type: ignore[override]
        """The inner method's."""
        return self.inner.global_model

    @property
    def batch_size(self) -> int:
        """Rows of a batch, as far as the inner method tells."""
        return int(getattr(self.inner, "batch_size", 512))

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        return replace(self, inner=self.inner.settle(clients))

    def require(self, clients: Sequence[ClientInfo]) -> None:
        self.inner.require(clients)
        exchange.require(self.settings, self.shared, type(self.inner).__name__)

    def init_server(self, key: Key) -> Any:
        return self.inner.init_server(key)

    def init_client(self, info: ClientInfo, key: Key) -> Any:
        return self.inner.init_client(info, key)

    def select(self, server: Any, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        return self.inner.select(server, clients, round, key)

    def broadcast(self, server: Any, info: ClientInfo, round: int) -> Any:
        return {**self.inner.broadcast(server, info, round), **exchange.sent(self.settings, server)}

    def client_update(self, job: Job[Any, Any]) -> Update[Any, Any]:
        rows, said = exchange.received(self.settings, self.shared, job, self.inner.global_model)
        update = self.inner.client_update(replace(job, down=_own(job.down, exchange.SERVER), data=rows))
        return replace(update, up={**update.up, **said})

    def aggregate(self, server: Any, arrivals: Sequence[Arrival[Any]], round: int, key: Key) -> Any:
        sent = [replace(arrival, up=_own(arrival.up, exchange.UP)) for arrival in arrivals]
        after = self.inner.aggregate(_own(server, exchange.SERVER), sent, round, key)
        model, is_due = after[self.inner.global_model], round >= self.settings.first(self.rounds)
        made = exchange.renewed(self.settings, self.shared, model, server, arrivals, key / "impressions", is_due)
        return {**after, **made}

    def done(self, server: Any, round: int) -> bool:
        return self.inner.done(server, round)

    def report(self, server: Any, round: int) -> Mapping[str, float]:
        return {**self.inner.report(server, round), **exchange.report(server)}

    def keepsakes(self, server: Any, round: int) -> Mapping[str, Tensor]:
        return {**self.inner.keepsakes(server, round), **exchange.keepsakes(server)}

    def prepare(self, info: ClientInfo, down: Any, state: Any, data: Batch, key: Key) -> Ready:
        return self.inner.prepare(info, _own(down, exchange.SERVER), state, data, key)

    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        return self.inner.predict(ready, batch)


def _own(value: Mapping[str, Any], others: Sequence[str]) -> dict[str, Any]:
    return {name: branch for name, branch in value.items() if name not in others}
