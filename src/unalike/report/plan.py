"""A plan shown: sentences, a table of stages on a terminal of 80 columns, and a picture of needs against budgets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from ..telemetry.progress import human_bytes
from .console import PLAIN
from .svg import Picture, alone, colour
from .units import UNKNOWN, counted, listing, percent, scaled


def show(plans: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print each plan: what it comes to in words, then its stages; several are set side by side at the end."""
    console = console or Console(markup=False, emoji=False)
    for told in plans:
        for sentence in sentences(told):
            console.print(sentence, **{**PLAIN, "soft_wrap": False})
        _print(console, [_stage(stage) for stage in told["stages"]])
    if len(plans) > 1:
        _print(console, [_whole(told) for told in plans])


def _print(console: Console, rows: Sequence[Mapping[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 1))
    shown = [name for name in rows[0] if any(row[name] not in ("", UNKNOWN) for row in rows)]
    for place, name in enumerate(shown):
        first = place == 0
        table.add_column(name, justify="left" if first else "right", no_wrap=not first, overflow="fold")
    for row in rows:
        table.add_row(*(row[name] for name in shown))
    console.print(table)


def _stage(stage: Mapping[str, Any]) -> dict[str, str]:
    return {
        "stage": stage["name"],
        "needs\nMiB": _mib(stage["need_bytes"]),
        "held\nby": percent(stage["eligible"]),
        "clients\na round": f"{stage['clients_a_round']:.3g}",
        "down\nMiB": _mib(stage["bytes_down"]),
        "up\nMiB": _mib(stage["bytes_up"]),
        "once\nMiB": _mib(stage["bytes_once"]) if stage["bytes_once"] else "",
        "GFLOP\na visit": f"{stage['flops_a_visit'] / 1e9:,.0f}",
    }


def _whole(told: Mapping[str, Any]) -> dict[str, str]:
    total = told["total"] or {}
    return {
        "method": told["method"],
        "needs\nMiB": _mib(told["need_for_any_bytes"]),
        "for all\nMiB": _mib(told["need_for_all_bytes"]),
        "take\npart": percent(told["takes_part"]),
        "in\nall": percent(told["takes_part_always"]),
        "down\nGiB": f"{total['bytes_down'] / 2**30:.1f}" if total else UNKNOWN,
        "up\nGiB": f"{total['bytes_up'] / 2**30:.1f}" if total else UNKNOWN,
        "\nTFLOP": f"{total['flops'] / 1e12:,.0f}" if total else UNKNOWN,
    }


def _mib(bytes: float) -> str:
    return f"{bytes / 2**20:.1f}"


def sentences(told: Mapping[str, Any]) -> list[str]:
    """Who takes part, and in what, in words."""
    least, most, full = (told[f"{name}_bytes"] for name in ("need_for_any", "need_for_all", "full_need"))
    start = (
        f"To take part in something takes {human_bytes(least)}, in everything" if least < most else "To take part takes"
    )
    said = [
        f"{told['method']}: {told['model']} on {'x'.join(map(str, told['input']))}, batches of "
        f"{told['visits']['batch_size']} rows. The whole model needs {human_bytes(full)}. "
        f"{start} {human_bytes(most)} ({_less(most, full)})."
    ]
    if len(blocks := [step["units"] for step in told["steps"] if step["name"].startswith("step ")]) > 1:
        ends = [units[0] if len(units) == 1 else f"{units[0]} to {units[-1]}" for units in blocks]
        said.append(f"Blocks: {'; '.join(ends)}.")
    if total := told["total"]:
        up, down, operations = human_bytes(total["bytes_up"]), human_bytes(total["bytes_down"]), total["flops"]
        said.append(
            f"{counted(told['visits']['rounds'], 'round')} at most, with {told['visits']['rows']:.0f} training rows a "
            f"client, send {up} and receive {down}, and take {scaled(operations, 'FLOP')}."
        )
    n = len(told["clients"])
    if not n:
        return said
    some, always, hold = (round(told[k] * n) for k in ("takes_part", "takes_part_always", "full_eligible"))
    everything = f", {always} in everything" if least < most else ""
    said.append(f"Of {counted(n, 'client')} {some} take part{everything}; {hold} could train the whole model.")
    if told["nobody_can"]:
        cut = ", or cut the chain into other blocks" if any(step["units"] for step in told["steps"]) else ""
        remedy = f"take smaller batches or a narrower model{cut}"
        said.append(f"Nobody can {listing(told['nobody_can'])}, so this cannot be run: {remedy}.")
    return said + _groups(told["clients"], len({stage["turn"] for stage in told["stages"]}))


def _groups(clients: Sequence[Mapping[str, Any]], turns: int) -> list[str]:
    """A line for each set of stages that clients do, those with least memory first."""
    groups: dict[tuple[str, ...], list[int | None]] = {}
    for client in sorted(clients, key=lambda c: float("inf") if c["memory_bytes"] is None else c["memory_bytes"]):
        groups.setdefault(tuple(client["stages"]), []).append(client["memory_bytes"])
    return [
        f"{counted(len(budgets), 'client')} {_between(budgets)}: "
        + ("everything" if len(stages) == turns > 1 else ", ".join(stages) or "nothing")
        for stages, budgets in groups.items()
    ]


def _between(budgets: Sequence[int | None]) -> str:
    """of 1.0 GiB, or of 1.0 to 2.0 GiB; `budgets` rise, and those without one are last."""
    first, last = (f"{human_bytes(m)}" if m is not None else "any size" for m in (budgets[0], budgets[-1]))
    return f"of {first}" if first == last else f"of {first} to {last}"


def _less(need: int, full: int) -> str:
    return f"{100 * (need / full - 1):+.0f} %".replace("-", "−")


def drawn(plans: Sequence[Mapping[str, Any]]) -> str:
    """The picture as an SVG file of its own, in the colours of the reader's theme."""
    return alone(picture(plans), "plan")


def picture(plans: Sequence[Mapping[str, Any]]) -> Picture:
    """A bar for the need of each step of each plan, the whole model's need, and below a stroke for each budget."""
    bars = [
        (step["name"] if len(plans) == 1 else f"{told['method']}, {step['name']}", step, hue)
        for hue, told in enumerate(plans)
        for step in told["steps"]
    ]
    bars.insert(
        0, ("whole model", {"need_bytes": plans[0]["full_need_bytes"], "eligible": plans[0]["full_eligible"]}, 6)
    )
    budgets = [c["memory_bytes"] for c in plans[0]["clients"] if c["memory_bytes"] is not None]

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        most = max([step["need_bytes"] for _, step, _ in bars] + budgets)
        unit, name = (2**30, "GiB") if most > 8 * 2**30 else (2**20, "MiB")
        for place, (_, step, hue) in enumerate(bars):
            need = step["need_bytes"]
            axes.barh(place, need / unit, height=0.62, color=colour(f"c{hue % 7}"), alpha=0.8, lw=0)
            share = "" if step["eligible"] is None else f", held by {percent(step['eligible'])}"
            side, gap = ("right", -0.01) if need > 0.55 * most else ("left", 0.01)
            axes.text((need + gap * most) / unit, place, f"{human_bytes(need)}{share}", va="center", ha=side)
        names = [name for name, _, _ in bars]
        if budgets:
            rug = [memory / unit for memory in budgets]
            axes.vlines(rug, len(bars) - 0.3, len(bars) + 0.3, color=colour("ink"), lw=1, alpha=0.5)
            names.append(counted(len(budgets), "budget"))
        axes.set_yticks(range(len(names)), names)
        axes.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 1.04 * most / unit))
        axes.set_xlabel(f"training memory of a client, {name}")
        axes.grid(axis="x")

    needs = "; ".join(f"{name} {human_bytes(step['need_bytes'])}" for name, step, _ in bars)
    return Picture(f"Memory that a client needs: {needs}.", draw, *(70 + 30 * (len(bars) + bool(budgets)),) * 2)
