"""From a run's events to the figures that are reported: chosen on validation, reported on test."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .telemetry.events import total

METRICS = ("accuracy", "balanced_accuracy", "rouge1")


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


def pooled_at(event: Mapping[str, Any], part: str) -> dict[str, Any]:
    """As "pooled" the scores over all clients' rows together, recall by class; nothing where they were not counted."""
    found = event["metrics"].get("pooled", {}).get(part)
    if not found:
        return {}
    recall = {str(c): value for c, value in enumerate(found.get("recall", ())) if value is not None}
    return {"pooled": {k: v for k, v in found.items() if k != "recall"} | ({"recall": recall} if recall else {})}


def forgetting(rounds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As "forgetting" that of the measured rounds of a run's second half; nothing where it was not measured.

    A round counts by the mean over the clients that trained in it, all rounds equally. "mean" and "per_client" are on
    test, "validation" is the mean on validation; "by_round" has all measured rounds, also those of the first half.
    """
    measured = {event["round"]: event["forgetting"] for event in rounds if event.get("forgetting")}
    late = [r for r in measured if 2 * r > len(rounds)]
    if not late:
        return {}
    by_round = {part: {r: average(f[part].values()) for r, f in measured.items()} for part in ("test", "validation")}
    clients = sorted({client for r in late for client in measured[r]["test"]}, key=int)
    seen = {client: [measured[r]["test"][client] for r in late if client in measured[r]["test"]] for client in clients}
    means = {part: average(found[r] for r in late) for part, found in by_round.items()}
    return {
        "forgetting": {
            "mean": means["test"],
            "validation": means["validation"],
            "rounds": late,
            "per_client": {client: average(found) for client, found in seen.items()},
            "by_round": {str(r): value for r, value in by_round["test"].items()},
        }
    }


def summarise(events: Iterable[Mapping[str, Any]], selected_round: int) -> dict[str, Any]:
    """Scores on test at `selected_round` and at the last round, and what the whole run cost."""
    rounds = [event for event in events if event["event"] == "round"]
    evaluated = {event["round"]: event for event in rounds if "evaluation" in event}
    last, chosen = evaluated[max(evaluated)], evaluated[selected_round]

    def scored(event: Mapping[str, Any], part: str) -> dict[str, Any]:
        return {**scores_at(event["evaluation"], part), **pooled_at(event, part)}

    scopes = [part for part in chosen["evaluation"] if part not in ("validation", "test")]

    return {
        "rounds": len(rounds),
        **scored(chosen, "test"),
        "last": scored(last, "test"),
        "validation": scored(chosen, "validation"),
        **({"scopes": {scope: scores_at(chosen["evaluation"], scope) for scope in scopes}} if scopes else {}),
        "selected_round": selected_round,
        **forgetting(rounds),
        "train": chosen["metrics"]["train"],
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
        **_pooled_over(summaries),
        **_means_over("rouge1", summaries),
        **_means_over("forgetting", summaries),
        **_scopes_over(summaries),
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


def _pooled_over(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As "pooled" the means over seeds of each score over all rows, of the lowest recall and of each class's.

    Nothing unless all seeds have them.
    """
    found = [s["pooled"] for s in summaries if "pooled" in s]
    if len(found) < len(summaries):
        return {}
    told: dict[str, Any] = {m: with_interval([f[m] for f in found]) for m in METRICS if all(m in f for f in found)}
    recalls = [f["recall"] for f in found if f.get("recall")]
    if len(recalls) == len(summaries):
        told["lowest_recall"] = with_interval([min(recall.values()) for recall in recalls])
        classes = sorted(set().union(*recalls), key=int)
        told["recall"] = {c: average(recall[c] for recall in recalls if c in recall) for c in classes}
    return {"pooled": told}


def _means_over(name: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As `name` the mean over seeds of its means over clients; nothing unless it was measured for all."""
    found = [s[name]["mean"] for s in summaries if name in s]
    return {name: with_interval(found)} if len(found) == len(summaries) else {}


def _scopes_over(summaries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As "scopes" the mean accuracy on others' test rows over seeds, by scope; nothing unless all were scored there."""
    found = [s["scopes"] for s in summaries if "scopes" in s]
    if len(found) < len(summaries):
        return {}
    return {"scopes": {scope: with_interval([f[scope]["accuracy"]["mean"] for f in found]) for scope in found[0]}}


def with_interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean of a figure over seeds, half of Student's 95 % interval, and the figure of each seed."""
    return {"mean": average(values), "ci95": half_width(values), "per_seed": list(values)}


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


def rounds_to(events: Sequence[Mapping[str, Any]], share: float) -> int | None:
    """The first round that reaches this share of the run's own last validation accuracy; None if scored only once."""
    found = [event["metrics"] for event in events if event["event"] == "round" and "validation" in event["metrics"]]
    if len(found) < 2:
        return None
    reached = until(events, share * found[-1]["validation"]["accuracy"])
    return reached and reached[0]


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
