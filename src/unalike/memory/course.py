"""A chain cut into blocks, the phases in which they are trained, and what a client needs for each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ..local import SGD
from ..models import chain
from ..models.progressive import AT_ONCE, SubModel
from ..phases import Phase
from ..protocol import ClientInfo, Spec
from ..rng import Key
from ..tasks import Task
from . import eligible, needs
from .plan import Stage


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """Phases of progressive training, in order, and how their clients train."""

    spec: Spec
    task: Task
    cuts: tuple[int, ...]
    order: tuple[Phase, ...]
    training: SGD
    mapping: SGD
    rows: int
    """Of a batch."""
    proxied: bool = True
    """As `SubModel` has it."""
    frozen_train: bool = False
    """As `progressive.forward` has it."""

    @property
    def steps(self) -> int:
        """T."""
        return len(self.cuts) - 1

    def at(self, place: int | Tensor) -> tuple[Phase, SubModel]:
        """The phase at a place in the order with its sub-model; those of the last one when all is done."""
        phase = self.order[min(int(place), len(self.order) - 1)]
        return phase, self.sub(phase.step)

    def sub(self, step: int) -> SubModel:
        """The sub-model of a step."""
        return SubModel(self.spec, self.cuts, step, self.proxied)

    def fitted(self, phase: Phase, client: ClientInfo) -> SubModel:
        """The sub-model of a phase, with as many rows at once in its frozen blocks as the client's memory holds."""
        rows = eligible.best(client, AT_ONCE, functools.partial(self.need, phase)) or AT_ONCE[-1]
        return replace(self.sub(phase.step), at_once=rows)

    def need(self, phase: Phase, at_once: int = AT_ONCE[-1]) -> int:
        """Bytes that a client needs in a phase, with headroom, its evaluation included; the least, unless told with how
        many rows at once in the frozen blocks."""
        sub = replace(self.sub(phase.step), at_once=at_once)
        if phase.kind == "map":
            return needs.mapping(sub, self.mapping, self.task, self.rows)
        return needs.step(sub, self.task, self.training, self.rows, self.frozen_train)

    def flops(self, phase: Phase) -> float:
        """Operations of a phase's training for each row."""
        sub = self.sub(phase.step)
        if phase.kind == "map":
            return needs.mapping_flops(sub, self.mapping, self.task, self.rows)
        return needs.step_flops(sub, self.task, self.training, self.rows, self.frozen_train)

    def require(self, method: str, clients: Sequence[ClientInfo]) -> None:
        """Raise `InputError` naming the first phase that no client's memory holds, or a client that cannot predict."""
        remedy = "cut the chain finer (--cuts auto), take smaller batches or a narrower model"
        for phase in self.order:
            need, what = functools.partial(self.need, phase), f"what it takes to {phase}"
            eligible.require_some(method, clients, need, what, remedy)
        eligible.require_prediction(method, clients, lambda: needs.evaluated_step(self.sub(self.steps), 1))

    def able(
        self, phase: Phase, drawn: Sequence[ClientInfo], clients: Sequence[ClientInfo], key: Key
    ) -> Sequence[ClientInfo]:
        """As many as were `drawn` of those of `clients` whose memory holds the phase; `eligible.instead`."""
        return eligible.instead(drawn, clients, lambda c: eligible.fits(c, functools.partial(self.need, phase)), key)

    def stage(self, place: int, *, rounds: int, down: int, up: int, once: int) -> Stage:
        """What a plan says of the phase at a place: at most so many rounds, and bytes by `Stage`'s names."""
        phase, sub = self.at(place)
        units = chain.units(self.spec)[sub.start : sub.stop]
        costs = {"need": self.need(phase), "down": down, "up": up, "once": once, "rounds": rounds}
        return Stage(name=str(phase), flops=self.flops(phase), turn=place, step=phase.step, units=units, **costs)
