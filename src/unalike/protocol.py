"""The one contract between methods and engines.

State goes in, state comes out, nothing is mutated. What a `Ticket` carries travels to a client, what an `Arrival`
carries travels back; a `Job` adds what the client's own store holds and never leaves it. An engine is an ordered map
from tickets to results; a method is a frozen dataclass of hyper-parameters with the short methods below.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Generic, Self, TypeAlias, TypeVar

from annotated_types import Ge, Gt, Le
from torch import Tensor

from .rng import Key, round_half_up
from .tasks import Task
from .tree import Batch as Batch

Ready: TypeAlias = Any
"""What `prepare` hands to `predict`: a method's own affair."""

Count = Annotated[int, Ge(1)]
Whole = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]

ServerT = TypeVar("ServerT", bound=Mapping[str, Any])
PrivateT = TypeVar("PrivateT", bound=Mapping[str, Any])
WireT = TypeVar("WireT", bound=Mapping[str, Any])


@dataclass(frozen=True, slots=True)
class Spec:
    """A model as text: which constructor, for which input and output, with which further options."""

    name: str
    """A name in `unalike.models.MODELS` or "package.module:function" (arguments may follow in parentheses)."""
    input: tuple[int, ...]
    """Shape of one sample, without the batch."""
    classes: int
    """Number of outputs."""
    features: int | None = None
    """Pool the extractor's output to this width; None keeps the width it has."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What the server may know of a client."""

    id: int
    tier: str
    """Name of the client's architecture, a key of `Algorithm.models`."""
    n: int
    """Number of training samples."""
    memory: int | None = None
    """Training memory budget in bytes; None is unlimited."""
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ticket(Generic[WireT]):
    """What travels to a client."""

    client: int
    round: int
    down: WireT
    key: Key


@dataclass(frozen=True, slots=True)
class Job(Generic[PrivateT, WireT]):
    """A ticket at its site, with what only the site has: the client's state and its training data."""

    info: ClientInfo
    round: int
    down: WireT
    state: PrivateT
    data: Batch
    key: Key
    held_out: Batch = field(default_factory=dict)
    """The client's validation rows, never to be trained on."""


@dataclass(frozen=True, slots=True)
class Update(Generic[PrivateT, WireT]):
    """What a client makes of a job: `up`, `weight` and `metrics` are sent, `state` stays."""

    up: WireT
    state: PrivateT
    weight: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Arrival(Generic[WireT]):
    """What the server sees of an update."""

    info: ClientInfo
    up: WireT
    weight: float
    metrics: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Algorithm(ABC, Generic[ServerT, PrivateT, WireT]):
    """One method = one frozen dataclass = one file. Rounds count from 1."""

    paper: ClassVar[str] = ""
    """Authors, short title, venue, identifier."""
    needs: ClassVar[str] = "clients of any architecture"
    """In words, what the clients must have."""
    memory_aware: ClassVar[bool] = False
    """Whether what a client trains depends on its memory budget, or changes with the run's phase."""
    equal_architectures: ClassVar[bool] = False
    """Whether clients of unlike architectures are refused, unless `shared_model` says what all of them train."""
    global_model: ClassVar[str] = ""
    """Branch of the server's state and of what clients send that is a whole `shared` model; empty: there is none."""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Named settings (`--preset paper`); what is given beside a preset goes before it."""
    rounds: Count = 20
    """How many rounds the run has."""
    fraction: PositiveShare = 1.0
    """Share of the clients that take part in a round."""
    shared_model: str = ""
    """Architecture of whatever is common to all clients; empty: the smallest among the clients' own."""
    impressions: str = ""
    """Synthetic images that clients train on beside their own, "noise(images=160, lam=1)"; empty: none."""
    models: Mapping[str, Spec] = field(default_factory=dict)
    """Tier to model, filled in when the method meets its federation."""
    task: Task = field(default=None, repr=False)  # type: ignore[assignment]
    """What outputs mean, filled in when the method meets its federation."""

    @property
    def shared(self) -> Spec:
        """The common architecture."""
        return self.models[self.shared_model]

    def settle(self, clients: Sequence[ClientInfo]) -> Self:
        """Settle what depends on the fleet, before `require`; experiment.toml says it, and at a resume it stays."""
        return self

    def require(self, clients: Sequence[ClientInfo]) -> None:
        """Raise `InputError` naming method and clients when it cannot serve them; called before anything starts."""
        return

    @abstractmethod
    def init_server(self, key: Key) -> ServerT:
        """The server's state before round 1. `key` is the same one that `init_client` gets for every client."""

    @abstractmethod
    def init_client(self, info: ClientInfo, key: Key) -> PrivateT:
        """A client's private state before its first visit: a pure function, so untouched clients need no storage."""

    def select(self, server: ServerT, clients: Sequence[ClientInfo], round: int, key: Key) -> Sequence[ClientInfo]:
        """Who takes part: max(1, round(fraction · N)) uniformly without replacement, by ascending position.

        `clients` may be lazy and have a million members: index it, do not iterate over it.
        """
        k = max(1, round_half_up(self.fraction * len(clients)))
        chosen = key.numpy().choice(len(clients), size=k, replace=False, shuffle=False)
        return [clients[int(i)] for i in sorted(chosen)]

    @abstractmethod
    def broadcast(self, server: ServerT, info: ClientInfo, round: int) -> WireT:
        """What travels to this client; return the same tensors to clients that get the same."""

    @abstractmethod
    def client_update(self, job: Job[PrivateT, WireT]) -> Update[PrivateT, WireT]:
        """Train at the client. `up` shares no storage with `down` or the returned state."""

    @abstractmethod
    def aggregate(self, server: ServerT, arrivals: Sequence[Arrival[WireT]], round: int, key: Key) -> ServerT:
        """The server's next state from what has arrived, in the order of `select`."""

    def done(self, server: ServerT, round: int) -> bool:
        """Whether the run ends after `round` rounds."""
        return round >= self.rounds

    def report(self, server: ServerT, round: int) -> Mapping[str, float]:
        """What the server tells of the round it has just ended: numbers for the round's event and for reports."""
        return {}

    def keepsakes(self, server: ServerT, round: int) -> Mapping[str, Tensor]:
        """What a report may show of an evaluated round; written to keepsakes/ of the run folder, never read back."""
        return {}

    def prepare(self, info: ClientInfo, down: WireT, state: PrivateT, data: Batch, key: Key) -> Ready:
        """Once per client and evaluation: whatever `predict` wants at hand. Of it an exported model keeps "down"."""
        return {"info": info, "down": down, "state": state}

    @abstractmethod
    def predict(self, ready: Ready, batch: Batch) -> Tensor:
        """Outputs for `batch` in evaluation mode, without randomness: for classification logits (B, classes)."""
