"""The records of figures over all clients' rows together, on those of others, of forgetting, and over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict


def known(values: Any) -> Any:
    """Drops what was not measured: null and NaN."""
    if not isinstance(values, Mapping):
        return values
    return {k: v for k, v in values.items() if v is not None and not (isinstance(v, float) and math.isnan(v))}


def listed(values: Any) -> Any:
    """A list by its places, without those that are empty."""
    return known(dict(enumerate(values)) if isinstance(values, list) else values)


PerClient = Annotated[dict[int, float], BeforeValidator(known)]
PerClass = Annotated[dict[int, float], BeforeValidator(listed)]


CONFIG = ConfigDict(frozen=True, extra="ignore")


class _Record(BaseModel):
    model_config = CONFIG


class Pooled(_Record):
    """Scores over the rows of all clients together; recall by class, of the classes that occur."""

    accuracy: float | None = None
    balanced_accuracy: float | None = None
    recall: PerClass = {}


class Forgetting(_Record):
    """Accuracy on the others' rows lost by one client's training: the mean over the run's second half, and by round."""

    mean: float | None = None
    rounds: list[int] = []
    per_client: PerClient = {}
    by_round: dict[int, float] = {}


ELSEWHERE, WITHOUT = ("others", "all", "unseen"), ("no-image", "no-text")
SCOPES = ELSEWHERE + WITHOUT
"""What models may have been scored on beside their own clients' test rows: others', or their own without a part."""
VIEWS = ("local", "shared")
"""Ways in which a method lets its model be seen, each scored on the own client's test rows."""


class Elsewhere(_Record):
    """A score of each client's model on other clients' test rows, or on its own seen in another way."""

    mean: float | None = None
    worst: float | None = None
    per_client: PerClient = {}


class Scope(_Record):
    accuracy: Elsewhere = Elsewhere()


class Together(_Record):
    test: Pooled | None = None


class Forgotten(_Record):
    """By the client that has trained."""

    test: PerClient = {}


class Figure(_Record):
    """A figure over seeds: its mean, and the half-width of its 95 % interval."""

    mean: float | None = None
    ci95: float | None = None
    per_seed: list[float] = []


class PooledOver(_Record):
    """`Pooled` over seeds. The lowest recall is each seed's own, of whatever class."""

    accuracy: Figure = Figure()
    balanced_accuracy: Figure = Figure()
    lowest_recall: Figure = Figure()
    recall: PerClass = {}


class Budgets(_Record):
    """A method among clients with memory budgets: the share of them that took part, all visits, those over a budget,
    the largest share of a budget that was taken."""

    took_part: float
    visits: int
    over: int
    largest_share: float


class Difference(_Record):
    """A method's mean minus that of the reference `to`, paired by seed; ci95 is a half-width."""

    to: str
    mean: float | None = None
    ci95: float | None = None
    per_seed: list[float | None] = []


class Target(_Record):
    """What it took until validation accuracy was `accuracy`, over those of the seeds that reached it."""

    accuracy: float
    bytes: float | None = None
    rounds: float | None = None
    reached: int = 0
    seeds: int = 0


class BytesPerRound(_Record):
    up: float | None = None
    down: float | None = None
