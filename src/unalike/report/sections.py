"""Sections that the page of a run and the page of a comparison share."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from . import pictures
from .axes import MANY, alphas, hues
from .html import Html, figure, legend, prose, section
from .records import Client, Run
from .svg import inline
from .units import fraction, whole


def asked(run: Run) -> dict[str, str]:
    """The resolved experiment: what every run has, then the method's parameters."""
    said = run.summary
    tiers = Counter(client.tier for client in run.partition.clients if client.tier)
    first: dict[str, Any] = {
        "data": said.data,
        "partition": said.partition or run.partition.scheme,
        "simulated shift": said.simulated_shift,
        "clients": said.clients or len(run.partition.clients) or None,
        "models": ", ".join(f"{n}\u00a0×\u00a0{tier}" for tier, n in sorted(tiers.items())),
        "rounds": run.experiment.get("rounds", said.rounds),
        "seed": said.seed,
    }
    rest = {**said.parameters, **run.experiment}
    given = first | {name: rest[name] for name in rest if name not in {*first, "method", "algorithm", "shift"}}
    return {name: _plain(value) for name, value in given.items()}


def partition(run: Run) -> Html:
    drawn = run.partition
    if not drawn.classes or not drawn.clients:
        return Html("")
    rows = sum(client.train or sum(client.labels) for client in drawn.clients)
    mark = "stronger colour is more" if pictures.dense(drawn) else "areas are rows"
    caption = f"Training rows of each class at each client; {mark}, {whole(rows)} in all."
    if drawn.scheme:
        caption += f" Drawn by {drawn.scheme}."
    if drawn.groups:
        caption += f" None of the {whole(drawn.groups)} groups of rows lies in two of training, validation and test."
    return section("How the data lie", figure(inline(pictures.partition(drawn), "partition"), caption))


def simulated(run: Run) -> list[Html]:
    """What stands at the head of a page whose clients differ by simulation."""
    shift = run.summary.simulated_shift
    told = f"Simulated domain shift: each client’s images went through a transform of its own ({shift})."
    return [prose(told, class_="simulated")] if shift else []


def shift_of(client: Client) -> str:
    """stain 1.2/0.81/0.9, blur 0.5"""
    kinds = {name: size for name, size in client.simulated_shift.items() if name != "seed"}
    each = {name: size if isinstance(size, list) else [size] for name, size in kinds.items()}
    return ", ".join(f"{name} {'/'.join(f'{number:.2g}' for number in sizes)}" for name, sizes in each.items())


def trains_on(run: Run, client: Client) -> str:
    """What a client has of images and questions; nothing where all clients have both."""
    if not any(each.modalities for each in run.partition.clients):
        return ""
    return " and ".join(
        {"image": "images", "text": "questions"}[name] for name in client.modalities or ("image", "text")
    )


def alpha(run: Run, of: str = "") -> Html:
    """`of` names the method where a page has several."""
    found = alphas(run.rounds)
    if not found:
        return Html("")
    last = {client: curve[max(curve)] for client, curve in found.items()}
    low, high = min(last, key=last.__getitem__), max(last, key=last.__getitem__)
    caption = (
        "Mean of each client’s alpha: 1 relies on its own extractor only, 0 on the shared one only. After its last "
        f"round the lowest is {fraction(last[low])} (client {low}), the highest {fraction(last[high])} (client {high})."
    )
    tiers = sorted({client.tier for client in run.partition.clients if client.tier})
    if len(found) > MANY:
        caption += " Line: the median client. Bands: the middle half, and all but the outer tenths."
    key = legend(hues(tiers)) if len(tiers) > 1 and len(found) <= MANY else ""
    drawing = inline(pictures.alpha(run.rounds, run.partition.clients), f"alpha {of}")
    title = "How much does each client rely on its own extractor?"
    return section(f"{title} ({of})" if of else title, key, figure(drawing, caption))


def provenance(run: Run) -> list[tuple[str, str]]:
    kept = run.manifest
    return [
        ("versions", _pairs(kept.versions.items())),
        ("machine", _pairs(kept.machine.items())),
        ("commit", kept.commit or ""),
        ("data", _pairs(kept.data.items())),
        ("partition hash", run.partition_hash or ""),
    ]


def _plain(value: Any) -> str:
    """A value as it would be typed."""
    if value is None or isinstance(value, str) or value in ({}, []):
        return value or ""
    if isinstance(value, list):
        return ", ".join(map(_plain, value))
    return json.dumps(value, ensure_ascii=False, default=str)


def _pairs(items: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name} {_plain(value)}" for name, value in items if value not in (None, "", {}))
