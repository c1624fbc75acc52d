"""What a run folder holds, as types. A field the report does not know is ignored, so a newer engine may write more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, RootModel

BASELINE = "standalone"


def _known(values: Any) -> Any:
    """Drops what was not measured: null and NaN."""
    if not isinstance(values, Mapping):
        return values
    return {k: v for k, v in values.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


PerClient = Annotated[dict[int, float], BeforeValidator(_known)]


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


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


class Client(Record):
    id: int
    name: str = ""
    tier: str = ""
    train: int | None = None
    validation: int | None = None
    test: int | None = None
    labels: list[int] = []


class Partition(Record):
    scheme: str | None = None
    hash: str | None = None
    classes: list[str] = []
    clients: list[Client] = []


class Measured(Record):
    accuracy: float | None = None
    balanced_accuracy: float | None = None


class Evaluation(Record):
    validation: dict[int, Measured] = {}
    test: dict[int, Measured] = {}

    def accuracies(self, split: str, metric: str = "accuracy") -> dict[int, float]:
        measured: dict[int, Measured] = getattr(self, split)
        known: dict[int, float] = _known({i: getattr(m, metric) for i, m in measured.items()})
        return known


class Validated(Record):
    accuracy: float | None = None
    worst: float | None = None


class Metrics(Record):
    validation: Validated = Validated()


class Trained(Record):
    alpha_mean: float | None = None


class Event(Record):
    """A line of events.jsonl. Only `event == "round"` carries the numbers."""

    event: str
    method: str | None = None
    round: int = 0
    metrics: Metrics = Metrics()
    evaluation: Evaluation = Evaluation()
    updates: dict[int, Trained] = {}
    bytes_up: float = 0
    bytes_down: float = 0
    wire_bytes_up: float = 0
    wire_bytes_down: float = 0
    flops: float = 0
    seconds: float = 0


class Manifest(Record):
    versions: dict[str, Any] = {}
    machine: dict[str, Any] = {}
    data: dict[str, Any] = {}
    commit: str | None = None


class Method(Record):
    """A row of compare.json. ci95 is the half-width of the 95 % interval over seeds."""

    method: str
    mean: float | None = None
    ci95: float | None = None
    std: float | None = None
    worst: float | None = None
    worst_decile: float | None = None
    bytes_up: float | None = None
    bytes_down: float | None = None
    flops: float | None = None
    seconds: float | None = None
    peak_memory_bytes: float | None = None
    status: str = ""
    reason: str | None = None
    seeds: list[int] = []
    runs: list[str] = []

    @property
    def failed(self) -> bool:
        return self.mean is None or self.status == "failed"


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

    @property
    def algorithm(self) -> str:
        return self.summary.algorithm

    @property
    def partition_hash(self) -> str | None:
        return self.summary.partition_hash or self.partition.hash


@dataclass(frozen=True)
class Comparison:
    """`runs` has, per method, the run folders that are there, in the order of the seeds."""

    name: str
    methods: list[Method]
    runs: dict[str, list[Run]]
