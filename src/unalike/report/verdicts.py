"""Where a reference stands among the other methods, in sentences: in one comparison, and over a grid of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from .alone import BASELINES
from .paired import Gap, best_other, gap, named, ranked, reference_name
from .records import Compared, Grid, Method
from .story import ONE_SEED, SAME, mean_of
from .units import counted, listing, points, signed

HARDEST = (
    "The best of the others is the one with the highest test mean, picked after the fact: that is hardest on {}. "
    "Intervals are Student’s over seeds, paired by seed, and not corrected for how many methods there are."
)


def comparison(methods: Sequence[Method], rivals: Sequence[str] = ()) -> list[str]:
    """At most four sentences on a comparison with a reference, judged against `rivals` where some are named."""
    name = reference_name(methods) or ""
    reference = named(methods, name)
    told = [verdict(methods, name, rivals)]
    if reference and not reference.failed:
        others = [m for m in ranked(methods) if m is not reference]
        told += [_tally(reference, others), _alone(reference, others)]
    failed = [m.method for m in methods if m.failed and m.method != name]
    return [sentence for sentence in told if sentence] + ([f"{listing(failed)} failed."] if failed else [])


def verdict(methods: Sequence[Method], name: str, rivals: Sequence[str] = ()) -> str:
    """One sentence: the reference `name` against the best of the others, and who outside of `rivals` is above it."""
    reference = named(methods, name)
    if reference is None or reference.failed:
        reason = f": {reference.reason.rstrip('.')}" if reference and reference.reason else ""
        return f"{name} {'failed' if reference else 'was not run'}{reason}."
    best = best_other(methods, name, rivals)
    if best is None:
        return f"No {'rival' if rivals else 'other method'} finished beside {name}."
    title = "best of the rivals" if rivals else "best of the others"
    return f"{against(gap(reference, best), title)}{_above(reference, methods, rivals)}."


def against(found: Gap, title: str) -> str:
    """pfedafm is 2.3 points above fedapen, the best of the others (95 % interval 0.4 to 4.1 over 3 seeds)"""
    told = f"{found.reference} is {_placed(found)} {found.other}, the {title}"
    if found.half is None:
        return f"{told}{' (one seed)' if found.seeds == 1 else ''}"
    return f"{told}{'' if found.settled else ', but that is not settled'} ({bounds(found)})"


def bounds(found: Gap) -> str:
    """95 % interval 0.4 to 4.1 over 3 seeds; of the distance as it is told, above or below"""
    half, mean = found.half or 0, abs(found.mean) if abs(found.mean) >= SAME else found.mean
    low, high = (signed(bound).lstrip("+") for bound in (mean - half, mean + half))
    return f"95 % interval {low} to {high} over {counted(found.seeds, 'seed')}"


def grid(found: Grid, reference: str | None) -> list[str]:
    """At most four sentences: in how many regimes the reference is above and below, its extremes, what is missing."""
    ended = [row for row in found.rows if row.regime.status == "done"]
    left = [row.regime.name for row in found.rows if row.regime.status != "done"]
    rest = [f"Not finished: {listing(left)}."] if left else []
    if reference is None:
        return _leaders(ended) + rest
    gaps = [(row.regime.name, gap) for row in ended if (gap := gap_of(row, reference, found.about.rivals))]
    without = [row.regime.name for row in ended if not gap_of(row, reference, found.about.rivals)]
    rest += [f"Nothing to compare in {listing(without)}."] if without else []
    if not gaps:
        return [f"{reference} has been set against no other method yet.", *rest]
    title = "the best of the rivals" if found.about.rivals else "the best of the others"
    above, below, unsettled = _counts([gap for _, gap in gaps])
    told = f"{reference} is above {title} in {above} of {counted(len(gaps), 'regime')}, below in {below}{unsettled}."
    low, least = min(gaps, key=lambda pair: pair[1].mean)
    high, most = max(gaps, key=lambda pair: pair[1].mean)
    worst = f", and worst in {low}, {_distance(least)}" if len(gaps) > 1 else ""
    return [told, f"It stands best in {high}, {_distance(most)}{worst}.", *rest]


def gap_of(row: Compared, reference: str, rivals: Sequence[str]) -> Gap | None:
    """The reference against the best of the others; None where one of the two is missing."""
    ours, theirs = named(row.methods, reference), best_other(row.methods, reference, rivals)
    return gap(ours, theirs) if ours and theirs and not ours.failed else None


def lead(methods: Sequence[Method]) -> str:
    """Where there is no reference: who has the highest mean."""
    first = next(iter(ranked(methods)), None)
    return f"{first.method} has the highest mean accuracy, {mean_of(first)}" if first else "no method finished"


def _leaders(rows: Sequence[Compared]) -> list[str]:
    """In how many regimes each method has the highest mean."""
    first = Counter(ranked(row.methods)[0].method for row in rows if ranked(row.methods))
    told = listing([f"{name} in {counted(n, 'regime')}" for name, n in first.most_common()])
    return [f"The highest mean accuracy has {told}."] if told else ["No method has finished yet."]


def _tally(reference: Method, others: Sequence[Method]) -> str:
    """How many of the others it is above and below, as far as there are intervals."""
    told, gaps = f"Its mean accuracy is {mean_of(reference)}", [gap(reference, m) for m in others]
    if gaps and all(g.half is None for g in gaps):
        return f"{told}. {ONE_SEED}"
    if len(gaps) < 2:
        return f"{told}."
    above, below, unsettled = _counts(gaps)
    return f"{told}; of the {len(others)} others it is above {above} and below {below}{unsettled}."


def _alone(reference: Method, others: Sequence[Method]) -> str:
    """Whether it beat each client alone, where the verdict has not said so."""
    alone = next((m for m in others[1:] if m.method in BASELINES), None)
    if alone is None:
        return ""
    found = gap(reference, alone)
    return f"It is {_placed(found)} {alone.method}{f' ({bounds(found)})' if found.half is not None else ''}."


def _counts(gaps: Sequence[Gap]) -> tuple[int | str, int | str, str]:
    """How many are above 0 and below 0, and what is to be said of those whose interval has 0 in it."""
    above = sum(g.settled and g.mean > 0 for g in gaps)
    below = sum(g.settled and g.mean < 0 for g in gaps)
    rest = len(gaps) - above - below
    return above or "none", below or "none", f"; {rest} {'is' if rest == 1 else 'are'} not settled" if rest else ""


def _placed(found: Gap) -> str:
    if abs(found.mean) < SAME:
        return "level with"
    return f"{points(found.mean)} {'above' if found.mean > 0 else 'below'}"


def _distance(found: Gap) -> str:
    return f"{_placed(found)} {found.other}{'' if found.settled else ' (not settled)'}"


def _above(reference: Method, methods: Sequence[Method], rivals: Sequence[str]) -> str:
    """Of the methods outside of `rivals`, those above the reference."""
    outside = [m for m in ranked(methods) if m.method not in (*rivals, reference.method)] if rivals else []
    higher = [found for m in outside if (found := gap(reference, m)).mean <= -SAME]
    if not higher:
        return ""
    who = (f"{g.other} by {points(g.mean)}{f' ({bounds(g)})' if g.half is not None else ''}" for g in higher)
    return f"; above it, though no rival: {listing(list(who))}"
