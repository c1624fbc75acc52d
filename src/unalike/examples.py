"""What a client's model answers to questions about images: some of its test rows, as a page to look at."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from . import personal, runs
from .answering import Viewed
from .data import vqa
from .errors import InputError
from .report.examples import Asked, page

BOTH = "answer"
"""What the model itself answers; a method's other views have names of their own."""


@dataclass(frozen=True)
class Examples:
    """Rows of a client's test part, evenly spaced among all of them."""

    run: str
    method: str
    client: int
    name: str
    """The client's, where clients have names."""
    round: int
    of: int
    """How many test rows there are."""
    right: Mapping[str, float]
    """View to the share of all test rows that it answers rightly."""
    rows: list[Asked]

    def describe(self) -> dict[str, Any]:
        """As JSON values, without pixels."""
        return {**vars(self), "rows": [row.describe() for row in self.rows]}

    def lines(self) -> list[str]:
        """In words."""
        who = f"client {self.client}" + (f" ({self.name})" if self.name else "")
        told = [f"{who}, round {self.round}: {len(self.rows)} of its {self.of} test rows"]
        told += [f"{view:<8}{share:.3f} right of all {self.of}" for view, share in self.right.items()]
        return told + [row.line() for row in self.rows]

    def html(self) -> str:
        """A page that needs no other file."""
        return page(**vars(self))


def examples(folder: Path, client: int, rows: int = 8, last: bool = False) -> Examples:
    """`rows` test rows of client `client` of a run, and what its model answers, in each view that its method has.

    Args:
        last: of the last round, not of the one best on validation.

    Raises:
        InputError: the run's data are no questions about images, or there is no such client.
    """
    prepared = runs.reopen(folder)
    found, method = prepared.federation, prepared.algorithm
    if found.source.kind != "vqa":
        raise InputError(
            f"{folder} was run on {found.source.name}, no questions about images: give --input INSTRUCTION"
        )
    model = personal.extract(folder, client, last, found)
    own, batch, ready = found.rows(client, "test"), found.data(client, "test"), model.ready_on("cpu")
    views = method.views if isinstance(method, Viewed) else ()
    with torch.no_grad():
        said = {BOTH: method.predict(ready, batch).argmax(1)}
        said |= {name: method.view(name, ready, batch).argmax(1) for name in views}  # type: ignore[attr-defined]
    answers, asked = found.answers(client), vqa.questions(found.source.x[own])
    shown = batch.get("pictured", torch.zeros(len(own), dtype=torch.bool))
    reads = "text" in (found.clients[client].modalities or ("text",))
    picked = np.unique(np.linspace(0, len(own) - 1, min(rows, len(own))).round().astype(int)).tolist()
    return Examples(
        run=str(folder),
        method=prepared.experiment.method,
        client=client,
        name=found.partition.names[client] if found.partition.names else "",
        round=model.round,
        of=len(own),
        right={name: float((ids == batch["y"]).float().mean()) for name, ids in said.items()},
        rows=[
            Asked(
                image=_png(batch["image"][i]) if shown[i] else b"",
                question=asked[i] if reads else "",
                right=answers[int(batch["y"][i])],
                answers={name: answers[int(ids[i])] for name, ids in said.items()},
            )
            for i in picked
        ],
    )


def _png(image: torch.Tensor) -> bytes:
    """An image (3, side, side) as the bytes of a file."""
    file = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(file, "PNG")
    return file.getvalue()
