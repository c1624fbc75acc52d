"""Why a client's model answers as it does: what its own adapter counted for an input, and what comes of either."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import personal, runs, tasks
from .adapters import Explains
from .algorithms import ALGORITHMS
from .data.text import packed, unpacked
from .errors import InputError


@dataclass(frozen=True)
class Explanation:
    """One input, and what became of it."""

    client: int
    name: str
    """The client's, which is its task where clients are tasks."""
    round: int
    instruction: str
    weight: float
    """a(x), what the client's own adapter counts; the shared one counts 1 - a(x)."""
    anchors: list[tuple[float, str]]
    """Similarity and instruction of each training row of the client that the input was held against."""
    answers: dict[str, str]
    """What the adapter "global" answers alone, "local" alone, and "blend"."""

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        anchors = [{"similarity": alike, "instruction": text} for alike, text in self.anchors]
        return {**vars(self), "anchors": anchors}

    def lines(self) -> list[str]:
        """In words."""
        own, who = self.weight, f"client {self.client}" + (f" ({self.name})" if self.name else "")
        told = [f"{who}, round {self.round}: its own adapter counts {own:.3f}, the shared one {1 - own:.3f}"]
        if self.anchors:
            mean = sum(alike for alike, _ in self.anchors) / len(self.anchors)
            told.append(f"held against {len(self.anchors)} of its training rows, in the mean {mean:.3f} alike:")
            told += [f"  {alike:6.3f}  {_short(text)}" for alike, text in self.anchors]
        return told + [f"{adapter:<8}{answer}" for adapter, answer in self.answers.items()]


def explain(folder: Path, client: int, instruction: str, last: bool = False) -> Explanation:
    """What the model of client `client` of a run makes of an instruction, and why.

    Args:
        last: of the last round, not of the one best on validation.

    Raises:
        InputError: the run's method blends nothing, or the client is none of its clients.
    """
    prepared = runs.reopen(folder)
    method, found = prepared.algorithm, prepared.federation
    if not isinstance(method, Explains) or not isinstance(method.task, tasks.Instruction):
        able = ", ".join(name for name, kind in ALGORITHMS.items() if hasattr(kind, "explain"))
        raise InputError(f"{folder} was run with {prepared.experiment.method}, which blends nothing: {able} does")
    model = personal.extract(folder, client, last, found)
    x = torch.from_numpy(model.preprocess(packed([instruction])))
    with torch.no_grad():
        told = method.explain(model.ready_on("cpu"), {"x": x})
    rows, alike = told["anchors"][0].tolist(), told["similarities"][0].tolist()
    texts = unpacked(found.source.x[found.rows(client, "train")[rows]]) if rows else []
    return Explanation(
        client=client,
        name=found.partition.names[client] if found.partition.names else "",
        round=model.round,
        instruction=instruction,
        weight=float(told["weight"][0]),
        anchors=list(zip(alike, texts, strict=True)),
        answers={name: method.task.tokens.texts(ids)[0] for name, ids in told["answers"].items()},
    )


def _short(text: str, length: int = 90) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."
