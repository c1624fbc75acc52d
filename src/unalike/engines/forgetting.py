"""Forgetting: the accuracy that one client's training costs the common model on the rows of all others.

    F_i = A_i(w) − A_i(w_i)

w is the common model that a round begins with, w_i what client i made of it and sent, and A_i the score over the rows
of all clients but i together, each row counting once. It is negative where others gain by what i has learnt.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import tree
from ..errors import RunError
from ..protocol import Arrival
from ..tasks import Task
from ..tree import Tree
from .scoring import HELD_OUT, added
from .wire import Message, pack


@dataclass(frozen=True, slots=True)
class Trial:
    """A common model, and the clients whose rows it is scored on."""

    model: Tree
    judges: Sequence[int]
    by: int | None = None
    """The client that sent it; None for the one that the round began with."""

    @property
    def bytes(self) -> int:
        """What is sent for it, of tensors."""
        return tree.nbytes(self.model) * len(self.judges)


def trials(branch: str, server: Tree, arrivals: Sequence[Arrival[Any]], judges: Sequence[int]) -> list[Trial]:
    """What must be scored to know the forgetting of all that have arrived; none where there is nobody to forget.

    Args:
        branch: where the common model lies in the server's state and in what clients send.
        server: its state as the round began.
        judges: the clients whose rows count. Each is asked once about the model before.
    """
    after = [
        Trial(_model(branch, arrival.up, f"what client {arrival.info.id} sent"), others, arrival.info.id)
        for arrival in arrivals
        if (others := [judge for judge in judges if judge != arrival.info.id])
    ]
    asked = [judge for judge in judges if any(judge in trial.judges for trial in after)]
    return [Trial(_model(branch, server, "the server's state"), asked), *after] if after else []


def requests(found: Iterable[Trial], round: int) -> Iterator[bytes]:
    """A message for each model and client, made when it is asked for; a model is encoded once."""
    for trial in found:
        body = pack(trial.model)
        for judge in trial.judges:
            yield Message({"kind": "common", "client": judge, "round": round}, body).encode()


def forgotten(task: Task, found: Sequence[Trial], replies: Iterable[Message]) -> dict[str, dict[str, float]]:
    """Part to client to its forgetting; `replies` come in the order of `requests`."""
    answers = iter(replies)
    counts = [{judge: next(answers).head["counts"] for judge in trial.judges} for trial in found]
    before, *after = zip(found, counts, strict=True)

    def score(part: str, told: Mapping[int, Mapping[str, Any]], judges: Iterable[int]) -> float:
        return task.scores(added(told[judge][part] for judge in judges))[task.metric]

    return {
        part: {
            str(trial.by): score(part, before[1], trial.judges) - score(part, told, trial.judges)
            for trial, told in after
        }
        for part in HELD_OUT
    }


def _model(branch: str, holder: Tree, whose: str) -> Tree:
    if branch not in holder:
        raise RunError(f"{whose} has no {branch!r}, which the method says is its global model")
    model: Tree = holder[branch]
    return model
