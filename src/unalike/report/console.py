"""A comparison on a terminal of 80 columns: scores first, then what they cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .units import percent

Lines = Sequence[Mapping[str, Any]]

SCORES = ("method", "mean", "difference", "std", "decile", "worst", "> alone")
COSTS = ("method", "sent", "received", "to target", "TFLOP", "seconds", "memory", "alpha")


def show(lines: Lines, title: str = "", console: Console | None = None) -> None:
    """Print the tables of compare.json's lines; `title` names the setting they belong to."""
    console = console or Console(markup=False, emoji=False)
    against = next((line["difference"]["to"] for line in lines if line.get("difference")), None)
    over = f", ± is a 95 % interval over {len(lines[0]['seeds'])} seeds" if len(lines[0]["seeds"]) > 1 else ""
    said = f"test accuracy over clients, at the round chosen on validation{over}"
    said += f"; difference to {against}" if against else ""
    _print(console, f"{title}: {said}" if title else said, SCORES, [_scores(line) for line in lines])
    target = next((line["target"]["accuracy"] for line in lines if line.get("target")), None)
    costs = "cost of a run" + (f"; target: {target} on validation" if target else "")
    _print(console, costs, COSTS, [_costs(line) for line in lines if line["mean"] is not None])
    for line in lines:
        if line.get("chosen"):
            chosen = ", ".join(f"{name} = {value}" for name, value in line["chosen"].items())
            console.print(f"{line['method']}: {chosen}, best on validation of {line['trials']} settings", **PLAIN)
    for line in lines:
        if line["status"] == "failed":
            console.print(f"{line['method']} failed: {line['reason']}", **PLAIN)


PLAIN: dict[str, Any] = {"soft_wrap": True, "highlight": False, "markup": False}


def _print(console: Console, title: str, headings: Sequence[str], rows: Sequence[Mapping[str, str]]) -> None:
    shown = [name for name in headings if any(row.get(name) for row in rows)]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, padding=(0, 1))
    for name in shown:
        own = name == "method"
        table.add_column(name, justify="left" if own else "right", no_wrap=not own, overflow="fold")
    for row in rows:
        table.add_row(*(row.get(name, "") for name in shown))
    console.print(table)


def _scores(line: Mapping[str, Any]) -> dict[str, str]:
    if line["mean"] is None:
        return {"method": line["method"], "mean": "failed"}
    ahead, gap = line.get("beats_standalone"), line.get("difference")
    return {
        "method": line["method"],
        "mean": _interval(line["mean"], line["ci95"]),
        "difference": _interval(gap["mean"], gap["ci95"], "+") if gap else "",
        "std": f"{line['std']:.3f}",
        "decile": f"{line['worst_decile']:.3f}",
        "worst": f"{line['worst']:.3f}",
        "> alone": "" if ahead is None else percent(ahead),
    }


def _costs(line: Mapping[str, Any]) -> dict[str, str]:
    from ..telemetry.progress import human_bytes

    target = line.get("target")
    alpha = line["train"].get("alpha_mean")
    reached = "" if not target else "not reached" if target["bytes"] is None else human_bytes(target["bytes"])
    if target and 0 < target["reached"] < target["seeds"]:
        reached += f" ({target['reached']}/{target['seeds']})"
    return {
        "method": line["method"],
        "sent": human_bytes(line["bytes_up"]),
        "received": human_bytes(line["bytes_down"]),
        "to target": reached,
        "TFLOP": "" if line["flops"] is None else f"{line['flops'] / 1e12:.3g}",
        "seconds": f"{line['seconds']:.0f}",
        "memory": human_bytes(line["peak_memory_bytes"]),
        "alpha": "" if alpha is None else f"{alpha:.3f}",
    }


def _interval(value: float, half: float | None, sign: str = "") -> str:
    return f"{value:{sign}.3f}" + ("" if half is None else f" ±{half:.3f}")
