"""From a run's events to the figures that are reported: chosen on validation, reported on test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .telemetry.events import total

METRICS = ("accuracy", "balanced_accuracy")


def over_clients(per_client: Mapping[str, float], rows: Mapping[str, float]) -> dict[str, Any]:
    """A score's statistics over N clients.

    Mean, mean weighted by `rows`, population standard deviation, worst and best, means of the lowest and of the highest
    ceil(N / 10), and Jain's index of fairness (Σx)² / (N Σx²), which is 1 if all are equal.
    """
    values = sorted(per_client.values())
    n, total_rows = len(values), sum(rows[client] for client in per_client)
    mean, squares = sum(values) / n, sum(v * v for v in values)
    tenth = math.ceil(n / 10)
    return {
        "mean": mean,
        "weighted_mean": sum(score * rows[client] for client, score in per_client.items()) / total_rows,
        "std": math.sqrt(sum((v - mean) ** 2 for v in values) / n),
        "worst": values[0],
        "worst_decile": sum(values[:tenth]) / tenth,
        "best": values[-1],
        "best_decile": sum(values[-tenth:]) / tenth,
        "jain": sum(values) ** 2 / (n * squares) if squares else 1.0,
        "per_client": dict(per_client),
    }


def scores_at(evaluation: Mapping[str, Mapping[str, Mapping[str, float]]], part: str) -> dict[str, Any]:
    """The client statistics of every metric on one part of the data."""
    clients = evaluation[part]
    metrics = [m for m in METRICS if all(m in scores for scores in clients.values())]
    rows = {client: scores.get("n", 1.0) for client, scores in clients.items()}
    return {m: over_clients({client: scores[m] for client, scores in clients.items()}, rows) for m in metrics}


def summarise(events: Iterable[Mapping[str, Any]], selected_round: int) -> dict[str, Any]:
    """Scores on test at `selected_round` and at the last round, and what the whole run cost."""
    rounds = [event for event in events if event["event"] == "round"]
    evaluated = {event["round"]: event["evaluation"] for event in rounds if "evaluation" in event}
    last = evaluated[max(evaluated)]
    chosen = evaluated[selected_round]
    train = next(event["metrics"]["train"] for event in rounds if event["round"] == selected_round)
    return {
        "rounds": len(rounds),
        **scores_at(chosen, "test"),
        "last": scores_at(last, "test"),
        "validation": scores_at(chosen, "validation"),
        "selected_round": selected_round,
        "train": train,
        "bytes": {way: sum(event[f"bytes_{way}"] for event in rounds) for way in ("up", "down")},
        "wire_bytes": {way: sum(event[f"wire_bytes_{way}"] for event in rounds) for way in ("up", "down")},
        "bytes_evaluation": sum(event.get("bytes_evaluation", 0) for event in rounds),
        "flops": total(event["flops"] for event in rounds),
        "seconds": sum(event["seconds"] for event in rounds),
        "peak_memory_bytes": max(event["peak_memory_bytes"] for event in rounds),
        **_within_budgets([event for event in rounds if "memory" in event]),
    }


def _within_budgets(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many clients took part, how often those with budgets were counted, and what they took at most."""
    if not rounds:
        return {}
    found, took_part = [event["memory"] for event in rounds], {c for event in rounds for c in event["clients"]}
    added = {name: sum(memory[name] for memory in found) for name in ("visits", "evaluations", "over")}
    most = {name: max(memory[name] for memory in found) for name in ("largest_share", "largest_bytes")}
    return {"memory": {**added, **most, "took_part": len(took_part)}}


def over_seeds(method: str, summaries: Sequence[Mapping[str, Any]], reason: str = "") -> dict[str, Any]:
    """One method's line of compare.json. `ci95` is the half-width of Student's interval over seeds, None for one."""
    if not summaries:
        return {"method": method, "status": "failed", "reason": reason} | dict.fromkeys(
            ("mean", "ci95", "std", "worst", "worst_decile", "bytes_up", "bytes_down", "flops", "seconds")
        )
    means = [s["accuracy"]["mean"] for s in summaries]
    statistics = [k for k in summaries[0]["accuracy"] if k not in ("mean", "per_client")]
    return {
        "method": method,
        "mean": average(means),
        "ci95": half_width(means),
        "means": means,
        **{k: average(s["accuracy"][k] for s in summaries) for k in statistics},
        "bytes_up": average(s["bytes"]["up"] for s in summaries),
        "bytes_down": average(s["bytes"]["down"] for s in summaries),
        "bytes_per_round": {way: average(s["bytes"][way] / s["rounds"] for s in summaries) for way in ("up", "down")},
        "flops": None if (flops := total(s["flops"] for s in summaries)) is None else flops / len(summaries),
        **{k: average(s[k] for s in summaries) for k in ("seconds", "peak_memory_bytes")},
        "train": {k: average(s["train"][k] for s in summaries) for k in summaries[0]["train"]},
        **_budgets_over_seeds([s["memory"] | {"clients": s["clients"]} for s in summaries if "memory" in s]),
        "status": "failed" if reason else "done",
        **({"reason": reason} if reason else {}),
    }


def _budgets_over_seeds(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Share of the clients that took part, mean over seeds; all counts of memory together; the largest share taken."""
    if not found:
        return {}
    counts = {name: sum(memory[name] for memory in found) for name in ("visits", "over")}
    took_part = average(memory["took_part"] / memory["clients"] for memory in found)
    return {"budgets": {"took_part": took_part, **counts, "largest_share": max(m["largest_share"] for m in found)}}


def difference(ours: Mapping[int, float], theirs: Mapping[int, float], to: str) -> dict[str, Any] | None:
    """Ours minus theirs, paired by the seeds both have, with the half-width of its 95 % interval; None without any."""
    gaps = [ours[seed] - theirs[seed] for seed in sorted(ours.keys() & theirs.keys())]
    return {"to": to, "mean": average(gaps), "ci95": half_width(gaps), "per_seed": gaps} if gaps else None


def share_ahead(ours: Mapping[str, float], theirs: Mapping[str, float]) -> float:
    """The share of clients whose score is higher with ours; both have the same clients."""
    return average(float(score > theirs[client]) for client, score in ours.items())


def until(events: Iterable[Mapping[str, Any]], accuracy: float) -> tuple[int, float] | None:
    """The first round whose mean validation accuracy reaches `accuracy`, and the bytes up and down until its end."""
    sent = 0.0
    for event in events:
        if event["event"] == "round":
            sent += event["bytes_up"] + event["bytes_down"]
            if event["metrics"].get("validation", {}).get("accuracy", -1.0) >= accuracy:
                return event["round"], sent
    return None


def average(values: Iterable[float]) -> float:
    """The mean of a few numbers."""
    found = list(values)
    return sum(found) / len(found)


def half_width(values: Sequence[float]) -> float | None:
    """Half of Student's 95 % interval of the mean; None for fewer than two values."""
    n = len(values)
    if n < 2:
        return None
    from scipy.stats import t

    mean = average(values)
    error = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)
    return float(t.ppf(0.975, n - 1)) * error
