"""What a run folder holds, as types. A field the report does not know is ignored, so a newer engine may write more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, pstdev
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, RootModel, model_validator

from .measured import (
    CONFIG,
    Budgets,
    BytesPerRound,
    Difference,
    Figure,
    Forgetting,
    Forgotten,
    PerClient,
    Pooled,
    PooledOver,
    Scope,
    Target,
    Together,
    known,
)


def _numbers(values: Any) -> Any:
    """Drops whatever is no number: a method may tell more than a page can show."""
    if not isinstance(values, Mapping):
        return {}
    return {k: v for k, v in known(values).items() if isinstance(v, (int, float))}


class Record(BaseModel):
    model_config = CONFIG


class Scores(Record):
    """One metric, each number in 0..1, over the clients."""

    mean: float | None = None
    std: float | None = None
    worst: float | None = None
    worst_decile: float | None = None
    per_client: PerClient = {}

    @classmethod
    def of(cls, per_client: Mapping[int, float]) -> Scores:
        """std is the population's; worst_decile the mean of the lowest ceil(N/10)."""
        if not per_client:
            return cls()
        low = sorted(per_client.values())
        return cls(
            mean=fmean(low),
            std=pstdev(low),
            worst=low[0],
            worst_decile=fmean(low[: math.ceil(len(low) / 10)]),
            per_client=dict(per_client),
        )


class Traffic(Record):
    up: float = 0
    down: float = 0


class Summary(Record):
    """summary.json; of an unfinished run what its events allow to say."""

    algorithm: str
    paper: str | None = None
    data: str | None = None
    seed: int | None = None
    rounds: int | None = None
    clients: int | None = None
    accuracy: Scores = Scores()
    balanced_accuracy: Scores = Scores()
    rouge1: Scores = Scores()
    pooled: Pooled | None = None
    forgetting: Forgetting | None = None
    scopes: dict[str, Scope] = {}
    selected_round: int | None = None
    bytes: Traffic = Traffic()
    wire_bytes: Traffic = Traffic()
    bytes_evaluation: float = 0
    flops: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    state_sha256: str | None = None
    parameters: dict[str, Any] = {}
    partition: str | None = None
    partition_hash: str | None = None
    simulated_shift: str = ""

    @property
    def where(self) -> str:
        """The data, and that what sets its clients' images apart is simulated."""
        shift = f" under a simulated shift ({self.simulated_shift})" if self.simulated_shift else ""
        return f"{self.data}{shift}" if self.data else ""


class Client(Record):
    id: int
    name: str = ""
    tier: str = ""
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    labels: list[int] = []
    memory: int | None = None
    """Budget in bytes."""
    modalities: list[str] = []
    """What it has of images and questions; empty where it has all there are."""
    simulated_shift: dict[str, Any] = {}


class Partition(Record):
    scheme: str | None = None
    simulated_shift: str = ""
    groups: int | None = None
    hash: str | None = None
    classes: list[str] = []
    clients: list[Client] = []


class Measured(Record):
    accuracy: float | None = None
    balanced_accuracy: float | None = None
    rouge1: float | None = None


class Evaluation(Record):
    validation: dict[int, Measured] = {}
    test: dict[int, Measured] = {}
    local: dict[int, Measured] = {}
    shared: dict[int, Measured] = {}
    """On test, by one part of the model alone."""

    def accuracies(self, split: str, metric: str = "accuracy") -> dict[int, float]:
        measured: dict[int, Measured] = getattr(self, split)
        found: dict[int, float] = known({i: getattr(m, metric) for i, m in measured.items()})
        return found


class Validated(Record):
    accuracy: float | None = None
    worst: float | None = None


class Metrics(Record):
    validation: Validated = Validated()
    pooled: Together = Together()
    server: Annotated[dict[str, float], BeforeValidator(_numbers)] = {}
    """What the method's `report` tells."""


class Trained(Record):
    alpha_mean: float | None = None


class Memory(Record):
    """Of a round's clients with budgets: how often they trained and were scored, how often one took more than it has,
    and the most that one took, as a share of its budget and in bytes."""

    visits: int = 0
    evaluations: int = 0
    over: int = 0
    largest_share: float = 0
    largest_bytes: float = 0


class Event(Record):
    """A line of events.jsonl. Only `event == "round"` carries the numbers."""

    event: str
    method: str | None = None
    round: int = 0
    clients: list[int] = []
    metrics: Metrics = Metrics()
    evaluation: Evaluation = Evaluation()
    forgetting: Forgotten = Forgotten()
    updates: dict[int, Trained] = {}
    bytes_up: float = 0
    bytes_down: float = 0
    wire_bytes_up: float = 0
    wire_bytes_down: float = 0
    flops: float | None = None
    seconds: float = 0
    client_seconds: float | None = None
    """Of training, all clients together."""
    memory: Memory | None = None


class Manifest(Record):
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    data: dict[str, Any] = {}
    simulated_shift: str = ""
    commit: str | None = None


class Audited(Record):
    round: int
    images: int
    copies: int


class Audit(Record):
    """audit.json: impressions against all clients' images, and held-out ones (`others`) beside them."""

    verdict: str
    train: int = 0
    held_out: int = 0
    threshold: float = 0
    rounds: list[Audited] = []
    impressions: dict[str, dict[str, float]] = {}
    """Quantiles of "distances" and of "margins"."""
    others: dict[str, dict[str, float]] = {}


class Method(Record):
    """A row of compare.json; what is null in it is as if it were missing.

    ci95 is the half-width of the 95 % interval over seeds, `means` has the mean of each seed, `chosen` what tuning
    chose in so many `trials` (None: not recorded).
    """

    method: str
    mean: float | None = None
    ci95: float | None = None
    weighted_mean: float | None = None
    std: float | None = None
    worst: float | None = None
    worst_decile: float | None = None
    best: float | None = None
    best_decile: float | None = None
    jain: float | None = None
    beats_standalone: float | None = None
    difference: Difference | None = None
    pooled: PooledOver = PooledOver()
    balanced_difference: Difference | None = None
    """Of balanced accuracy over all rows together."""
    rouge1: Figure = Figure()
    forgetting: Figure = Figure()
    scopes: dict[str, Figure] = {}
    target: Target | None = None
    rounds_to_90: Figure = Figure()
    bytes_up: float | None = None
    bytes_down: float | None = None
    bytes_per_round: BytesPerRound = BytesPerRound()
    flops: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    budgets: Budgets | None = None
    trials: int | None = None
    chosen: dict[str, Any] = {}
    train: dict[str, Any] = {}
    status: str = ""
    reason: str | None = None
    seeds: list[int] = []
    means: list[float] = []
    runs: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, found: Any) -> Any:
        return {k: v for k, v in found.items() if v is not None} if isinstance(found, Mapping) else found

    @property
    def failed(self) -> bool:
        return self.mean is None or self.status == "failed"

    @property
    def state(self) -> str:
        """done, or failed with the reason"""
        return f"{self.status}: {self.reason}" if self.reason else self.status

    @property
    def traffic(self) -> float | None:
        """Bytes up and down together."""
        return None if self.bytes_up is None or self.bytes_down is None else self.bytes_up + self.bytes_down

    @property
    def by_seed(self) -> dict[int, float]:
        """The mean of each seed; empty where it is not known which seed is whose."""
        return dict(zip(self.seeds, self.means, strict=True)) if len(self.seeds) == len(self.means) else {}


class Methods(RootModel[list[Method]]):
    pass


@dataclass(frozen=True)
class Run:
    name: str
    finished: bool
    summary: Summary
    partition: Partition
    rounds: list[Event]
    experiment: dict[str, Any]
    manifest: Manifest
    audit: Audit | None = None
    keepsakes: dict[int, Path] = field(default_factory=dict)
    """The files that the method has left, by round."""

    @property
    def algorithm(self) -> str:
        return self.summary.algorithm

    @property
    def partition_hash(self) -> str | None:
        return self.summary.partition_hash or self.partition.hash


class Asked(Record):
    """comparison.json, as far as pages tell it. `rivals`: whom the reference is judged against; none named are all."""

    title: str = ""
    rivals: list[str] = []


@dataclass(frozen=True)
class Comparison:
    """`runs` has, per method, the run folders that are there, in the order of the seeds."""

    name: str
    methods: list[Method]
    runs: dict[str, list[Run]]
    about: Asked

    @property
    def seeds(self) -> set[int]:
        return {seed for m in self.methods for seed in m.seeds}

    @property
    def classes(self) -> list[str]:
        """Names of the classes, where a run tells them."""
        return next((run.partition.classes for several in self.runs.values() for run in several), [])

    @property
    def manifests(self) -> list[Manifest]:
        return [run.manifest for several in self.runs.values() for run in several]


class Regime(Record):
    """An entry of grid.json: a comparison in `folder`, and what sets it apart from the others."""

    name: str
    folder: str
    keys: dict[str, Any] = {}
    status: str = "done"

    @property
    def told(self) -> str:
        """partition dirichlet:0.1, clients 10"""
        return ", ".join(f"{name} {value}" for name, value in self.keys.items())


class GridFile(Record):
    """grid.json. `rivals`: the methods that the reference is to be judged against, all others where none is named."""

    title: str = "A grid of comparisons"
    regimes: list[Regime] = []
    rivals: list[str] = []


@dataclass(frozen=True)
class Compared:
    """A regime with the rows of its comparison, none where it has not begun."""

    regime: Regime
    methods: list[Method]
    classes: list[str] = field(default_factory=list)
    """Names of the classes, where a run tells them."""


@dataclass(frozen=True)
class Grid:
    """`manifests` has those of all runs, in the order of regimes, methods and seeds."""

    folder: Path
    about: GridFile
    rows: list[Compared]
    manifests: list[Manifest]

    @property
    def seeds(self) -> set[int]:
        return {seed for row in self.rows for m in row.methods for seed in m.seeds}
