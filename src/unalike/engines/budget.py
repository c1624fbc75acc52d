"""A client held to its memory budget: whatever it does is watched, and exceeding the budget is an error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import tree
from ..errors import RunError
from ..memory.liveness import Liveness
from ..protocol import Batch, Job


@dataclass
class Watch:
    """Counts the bytes of a client's live tensors, as `memory` predicts them, where it has a budget.

    What it was sent and what it keeps live throughout. Its stored rows are not counted, only batches made of them.
    """

    job: Job[Any, Any]
    wanted: bool = True
    bytes: int = field(default=0, init=False)
    """Peak over everything done so far."""

    @property
    def budget(self) -> int | None:
        """What the client is held to, None where nothing is watched."""
        return self.job.info.memory if self.wanted else None

    @contextlib.contextmanager
    def over(self, doing: str, *rows: Batch) -> Iterator[None]:
        """Watch the block; `RunError` if it takes more than the budget. `rows`: stored ones it reads."""
        budget = self.budget
        if budget is None:
            yield
            return
        tracker = Liveness(details=False)
        tracker.ignore(leaf for batch in (self.job.data, self.job.held_out, *rows) for leaf in batch.values())
        tracker.mark("held", tree.flatten({"down": self.job.down, "state": self.job.state}).values())
        try:
            with tracker:
                yield
        finally:
            tracker.close()
        self.bytes = max(self.bytes, tracker.most)
        if tracker.most > budget:
            raise RunError(
                f"{doing} took {_mib(tracker.most)} of memory, its budget is {_mib(budget)}: lower --batch-size, give "
                "it a smaller model or a larger budget, or count no memory with --check-memory false"
            )

    def head(self) -> dict[str, int]:
        """What a reply says of it: nothing where nothing was watched."""
        return {} if self.budget is None else {"memory_bytes": self.bytes, "memory_budget": self.budget}


@dataclass
class Visits:
    """What replies have said of memory, over a round's clients with budgets."""

    visits: int = 0
    evaluations: int = 0
    over: int = 0
    share: float = 0.0
    bytes: int = 0

    def note(self, head: Mapping[str, Any]) -> None:
        """Count a reply: a visit if it has trained, an evaluation if it has scored, both if both."""
        if "memory_bytes" not in head:
            return
        found, budget = head["memory_bytes"], head["memory_budget"]
        self.visits += "weight" in head
        self.evaluations += "scores" in head
        self.over += found > budget
        self.share, self.bytes = max(self.share, found / budget), max(self.bytes, found)

    def event(self) -> dict[str, Any]:
        """What the round's event says; nothing where no client had a budget."""
        if not self.visits + self.evaluations:
            return {}
        largest = {"largest_share": self.share, "largest_bytes": self.bytes}
        counted = {"visits": self.visits, "evaluations": self.evaluations, "over": self.over}
        return {"memory": {**counted, **largest}}


def _mib(bytes: int) -> str:
    return f"{bytes / 2**20:.2f} MiB"
