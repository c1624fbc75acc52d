"""The course of a run under memory budgets: its phases and what ended them, memory by round, who took part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..phases import ENDS, KINDS
from ..telemetry.progress import human_bytes
from .axes import MANY, Curve, by_round, name_clients, xy
from .html import Html, figure, legend, prose, section, table
from .records import Client, Event, Run
from .svg import HUES, NARROW, WIDE, Picture, colour, inline
from .units import UNKNOWN, counted, fraction, listing

SHADES = {"shrink": ("rule", 0.45), "map": ("c5", 0.28), "grow": ("rule", 0.0)}
"""What lies behind the rounds of a phase: role and opacity."""
ENDED = {"rule": "rule", "limit": "limit of rounds"}


@dataclass(frozen=True)
class Stretch:
    """The rounds of a phase, as far as they went."""

    kind: str
    step: int
    rounds: list[Event]

    def __str__(self) -> str:
        return f"{self.kind} {self.step}"

    @property
    def first(self) -> int:
        return self.rounds[0].round

    @property
    def last(self) -> int:
        return self.rounds[-1].round

    @property
    def ended(self) -> str:
        """One of `phases.ENDS`."""
        place = self.rounds[-1].metrics.server.get("ended", 0)
        return ENDS[int(place)] if place in range(len(ENDS)) else ""

    @property
    def limit(self) -> int | None:
        """Rounds that it might have had."""
        told = self.rounds[-1].metrics.server.get("limit")
        return None if told is None else int(told)

    def curve(self, name: str) -> Curve:
        """What the server told by this name, by round."""
        return {e.round: e.metrics.server[name] for e in self.rounds if name in e.metrics.server}


def stretches(rounds: Sequence[Event]) -> list[Stretch]:
    """The phases in order; none where the method told of none."""
    found: list[Stretch] = []
    for event in rounds:
        told = event.metrics.server
        stage, step = told.get("stage", -1), told.get("step", 0)
        if stage not in range(len(KINDS)) or step < 1:
            return []
        begins = not found or (found[-1].kind, found[-1].step) != (KINDS[int(stage)], int(step))
        if begins:
            found.append(Stretch(KINDS[int(stage)], int(step), []))
        found[-1].rounds.append(event)
    return found


def phases(run: Run) -> Html:
    """Effective movement and mapping's loss by round, and the phases in numbers."""
    found = stretches(run.rounds)
    if not found:
        return Html("")
    drawing = Html("")
    if any(each.curve("movement") or each.curve("loss") for each in found):
        key = legend({"ended by the rule": "ink", "ended by the limit of rounds": "ink"}, "●○")
        caption = (
            "Effective movement of the block in training: of the way its weights have gone in the last rounds, the "
            "share that led somewhere; it begins anew with each phase. The number is the block’s. Grey: shrinking, "
            "orange: mapping, plain: growing."
        )
        if any(each.kind == "map" for each in found):
            caption += " A mapping is judged by its loss, which is drawn below."
        drawing = Html(key + figure(inline(movement(found), "movement"), caption))
    return section("What was trained when", prose(_ends(found)), drawing, table("Phases", list(map(_row, found))))


def _ends(found: Sequence[Stretch]) -> str:
    """How many phases ended by what."""
    ended = [each.ended for each in found]
    told = [f"the {what} ended {ended.count(end)}" for end, what in ENDED.items() if end in ended]
    going = "" if ended[-1] else f"{'; ' if told else ''}{found[-1]} had not ended"
    return f"Of {counted(len(found), 'phase')} {listing(told)}{going}."


def _row(each: Stretch) -> dict[str, str]:
    moved, lost = each.curve("movement"), each.curve("loss")
    return {
        "phase": str(each),
        "rounds": f"{each.first} to {each.last}" if each.last > each.first else str(each.first),
        "number": str(len(each.rounds)),
        "at most": "" if each.limit is None else str(each.limit),
        "ended by": ENDED.get(each.ended, UNKNOWN),
        "movement": fraction(moved[max(moved)]) if moved else "",
        "loss": f"{lost[max(lost)]:.3g}" if lost else "",
        "clients": str(len({i for e in each.rounds for i in e.clients}) or ""),
    }


def movement(found: Sequence[Stretch]) -> Picture:
    """Effective movement of each block by round, freeze points at the top; below, if there is one, mapping's loss."""
    lost = [each for each in found if each.kind == "map" and each.curve("loss")]

    def draw(figure: Figure, wide: bool) -> None:
        ratios = [2.2, 1] if lost else [1]
        panels = list(figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios).flat)
        room = (WIDE - 60 if wide else NARROW - 50) / (found[-1].last - found[0].first + 1)
        for axes in panels:
            _shade(axes, found)
            axes.grid(axis="y")
        for each in found:
            _moved(panels[0], each, room * len(each.rounds))
        panels[0].set(ylim=(0, 1.2), yticks=[0, 0.5, 1], title="effective movement")
        panels[0].set_xlim(found[0].first - 0.5, found[-1].last + 0.5)
        for each in lost:
            panels[1].plot(*xy(each.curve("loss")), color=_hue(each), marker="o", ms=4)
        if lost:
            panels[1].set(title="mapping’s loss")
            panels[1].yaxis.set_major_locator(MaxNLocator(3))
            panels[1].set_ylim(bottom=0)
        by_round(panels[-1])

    ends = [f"{each} in round {each.last} by the {ENDED[each.ended]}" for each in found if each.ended]
    told = f" Ended: {'; '.join(ends)}." if ends else ""
    alt = f"Effective movement over rounds in {counted(len(found), 'phase')}.{told}"
    return Picture(alt, draw, 400 if lost else 280, 380 if lost else 260)


def _moved(axes: Axes, each: Stretch, pixels: float) -> None:
    """A block's curve, the point where it was frozen, and its number where there is room for it."""
    curve, ink = each.curve("movement"), _hue(each)
    if curve:
        axes.plot(*xy(curve), color=ink, marker="." if len(curve) == 1 else "", ms=6)
    if each.kind == "map":
        return
    if each.ended:
        axes.vlines(each.last, 0, 1.04, color=ink, lw=0.8, ls=(0, (1, 2)))
        full = each.ended == "rule"
        axes.plot([each.last], [1.04], "o", mfc=ink if full else colour("paper"), mec=ink, mew=1.3, ms=5.5)
    name = f"block {each.step}" if pixels > 46 else str(each.step) if pixels > 8 else ""
    axes.text((each.first + each.last) / 2, 1.14, name, ha="center", va="center", color=ink, fontsize=11)


def _shade(axes: Axes, found: Sequence[Stretch]) -> None:
    for each in found:
        role, alpha = SHADES[each.kind]
        axes.axvspan(each.first - 0.5, each.last + 0.5, color=colour(role), alpha=alpha, lw=0)


def _hue(each: Stretch) -> str:
    return colour(HUES[(each.step - 1) % len(HUES)])


def memory(run: Run) -> Html:
    """The largest share of a budget by round, and what each phase took against the fleet."""
    known = [event for event in run.rounds if event.memory]
    if not known:
        return Html("")
    caption = (
        "The largest share of its budget that a client’s tensors took in each round. The line is the whole budget."
    )
    parts = [prose(_counted(known)), figure(inline(shares(known), "shares"), caption)]
    budgets = _budgets(run.partition.clients)
    found = [each for each in stretches(run.rounds) if _most(each)]
    if budgets and found:
        caption = "The most that a client’s tensors took in each phase. Strokes: the clients’ budgets."
        parts.append(figure(inline(fleet(found, list(budgets.values())), "fleet"), caption))
    return section("Memory within the budgets", *parts)


def _counted(known: Sequence[Event]) -> str:
    found = [event.memory for event in known if event.memory]
    visits, scored, over = (sum(getattr(m, name) for m in found) for name in ("visits", "evaluations", "over"))
    most = max(found, key=lambda m: m.largest_share)
    when = next(event.round for event in known if event.memory is most)
    exceeded = f"{counted(over, 'time')} one took more than it has" if over else "none took more than it has"
    return (
        f"Clients with budgets were counted in {counted(visits, 'visit')} and {counted(scored, 'evaluation')}: "
        f"{exceeded}. The largest share of a budget was {fraction(most.largest_share)}, in round {when}."
    )


def shares(known: Sequence[Event]) -> Picture:
    """The largest share of a budget by round; where it is above 1, marked."""
    curve = {event.round: event.memory.largest_share for event in known if event.memory}
    over = {r: share for r, share in curve.items() if share > 1}

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        axes.fill_between(*xy(curve), step="mid", color=colour("c0"), alpha=0.16, lw=0)
        axes.step(*xy(curve), where="mid", color=colour("c0"), marker="o" if len(curve) == 1 else "")
        axes.plot(*xy(over), "o", color=colour("c1"), ms=5)
        axes.axhline(1, color=colour("ink"), lw=1)
        axes.set_ylim(0, 1.08 * max(1.0, *curve.values()))
        axes.grid(axis="y")
        by_round(axes)

    alt = f"Largest share of a budget by round, from {fraction(min(curve.values()))} to {fraction(max(curve.values()))}"
    return Picture(f"{alt}; above 1 in {counted(len(over), 'round')}.", draw, 210, 200)


def fleet(found: Sequence[Stretch], budgets: Sequence[int]) -> Picture:
    """A bar for the most that a client took in each phase, and below a stroke for each budget."""
    bars = {str(each): (_most(each), each) for each in found}

    def draw(figure: Figure, wide: bool) -> None:
        axes = figure.subplots()
        size, unit = (2**30, "GiB") if max(budgets) > 8 * 2**30 else (2**20, "MiB")
        for place, (took, each) in enumerate(bars.values()):
            axes.barh(place, took / size, height=0.62, color=_hue(each), alpha=0.8, lw=0)
        axes.vlines(
            [b / size for b in budgets], len(bars) - 0.35, len(bars) + 0.35, color=colour("ink"), lw=1, alpha=0.5
        )
        axes.set_yticks(range(len(bars) + 1), [*bars, counted(len(budgets), "budget")])
        axes.set(ylim=(len(bars) + 0.6, -0.6), xlim=(0, None))
        axes.xaxis.set_major_locator(MaxNLocator(6 if wide else 4))
        axes.set_xlabel(f"training memory of a client, {unit}")
        axes.grid(axis="x")

    told = "; ".join(f"{name} {human_bytes(took)}" for name, (took, _) in bars.items())
    height = 70 + 24 * (len(bars) + 1)
    return Picture(f"The most that a client took in each phase: {told}.", draw, height, height)


def _most(each: Stretch) -> float:
    return max((event.memory.largest_bytes for event in each.rounds if event.memory), default=0)


def _budgets(clients: Sequence[Client]) -> dict[int, int]:
    """Client to budget in bytes, those that have one."""
    return {client.id: client.memory for client in clients if client.memory is not None}


def took_part(run: Run) -> Html:
    """Where clients have budgets: in how many rounds each took part, by budget, and in which phases."""
    if not _budgets(run.partition.clients) or not any(event.clients for event in run.rounds):
        return Html("")
    clients, visits = _ascending(run.partition.clients), visited(run.rounds)
    caption = "Rounds that each client took part in, from the smallest budget to the largest."
    if stretches(run.rounds):
        caption += " Below, for each phase, the share of its rounds: stronger colour is more, plain is none."
    drawing = inline(participation(run), "participation")
    return section("Who took part", prose(_absent(clients, visits, run)), figure(drawing, caption))


def visited(rounds: Sequence[Event]) -> dict[int, int]:
    """Client to the number of rounds that it took part in."""
    found: dict[int, int] = {}
    for event in rounds:
        for client in event.clients:
            found[client] = found.get(client, 0) + 1
    return found


def about(run: Run, client: Client) -> dict[str, str]:
    """The columns of a client under a budget: how large it is, and in how many rounds and which phases it was."""
    if not _budgets(run.partition.clients):
        return {}
    there = [str(s) for s in stretches(run.rounds) if any(client.id in e.clients for e in s.rounds)]
    return {
        "budget": _size(client),
        "rounds": str(visited(run.rounds).get(client.id, 0)),
        "phases": ", ".join(there),
    }


def _absent(clients: Sequence[Client], visits: Mapping[int, int], run: Run) -> str:
    """Who never took part, by name and budget; how many took part, and how many in each phase."""
    never = [client for client in clients if not visits.get(client.id)]
    told = f"Of {counted(len(clients), 'client')} {len(clients) - len(never)} took part"
    if found := stretches(run.rounds):
        there = [{i for event in each.rounds for i in event.clients} for each in found]
        told += f", {sum(all(c.id in here for here in there) for c in clients)} of them in every phase"
    if not never:
        return f"{told}."
    names = [str(client.id) for client in sorted(never, key=lambda client: client.id)]
    who = listing(names[:MANY] + ([f"{len(names) - MANY} more"] if len(names) > MANY else []))
    low, high = _size(never[0]), _size(never[-1])
    size = f"a budget of {low}" if len(never) == 1 else f"budgets of {low} to {high}" if low != high else f"{low} each"
    return f"{told}. Client{'s' if len(names) > 1 else ''} {who} never took part ({size})."


def participation(run: Run) -> Picture:
    """A bar for each client's rounds, by ascending budget; below, clients by phases, the share of its rounds."""
    clients, visits, found = _ascending(run.partition.clients), visited(run.rounds), stretches(run.rounds)
    tally = [visited(each.rounds) for each in found]
    cells = [
        [(0.0, 0.447, 0.698, 0.8 * here.get(c.id, 0) / len(each.rounds)) for c in clients]
        for each, here in zip(found, tally, strict=True)
    ]

    def draw(figure: Figure, wide: bool) -> None:
        ratios = [90.0, 18.0 * len(found)] if found else [1.0]
        panels = list(figure.subplots(len(ratios), 1, squeeze=False, sharex=True, height_ratios=ratios).flat)
        panels[0].bar(range(len(clients)), [visits.get(c.id, 0) for c in clients], 0.8, color=colour("c0"), alpha=0.8)
        panels[0].set_title("rounds")
        panels[0].yaxis.set_major_locator(MaxNLocator(4, integer=True))
        panels[0].grid(axis="y")
        if found:
            panels[1].imshow(cells, aspect="auto", interpolation="none")
            panels[1].hlines(
                [y - 0.5 for y in range(1, len(found))], -0.5, len(clients) - 0.5, color=colour("paper"), lw=1
            )
            panels[1].set_yticks(range(len(found)), list(map(str, found)))
        name_clients(panels[-1], [client.id for client in clients])
        low, high = _size(clients[0]), _size(clients[-1])
        panels[-1].set_xlabel(f"client, from {low} to {high}")

    told = [visits.get(client.id, 0) for client in clients]
    alt = f"Rounds that each of {len(clients)} clients took part in: {min(told)} to {max(told)}, by ascending budget."
    height = 170 + 20 * len(found)
    return Picture(alt, draw, height, height)


def _ascending(clients: Sequence[Client]) -> list[Client]:
    """By budget; those without one are last."""
    return sorted(clients, key=lambda c: (float("inf") if c.memory is None else c.memory, c.id))


def _size(client: Client) -> str:
    return "any size" if client.memory is None else human_bytes(client.memory)
