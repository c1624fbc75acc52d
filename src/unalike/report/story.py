"""What the numbers say, in sentences. Did federating pay, and for whom?"""

from __future__ import annotations

import math
import shlex
from statistics import fmean, stdev

from .alone import BASELINES, alone_with
from .read import shared_clients
from .records import Method, Run
from .units import counted, fraction, interval, listing, points, signed

SAME = 5e-4
"""Accuracies nearer than this print alike, and count as equal."""

ONE_SEED = "With a single seed there is no interval: these differences may be chance."

SAME_CLIENTS = (
    *("data", "data_path", "label", "site_column", "group_column", "impute", "image_size", "clients", "partition"),
    *("split", "min_per_client", "shift", "unseen", "modalities"),
    *("models", "feature_width", "seed", "rounds", "fraction", "local_epochs", "batch_size"),
)
"""Keys of an experiment that decide who the clients are and what budget they have."""

NAMED = 6
"""Up to so many clients are named in a sentence."""


def gains(run: Run, other: Run) -> dict[int, float]:
    """Test accuracy minus the other's, for each client both have."""
    ours, theirs = run.summary.accuracy.per_client, other.summary.accuracy.per_client
    return {i: ours[i] - theirs[i] for i in shared_clients(run, other)}


def verdict(run: Run, other: Run | None) -> str:
    """The result in one sentence."""
    if run.summary.accuracy.mean is None:
        return "No test accuracy was recorded."
    if run.algorithm in BASELINES and other is None:
        return f"Each client alone: {_level(run)}. This is what federating has to beat."
    if other is None:
        told, unknown = (
            _level(run),
            f"Whether federating paid is not known: {_alone(run)} was not run on this partition.",
        )
        return f"{told[0].upper()}{told[1:]}. {unknown}"
    ours, theirs = run.summary.accuracy, other.summary.accuracy
    rival = "alone" if other.algorithm in BASELINES else f"with {other.algorithm}"
    return (
        f"{_judgement(run, other)}: mean accuracy {fraction(ours.mean)} against {fraction(theirs.mean)} {rival}; "
        f"{_for_whom(gains(run, other))}; the worst client’s accuracy "
        f"{_moved(theirs.worst or 0, ours.worst or 0)}."
    )


def caution(run: Run, other: Run | None) -> str:
    """How far to trust the difference: the standard error of the paired differences over the clients."""
    differences = list(gains(run, other).values()) if other else []
    if len(differences) < 2:
        return ""
    mean, error = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    doubt = ": within twice its error, so it may be chance" if abs(mean) <= 2 * error else ""
    return (
        f"The mean difference is {signed(mean)} ± {error * 100:.1f} points (standard error over "
        f"{len(differences)} clients, one seed){doubt}."
    )


def remedy(run: Run) -> str:
    """The command that would tell whether federating paid."""
    given = [
        f"--{name.replace('_', '-')} {shlex.quote(_option(run.experiment[name]))}"
        for name in SAME_CLIENTS
        if run.experiment.get(name) not in (None, [], {}) and (name, run.experiment[name]) != ("unseen", 0)
    ]
    return (
        f"This, run beside it and followed by a new report, would tell: `unalike run {_alone(run)} {' '.join(given)}`"
    )


def _alone(run: Run) -> str:
    return alone_with(run.experiment.get("models") or [])


def _option(value: object) -> str:
    """A value of an experiment file as the command line takes it: shares as percentages, lists with commas."""
    if isinstance(value, list) and isinstance(value[0], float):
        return "/".join(f"{100 * share:g}" for share in value)
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _level(run: Run) -> str:
    scores = run.summary.accuracy
    low = [i for i, value in scores.per_client.items() if value == scores.worst]
    who = f" (client {low[0]})" if len(low) == 1 else ""
    over = f" over {counted(len(scores.per_client), 'client')}" if scores.per_client else ""
    return f"mean test accuracy is {fraction(scores.mean)}{over}, the worst client’s {fraction(scores.worst)}{who}"


def _judgement(run: Run, other: Run) -> str:
    won = list(gains(run, other).values())
    mean = fmean(won)
    worst = (run.summary.accuracy.worst or 0) - (other.summary.accuracy.worst or 0)
    fair = worst > -SAME and sum(g > SAME for g in won) >= sum(g < -SAME for g in won)
    paid, not_paid = ("Federating paid", "Federating did not pay")
    if other.algorithm not in BASELINES:
        paid, not_paid = f"{run.algorithm} is ahead", f"{run.algorithm} is behind"
    if abs(mean) < SAME:
        return not_paid if other.algorithm in BASELINES else f"{run.algorithm} is level"
    if mean > 0:
        return paid if fair else f"{paid} on the mean only"
    return f"{not_paid} on the mean, though it lifted the worst client" if worst > SAME else not_paid


def _for_whom(won: dict[int, float]) -> str:
    winners, losers = [i for i in won if won[i] > SAME], [i for i in won if won[i] < -SAME]
    if len(winners) == len(won):
        return f"all {counted(len(won), 'client')} gained" if len(won) > 1 else "its one client gained"
    told = f"{len(winners) or 'none'} of {counted(len(won), 'client')} gained"
    if not losers:
        return f"{told}, none lost"
    who = f"clients {listing(losers)}" if len(losers) > 1 else f"client {losers[0]}"
    most = points(min(won.values()))
    if len(losers) > NAMED:
        return f"{told}, {len(losers)} lost (by at most {most})"
    return f"{told}, {who} lost ({'by at most ' if len(losers) > 1 else ''}{most})"


def _moved(before: float, after: float) -> str:
    if abs(after - before) < SAME:
        return f"stayed at {fraction(after)}"
    return f"{'rose' if after > before else 'fell'} from {fraction(before)} to {fraction(after)}"


def comparison(methods: list[Method]) -> list[str]:
    """Which method is best, by how much, and whether that is settled. The first sentence is the result."""
    done = sorted((m for m in methods if not m.failed), key=lambda m: -(m.mean or 0))
    failures = [f"{m.method} failed{': ' + m.reason.rstrip('.') if m.reason else ''}." for m in methods if m.failed]
    if not done:
        return ["No method finished.", *failures]
    best, others = done[0], done[1:]
    told = (
        [f"{_best(best)}{_fairest(best, done)}."]
        if others
        else [f"Only {best.method} finished: mean accuracy {mean_of(best)}."]
    )
    alone = next((m for m in others if m.method in BASELINES), None)
    if best.method in BASELINES and others:
        told += [f"No federated method beat {best.method}. The nearest: {_behind(best, others[0])}."]
    elif alone:
        told += [f"Federating paid on the mean: {_behind(best, alone)}."]
    elif best.method not in BASELINES:
        told += ["Whether federating pays is not known: no method that trains each client alone did finish."]
    if others and best.method not in BASELINES and others[0] is not alone:
        told += [f"The next best: {_behind(best, others[0])}."]
    if others and any(m.ci95 is None for m in done):
        told += [ONE_SEED]
    return told + failures


def _best(best: Method) -> str:
    return f"{best.method} has the highest mean accuracy, {mean_of(best)}"


def mean_of(method: Method) -> str:
    seeds = f" (95 % interval over {len(method.seeds)} seeds)" if method.ci95 is not None and method.seeds else ""
    return f"{interval(method.mean, method.ci95)}{seeds}"


def _fairest(best: Method, done: list[Method]) -> str:
    known = [m for m in done if m.worst is not None]
    if not known:
        return ""
    fairest = max(known, key=lambda m: m.worst or 0)
    if fairest is best:
        return f", and the best worst client, {fraction(best.worst)}"
    return f"; the best worst client is {fairest.method}’s, {fraction(fairest.worst)} against {fraction(best.worst)}"


def _behind(best: Method, other: Method) -> str:
    """other (0.821 ± 0.012) is 6.6 points behind; the intervals ..."""
    gap = (best.mean or 0) - (other.mean or 0)
    told = f"{other.method} ({interval(other.mean, other.ci95)}) is {points(gap)} behind"
    if best.ci95 is None or other.ci95 is None:
        return told
    if gap <= best.ci95 + other.ci95:
        return f"{told}, but the intervals overlap: the order is not settled"
    return f"{told} and the intervals do not overlap"
