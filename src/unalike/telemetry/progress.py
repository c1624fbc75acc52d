"""Progress for the person who waits: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from .events import Event, Listener

COLUMNS = ("round", "validation", "worst", "loss", "traffic", "seconds", "left")
ROWS = 12
"""Rounds that the live table shows."""


def human_bytes(n: float) -> str:
    """1536 as "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1024
    return f"{n:.1f} TiB"


class Progress:
    """A listener that shows each round as it commits. Validation only: the test set is for the end."""

    def __init__(self, title: str, rounds: int, console: Console) -> None:
        self.title, self.rounds, self.console = title, rounds, console
        self._rows: list[tuple[str, ...]] = []
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._started, self._first, self._note = time.monotonic(), 0, ""

    def __call__(self, event: Event) -> None:
        if event["event"] == "start":
            self._first = event["round"]
            if shift := event.get("simulated_shift"):
                self._note = f" under a simulated shift ({shift})"
            if self._live:
                self._live.start()
            else:
                self.console.print(f"{self.title}: {self.rounds} rounds{self._note}", highlight=False, markup=False)
        elif event["event"] == "round":
            self._rows.append(self._row(event))
            self._show()
        elif event["event"] == "evaluation":
            self._score_last(event)
        elif self._live:
            self.close()

    def close(self) -> None:
        """Leave the terminal as it was found; also after an error."""
        if self._live:
            self._live.stop()

    def _row(self, event: Event) -> tuple[str, ...]:
        done = event["round"] - self._first
        left = (time.monotonic() - self._started) / done * (self.rounds - event["round"])
        train = event["metrics"]["train"].get("loss")
        return (
            str(event["round"]),
            *_scores(event),
            f"{train:.3f}" if train is not None else "",
            human_bytes(event["bytes_up"] + event["bytes_down"]),
            f"{event['seconds']:.1f}",
            f"{max(left, 0):.0f} s",
        )

    def _score_last(self, event: Event) -> None:
        """The last round, which was scored after it was shown."""
        if self._rows:
            self._rows[-1] = (self._rows[-1][0], *_scores(event), *self._rows[-1][3:])
            self._show()

    def _show(self) -> None:
        if self._live is None:
            named = zip(COLUMNS, self._rows[-1], strict=True)
            line = "  ".join(f"{name} {value}" for name, value in named if value)
            self.console.print(f"{self.title}  {line}", highlight=False, markup=False, soft_wrap=True)
            return
        table = Table(title=f"{self.title}{self._note}", title_justify="left")
        for name in COLUMNS:
            table.add_column(name, justify="right")
        for row in self._rows[-ROWS:]:
            table.add_row(*row)
        self._live.update(table, refresh=True)


def _scores(event: Event) -> tuple[str, str]:
    """Mean and worst on validation; empty where nothing was scored."""
    found: dict[str, Any] = event["metrics"].get("validation", {})
    return tuple(f"{found[name]:.3f}" if name in found else "" for name in ("accuracy", "worst"))  # type: ignore[return-value]


def listeners(title: str, rounds: int, quiet: bool) -> tuple[Listener, ...]:
    """What to attach to a run; nothing when quiet. Progress goes to standard error."""
    return () if quiet else (Progress(title, rounds, Console(stderr=True)),)
