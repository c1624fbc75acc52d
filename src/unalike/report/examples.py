"""Questions about images with the answers that a client's model gave, as a page of its own."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .html import Html, definitions, document, prose, section, tag
from .units import fraction

VIEWS = {"answer": "the model", "local": "its own part alone", "shared": "the shared part alone"}
STYLE = """.asked{display:flex;flex-wrap:wrap;gap:1.2rem;padding:1rem 0;border-bottom:1px solid var(--rule)}
.asked img,.asked .none{width:8rem;height:8rem;image-rendering:pixelated;flex:none}
.asked .none{border:1px dashed var(--rule);display:flex;align-items:center;justify-content:center;color:var(--soft)}
.asked div.said{flex:1 1 18rem}"""


@dataclass(frozen=True)
class Asked:
    """A row, and what was answered."""

    image: bytes
    """A PNG file; nothing where the row is answered without its image."""
    question: str
    """Nothing where the row is answered without its question."""
    right: str
    answers: Mapping[str, str]
    """By view."""

    def describe(self) -> dict[str, Any]:
        """As JSON values, without pixels."""
        said = {"question": self.question, "right": self.right, "answers": dict(self.answers)}
        return {"image": bool(self.image), **said}

    def line(self) -> str:
        """In words."""
        told = "; ".join(f"{view} {_marked(answer, self.right)}" for view, answer in self.answers.items())
        return f"  {self.question or '(no question)'} [{self.right}] {told}"


def page(
    run: str,
    method: str,
    client: int,
    name: str,
    round: int,
    of: int,
    right: Mapping[str, float],
    rows: Sequence[Asked],
) -> str:
    """One document with images inside; see `unalike.examples.Examples` for the arguments."""
    who = f"Client {client}" + (f", {name}" if name else "")
    shares = [(VIEWS.get(view, view), f"{fraction(share)} right") for view, share in right.items()]
    return document(
        f"{who}: examples",
        tag("style", Html(STYLE)),
        tag("header", tag("h1", who), tag("p", f"{method}, round {round}, {run}", class_="paper")),
        prose(f"{len(rows)} of the client’s {of} test rows, evenly spaced among them, none chosen by its answer."),
        definitions(shares),
        section("Asked and answered", *map(_row, rows)),
    )


def _row(row: Asked) -> Html:
    encoded = base64.b64encode(row.image).decode()
    picture = (
        tag("img", src=f"data:image/png;base64,{encoded}", alt="what is asked about")
        if row.image
        else tag("div", "no image", class_="none")
    )
    told = [("right", row.right)]
    told += [(VIEWS.get(view, view), _marked(answer, row.right)) for view, answer in row.answers.items()]
    question = tag("p", row.question or "(no question)")
    return tag("div", picture, tag("div", question, definitions(told, "lines"), class_="said"), class_="asked")


def _marked(answer: str, right: str) -> str:
    return f"{answer} {'✓' if answer == right else '✗'}"
