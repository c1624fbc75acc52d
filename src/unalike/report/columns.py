"""The columns of a table of methods: as a person reads them, and as a program does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .measured import ELSEWHERE, SCOPES, VIEWS, WITHOUT, Budgets, Difference, Figure, Target
from .paired import reference_name
from .records import Method
from .units import duration, flops, fraction, interval, percent, signed, size

RECALL = "Recall of each class: of its test rows at all clients together, the share predicted right; mean over seeds."


def scores(methods: Sequence[Method]) -> list[dict[str, str]]:
    """What came of each, in words; differences in points."""
    name = reference_name(methods)
    all_done = all(m.state == "done" for m in methods)
    paired = any(m.balanced_difference for m in methods)
    return [
        {
            "method": m.method,
            "status": "" if all_done else m.state,
            "mean": interval(m.mean, m.ci95),
            f"points to {name}": "reference" if m.method == name else difference(m.difference),
            "weighted": _optional(m.weighted_mean),
            "std": fraction(m.std),
            "worst": fraction(m.worst),
            "worst decile": fraction(m.worst_decile),
            "best decile": _optional(m.best_decile),
            "best": _optional(m.best),
            "Jain": _optional(m.jain),
            "balanced, all rows": _figure(m.pooled.balanced_accuracy),
            f"balanced points to {name}": "reference"
            if m.method == name and paired
            else difference(m.balanced_difference),
            "lowest recall": _figure(m.pooled.lowest_recall),
            "ROUGE-1": _figure(m.rouge1),
            **{f"on {scope}": _figure(m.scopes.get(scope, Figure())) for scope in SCOPES},
            **{f"{view} alone": _figure(m.scopes.get(view, Figure())) for view in VIEWS},
            "forgetting": _figure(m.forgetting),
            "above alone": "" if m.beats_standalone is None else percent(m.beats_standalone),
        }
        for m in methods
    ]


def costs(methods: Sequence[Method]) -> list[dict[str, str]]:
    """What each took, in words."""
    asked = _asked(methods)
    return [
        {
            "method": m.method,
            "up": size(m.bytes_up),
            "down": size(m.bytes_down),
            "up a round": "" if m.bytes_per_round.up is None else size(m.bytes_per_round.up),
            "down a round": "" if m.bytes_per_round.down is None else size(m.bytes_per_round.down),
            f"to reach {asked}": target(m.target),
            "rounds to 90 %": rounds(m.rounds_to_90),
            "computed": flops(m.flops),
            "time": duration(m.seconds),
            "peak memory": "" if m.peak_memory_bytes is None else size(m.peak_memory_bytes),
            **_budgets(m.budgets),
        }
        for m in methods
    ]


def _budgets(found: Budgets | None) -> dict[str, str]:
    if found is None:
        return {}
    over = f"{found.over} of {found.visits}"
    return {"took part": percent(found.took_part), "of a budget": percent(found.largest_share), "over budget": over}


def legend(methods: Sequence[Method]) -> str:
    """What the columns mean."""
    name, asked = reference_name(methods), _asked(methods)
    told = "Mean test accuracy over clients, ± half of its 95 % interval over seeds; all else is the mean over seeds."
    if name:
        told += f" Points to {name}: the difference of the means, paired by seed, with its interval."
    told += (
        " Weighted: clients by their rows. Std, worst, best and Jain’s index are over clients; a decile is the mean "
    )
    told += "of a tenth of them."
    if any(m.pooled.balanced_accuracy.mean is not None for m in methods):
        told += (
            " All rows: the test rows of all clients together, each predicted by what its own client predicts with. "
            "Balanced: the mean of the classes’ recalls; lowest recall: of the class that has it."
        )
    if any(m.rouge1.mean is not None for m in methods):
        told += (
            " ROUGE-1: the F-measure of words that written answers share with the right ones; rounds are chosen by it."
        )
    if any(m.scopes.keys() & {*VIEWS} for m in methods):
        told += (
            " Local alone, shared alone: each client’s own test rows, predicted with the one part of its model that "
            "stays, or with the one that all share."
        )
    if any(m.scopes.keys() & {*WITHOUT} for m in methods):
        told += " On no-image, no-text: each client’s own test rows, their images or their questions taken away."
    if any(m.scopes.keys() & {*ELSEWHERE} for m in methods):
        told += (
            " On others, all, unseen: each client’s model on the test rows of all other clients, of all, or of clients "
            "that took no part, each of those counting once."
        )
    if any(m.forgetting.mean is not None for m in methods):
        told += (
            " Forgetting: the accuracy on all other clients’ test rows that the global model loses by one client’s "
            "training, over clients and the second half of the rounds."
        )
    if any(m.beats_standalone is not None for m in methods):
        told += " Above alone: the share of clients with whom the method beats training alone."
    if any(m.budgets for m in methods):
        told += (
            " Took part: share of the clients that trained. Of a budget: the largest share of a client’s memory budget "
            "that training or evaluation took. Over budget: visits that took more, of all."
        )
    if asked:
        told += (
            f" To reach {asked}: bytes up and down, and rounds, until validation accuracy was {asked}, in the seeds "
        )
        told += "that came there."
    if any(m.rounds_to_90.mean is not None for m in methods):
        told += " Rounds to 90 %: until validation accuracy was 90 % of what it was in the run’s own last round."
    return told


def by_seed(m: Method) -> str:
    """0.851, 0.867, 0.849"""
    return ", ".join(map(fraction, m.means))


def difference(found: Difference | None) -> str:
    """In points: +2.3 ± 1.8"""
    if found is None:
        return ""
    return signed(found.mean) + (f" ± {found.ci95 * 100:.1f}" if found.ci95 is not None else "")


def _figure(found: Figure) -> str:
    """A column that is left out where nobody has it."""
    return "" if found.mean is None else interval(found.mean, found.ci95)


def rounds(found: Figure) -> str:
    """4.3 ± 1.2; left out where runs were scored only once"""
    if found.mean is None:
        return ""
    return f"{found.mean:.3g}" + (f" ± {found.ci95:.2g}" if found.ci95 is not None else "")


def target(found: Target | None) -> str:
    """12.3 MB, 14 rounds (2 of 3 seeds)"""
    if found is None:
        return ""
    if not found.reached:
        return "not reached"
    rounds = "" if found.rounds is None else f", {found.rounds:.3g} rounds"
    return f"{size(found.bytes)}{rounds} ({found.reached} of {found.seeds} seeds)"


def chosen(m: Method) -> str:
    """lr 0.05, momentum 0.9"""
    return ", ".join(f"{name} {value if isinstance(value, str) else _json(value)}" for name, value in m.chosen.items())


def _asked(methods: Sequence[Method]) -> str:
    return next((f"{m.target.accuracy:g}" for m in methods if m.target), "")


def _optional(value: float | None) -> str:
    """A column that older comparisons do not have is left out, not filled with dashes."""
    return "" if value is None else fraction(value)


def plain(m: Method) -> dict[str, Any]:
    """A flat record of all that is known: text, numbers and None. Lists are joined by spaces, mappings are JSON."""
    to, until = m.difference, m.target
    return {
        "method": m.method,
        "status": m.status,
        "reason": m.reason,
        "mean": m.mean,
        "ci95": m.ci95,
        "weighted_mean": m.weighted_mean,
        "std": m.std,
        "worst": m.worst,
        "worst_decile": m.worst_decile,
        "best": m.best,
        "best_decile": m.best_decile,
        "jain": m.jain,
        "beats_standalone": m.beats_standalone,
        "difference_to": to and to.to,
        "difference": to and to.mean,
        "difference_ci95": to and to.ci95,
        "difference_per_seed": to and _joined(to.per_seed),
        "pooled_accuracy": m.pooled.accuracy.mean,
        "pooled_balanced_accuracy": m.pooled.balanced_accuracy.mean,
        "pooled_balanced_accuracy_ci95": m.pooled.balanced_accuracy.ci95,
        "balanced_difference": m.balanced_difference and m.balanced_difference.mean,
        "balanced_difference_ci95": m.balanced_difference and m.balanced_difference.ci95,
        "lowest_recall": m.pooled.lowest_recall.mean,
        "lowest_recall_ci95": m.pooled.lowest_recall.ci95,
        "recall": _json(m.pooled.recall) if m.pooled.recall else None,
        "rouge1": m.rouge1.mean,
        "rouge1_ci95": m.rouge1.ci95,
        **{f"on_{scope}": m.scopes.get(scope, Figure()).mean for scope in SCOPES},
        **{f"on_{scope}_ci95": m.scopes.get(scope, Figure()).ci95 for scope in SCOPES},
        **{f"{view}_alone": m.scopes.get(view, Figure()).mean for view in VIEWS},
        **{f"{view}_alone_ci95": m.scopes.get(view, Figure()).ci95 for view in VIEWS},
        "forgetting": m.forgetting.mean,
        "forgetting_ci95": m.forgetting.ci95,
        "target_accuracy": until and until.accuracy,
        "target_bytes": until and until.bytes,
        "target_rounds": until and until.rounds,
        "target_reached": until and until.reached,
        "target_seeds": until and until.seeds,
        "rounds_to_90": m.rounds_to_90.mean,
        "rounds_to_90_ci95": m.rounds_to_90.ci95,
        "bytes_up": m.bytes_up,
        "bytes_down": m.bytes_down,
        "bytes_per_round_up": m.bytes_per_round.up,
        "bytes_per_round_down": m.bytes_per_round.down,
        "flops": m.flops,
        "seconds": m.seconds,
        "peak_memory_bytes": m.peak_memory_bytes,
        "took_part": m.budgets and m.budgets.took_part,
        "largest_share_of_budget": m.budgets and m.budgets.largest_share,
        "visits_over_budget": m.budgets and m.budgets.over,
        "trials": m.trials,
        "chosen": _json(m.chosen) if m.chosen else None,
        "train": _json(m.train) if m.train else None,
        "seeds": _joined(m.seeds),
        "means": _joined(m.means),
        "runs": _joined(m.runs),
    }


def _joined(values: Sequence[Any]) -> str | None:
    return " ".join("null" if v is None else str(v) for v in values) or None


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
