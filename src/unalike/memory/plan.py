"""Who can train what within its memory: told before anything is trained.

A method describes itself by `Planned.plan`: the stages of its training, each with what a client needs for it and what
it costs. Nothing here knows a method in particular.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from ..protocol import Spec
from ..rng import round_half_up
from . import needs


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """What one client does in a visit: a phase of progressive training, or one of a method's levels (a width, a depth).

    Stages of one turn are alternatives, the best first: a client does the first whose need its memory holds, and none
    where it holds none. Turns follow one another during a run.
    """

    name: str
    need: int
    """Bytes with headroom, by the very rule by which the method chooses clients."""
    down: int
    """Bytes of tensors that travel to a client in a round, without what comes once."""
    up: int
    """Bytes of tensors that travel back."""
    flops: float
    """Floating-point operations of training, for each row."""
    once: int = 0
    """Bytes that come once to each client: blocks that are frozen from here on."""
    turn: int = 0
    rounds: int = 0
    """Most rounds that the turn lasts; 0 where the method does not say, and all of them where it has one turn."""
    step: int = 0
    """Stages of one step, from 1, are told together (shrinking, mapping and growing a block); 0 stands alone."""
    units: tuple[str, ...] = ()
    """Names of the units that train, where the model is a chain of them."""

    @property
    def belongs_to(self) -> str:
        """Name of the step that the stage is told with."""
        return f"step {self.step}" if self.step else self.name


@runtime_checkable
class Planned(Protocol):
    """A method that describes its training to the plan."""

    def plan(self) -> Sequence[Stage]:
        """The stages of the method as it is settled, in the order of a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """How often clients train, and on how much."""

    batch_size: int
    rounds: int
    fraction: float
    clients: int
    rows: float
    """Training rows of a client, on average."""
    epochs: int

    def of(self, takers: int) -> int:
        """Clients in a round when so many could take part."""
        return min(max(1, round_half_up(self.fraction * self.clients)), takers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A method, the model that all train together, and a fleet."""

    method: str
    spec: Spec
    parameters: Mapping[str, Any]
    """The method's own, settled."""
    full: int
    """Predicted peak of training the whole model, without headroom."""
    stages: tuple[Stage, ...]
    fleet: str | None
    """As `data.fleet` reads it."""
    budgets: Mapping[int, int | None]
    """Client to budget in bytes, None is unlimited; empty where no fleet was given."""
    visits: Visits

    @property
    def turns(self) -> list[list[Stage]]:
        """The alternatives of each turn, the best first."""
        ordered = sorted(self.stages, key=lambda stage: stage.turn)
        return [list(group) for _, group in itertools.groupby(ordered, key=lambda stage: stage.turn)]

    def does(self, budget: int | None) -> list[Stage]:
        """What a client of this budget does: at most one stage of each turn."""
        chosen = (next((s for s in turn if budget is None or s.need <= budget), None) for turn in self.turns)
        return [stage for stage in chosen if stage is not None]

    def eligible(self, need: int) -> float | None:
        """Share of the clients whose memory holds `need` bytes; None without a fleet."""
        if not self.budgets:
            return None
        return sum(m is None or need <= m for m in self.budgets.values()) / len(self.budgets)

    def as_json(self) -> dict[str, Any]:
        """The plan as `unalike plan --json` prints it. Shares are of all clients, None without a fleet."""
        done = {client: self.does(budget) for client, budget in self.budgets.items()}
        stages = [stage for turn in self.turns for stage in self._turn_as_json(turn, done)]
        full = needs.with_headroom(self.full)
        least = [min(stage.need for stage in turn) for turn in self.turns]
        nobody = [turn[-1].name for turn in self.turns if not any(s in turn for does in done.values() for s in does)]
        return {
            "method": self.method,
            "model": self.spec.name,
            "input": list(self.spec.input),
            "classes": self.spec.classes,
            "batch_size": self.visits.batch_size,
            "parameters": dict(self.parameters),
            "fleet": self.fleet,
            "full_bytes": self.full,
            "full_need_bytes": full,
            "full_eligible": self.eligible(full),
            "steps": self._steps_as_json(),
            "stages": stages,
            "need_for_any_bytes": min(least),
            "need_for_all_bytes": max(least),
            "takes_part": self._share(bool(stages) for stages in done.values()),
            "takes_part_always": self._share(len(stages) == len(least) for stages in done.values()),
            "nobody_can": nobody if self.budgets else [],
            "total": None if nobody and self.budgets else self._total(stages),
            "visits": {name: getattr(self.visits, name) for name in Visits.__dataclass_fields__},
            "clients": [
                {"client": client, "memory_bytes": self.budgets[client], "stages": [stage.name for stage in found]}
                for client, found in done.items()
            ],
        }

    def _share(self, does: Any) -> float | None:
        return sum(does) / len(self.budgets) if self.budgets else None

    def _steps_as_json(self) -> list[dict[str, Any]]:
        """Each step with the largest need among its stages."""
        steps: dict[str, list[Stage]] = {}
        for stage in sorted(self.stages, key=lambda stage: stage.step):
            steps.setdefault(stage.belongs_to, []).append(stage)
        told = []
        for name, stages in steps.items():
            need = max(stage.need for stage in stages)
            told.append(
                {"name": name, "units": list(stages[0].units), "need_bytes": need, "eligible": self.eligible(need)}
            )
        return told

    def _turn_as_json(self, turn: Sequence[Stage], done: Mapping[int, list[Stage]]) -> list[dict[str, Any]]:
        takers = [sum(stage in stages for stages in done.values()) for stage in turn]
        if not self.budgets:
            takers = [self.visits.clients, *[0] * (len(turn) - 1)]
        a_round = self.visits.of(sum(takers))
        rounds = turn[0].rounds or (self.visits.rounds if len(self.turns) == 1 else 0)
        return [
            {
                "name": stage.name,
                "step": stage.belongs_to,
                "turn": stage.turn,
                "rounds": rounds,
                "units": list(stage.units),
                "need_bytes": stage.need,
                "eligible": self.eligible(stage.need),
                "takes_it": taking / len(self.budgets) if self.budgets else None,
                "clients_a_round": a_round * taking / sum(takers) if taking else 0.0,
                "bytes_down": stage.down,
                "bytes_up": stage.up,
                "bytes_once": stage.once,
                "flops_a_row": stage.flops,
                "flops_a_visit": stage.flops * self.visits.rows * self.visits.epochs,
            }
            for stage, taking in zip(turn, takers, strict=True)
        ]

    @staticmethod
    def _total(stages: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
        """Of a run whose turns last as long as they may; what comes once is left out. None where that is not known."""
        if not all(stage["rounds"] for stage in stages):
            return None
        visits = [stage["rounds"] * stage["clients_a_round"] for stage in stages]
        kinds = {"bytes_down": "bytes_down", "bytes_up": "bytes_up", "flops": "flops_a_visit"}
        return {
            name: sum(n * stage[kind] for n, stage in zip(visits, stages, strict=True)) for name, kind in kinds.items()
        }
