"""What tests of comparisons share: runs of a fraction of a second, and what lies in a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unalike.comparison.drive import ListenersOf

KEYS: dict[str, Any] = {"data": "wine", "clients": 2, "models": ["mlp-5"], "min_per_client": 20, "engine": "serial"}
KEYS |= {"rounds": 1, "local_epochs": 1}
OPTIONS = tuple(f"--{k.replace('_', '-')}={v[0] if isinstance(v, list) else v}" for k, v in KEYS.items())
"""`KEYS` on the command line."""
HEAD = "".join(f"{key} = {json.dumps(value)}\n" for key, value in KEYS.items())
"""`KEYS` in a file."""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file and folder below, with what is in it."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in found if p.name != ".lock"}


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def cells(folder: Path) -> list[dict[str, Any]]:
    """The lines of cells.jsonl."""
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


def finished(folder: Path) -> dict[str, bytes]:
    """What happened in each finished run below, by its folder."""
    return {str(p.parent.relative_to(folder)): (p.parent / "events.jsonl").read_bytes() for p in summaries(folder)}


def summaries(folder: Path) -> list[Path]:
    return sorted(folder.rglob("summary.json"))


def stopping_at(number: int, titles: list[str] | None = None) -> ListenersOf:
    """Ctrl-C after the first round of the run with this number, from 1; `titles` gets those of all that begin."""
    begun = [] if titles is None else titles

    def listeners_of(title: str, prepared: Any) -> list[Callable[[Any], None]]:
        def listen(event: Any) -> None:
            if event["event"] == "start":
                begun.append(title)
            elif event["event"] == "round" and len(begun) == number:
                raise KeyboardInterrupt

        return [listen]

    return listeners_of
