"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TypeVar

from . import classes, columns, contrasts, crowds, story, verdicts, work
from .axes import alphas, emphasised, few, validation
from .forest import Twig, forest
from .html import Html, definitions, document, figure, legend, prose, section, table, tag
from .paired import best_other, ranked, reference_name
from .records import Comparison, Method, Run
from .sections import alpha, asked, partition, provenance
from .svg import inline
from .units import counted, fraction, listing, whole

T = TypeVar("T")


def page(found: Comparison) -> str:
    names = listing([m.method for m in found.methods])
    first = _of_one_seed(found.runs)
    sample = next(iter(first.values()), None)
    data = f" on {sample.summary.where}" if sample and sample.summary.where else ""
    result, *more = sentences(found)
    role = _roles(found.methods)
    return document(
        f"{names}{data}",
        tag("header", tag("h1", f"A comparison{data}"), tag("p", names, class_="paper")),
        section("The result in one sentence", prose(result, class_="verdict"), *map(prose, more)),
        section("What was asked", definitions(_common(found).items())),
        _differences(found.methods),
        section("The methods", _intervals(found.methods, role), _scores(found.methods)),
        _tuning(found.methods),
        _curves(found, role),
        work.of(found.runs, role),
        _clients(first, found.methods, role),
        _classes(found),
        partition(sample) if sample else "",
        *(alpha(run, of=name) for name, run in first.items() if alphas(run.rounds)),
        section("Traffic and time", _traffic(found.methods), table("Costs", columns.costs(found.methods), wide=True)),
        _provenance(found),
    )


def _of_one_seed(runs: Mapping[str, Sequence[Run]]) -> dict[str, Run]:
    """A run of each method, of the first seed that all have: only then are the clients the same."""
    begun = {name: {run.summary.seed: run for run in several} for name, several in runs.items() if several}
    common = set.intersection(*map(set, begun.values())) if begun else set()
    seed = min(common, key=lambda seed: -1 if seed is None else seed) if common else None
    return {name: by_seed.get(seed, runs[name][0]) for name, by_seed in begun.items()}


def sentences(found: Comparison) -> list[str]:
    """The first is the result."""
    methods = found.methods
    return verdicts.comparison(methods, found.about.rivals) if reference_name(methods) else story.comparison(methods)


def _roles(methods: Sequence[Method]) -> dict[str, str]:
    """Where the hues do not suffice, the reference and the best of the others have one."""
    against = _against(methods, [m.method for m in methods])
    best = best_other(methods, against)
    return emphasised([m.method for m in methods], [against, *([best.method] if best else [])])


def _against(methods: Sequence[Method], among: Collection[str]) -> str:
    """What each is set against: the reference, or where that is not `among` those shown, the best of them."""
    name = reference_name(methods)
    shown = [m.method for m in ranked(methods) if m.method in among]
    return name if name in shown else next(iter([*shown, *among]), "")


def _in_order(found: Mapping[str, T], methods: Sequence[Method]) -> dict[str, T]:
    """From the highest test accuracy to the lowest; those that did not finish are last."""
    order = [m.method for m in ranked(methods) if m.method in found]
    return {name: found[name] for name in [*order, *(other for other in found if other not in order)]}


def _common(found: Comparison) -> dict[str, str]:
    """What all runs were asked alike, and the seeds."""
    each = [asked(run) for runs in found.runs.values() for run in runs]
    shared = {k: v for k, v in each[0].items() if all(other.get(k) == v for other in each)} if each else {}
    shared.pop("seed", None)
    return shared | {"seeds": ", ".join(map(str, sorted(found.seeds)))}


def _differences(methods: Sequence[Method]) -> Html:
    name = reference_name(methods) or ""
    known = [(m, m.difference, m.difference.mean) for m in methods if m.difference]
    twigs = [
        Twig(m.method, mean, told.ci95, [d for d in told.per_seed if d is not None])
        for m, told, mean in known
        if mean is not None
    ]
    if not twigs:
        return Html("")
    twigs.sort(key=lambda twig: -twig.mean)
    label = f"points of mean accuracy against {name}"
    caption = (
        f"Each method’s mean minus that of {name}, paired by seed: the bar is the 95 % interval over seeds, the "
        "strokes are the seeds. Filled where the interval excludes 0. " + verdicts.HARDEST.format(name)
    )
    return section(f"Against {name}", figure(inline(forest(twigs, label), "differences"), caption))


def _intervals(methods: Sequence[Method], role: Mapping[str, str]) -> Html:
    if all(m.failed for m in methods):
        return Html("")
    caption = "Filled: mean test accuracy; the bar is its 95 % interval over seeds. Open: the worst client."
    return figure(inline(contrasts.intervals(methods, role), "intervals"), caption)


def _scores(methods: Sequence[Method]) -> Html:
    best = next(iter(ranked(methods)), None)
    rows = [
        {**row, "mean": tag("strong", row["mean"]) if m is best else row["mean"]}
        for m, row in zip(methods, columns.scores(methods), strict=True)
    ]
    return Html(table("Methods", rows, ("status",), wide=True) + tag("figcaption", columns.legend(methods)))


def _tuning(methods: Sequence[Method]) -> Html:
    if all(m.trials is None for m in methods):
        return Html("")
    if not any(m.trials for m in methods):
        return section("What was tuned", prose("Nothing: each method ran with the values that it was given."))
    rows = [
        {
            "method": m.method,
            "chosen": columns.chosen(m) or ("" if m.trials is None else "nothing"),
            "trials": whole(m.trials),
        }
        for m in methods
    ]
    trials = sorted({m.trials for m in methods if m.trials})
    told = f"{listing([counted(n, 'trial') for n in trials])} a method, chosen on validation; test rows chose nothing."
    return section("What was tuned", prose(told), table("Tuning", rows, ("chosen",)))


def _curves(found: Comparison, role: Mapping[str, str]) -> Html:
    known = {name: several for name, several in found.runs.items() if any(validation(r.rounds)[1] for r in several)}
    if not known:
        return Html("")
    if few(list(known)):
        caption = "Accuracy on validation, mean over clients: thick over the seeds, thin for each seed."
        drawing = contrasts.curves(known, role)
    else:
        means = _in_order(contrasts.averaged(known), found.methods)
        against = _against(found.methods, means)
        caption = (
            f"Accuracy on validation, mean over clients and seeds, and where it ended. Grey: {against}. "
            "From the highest test accuracy to the lowest."
        )
        drawing = crowds.panels(means, against)
    return section("Accuracy over rounds", figure(inline(drawing, "curves"), caption))


def _clients(first: Mapping[str, Run], methods: Sequence[Method], role: Mapping[str, str]) -> Html:
    scores = {name: run.summary.accuracy.per_client for name, run in first.items() if run.summary.accuracy.per_client}
    if not scores:
        return Html("")
    seed = next(iter(first.values())).summary.seed
    when = "" if seed is None else f", seed {seed}"
    if few(list(scores)):
        key = legend({name: role[name] for name in scores}, contrasts.MARKS.values())
        caption = f"Accuracy on each client’s own test rows{when}."
        return section("Each client", key, figure(inline(contrasts.clients(scores, role), "clients"), caption))
    scores = _in_order(scores, methods)
    against = _against(methods, scores)
    caption = f"Points of test accuracy that each client gains (blue) or loses (orange) against {against}{when}."
    return section("Each client", figure(inline(crowds.squares(scores, against), "clients"), caption))


def _classes(found: Comparison) -> Html:
    rows = classes.by_class(found.methods, found.classes)
    return (
        section(classes.TITLE, prose(columns.RECALL), table("Recall by class", rows, wide=True)) if rows else Html("")
    )


def _traffic(methods: Sequence[Method]) -> Html:
    if not any(m.traffic for m in methods if not m.failed):
        return Html("")
    caption = "Tensor payload of a whole run, all clients together: down to the left, up to the right."
    return figure(inline(contrasts.traffic(methods), "traffic"), caption)


def _provenance(found: Comparison) -> Html:
    runs = [run for several in found.runs.values() for run in several]
    if not runs:
        return Html("")
    states = table("Runs", list(map(_run_row, runs)), ("final state, sha256",))
    repeat = prose(f"To repeat one bit for bit: `unalike run {runs[0].name}/experiment.toml`", class_="after")
    return section("Where this comes from", definitions(provenance(runs[0]), "lines"), states, repeat)


def _run_row(run: Run) -> dict[str, str]:
    said = run.summary
    return {
        "run": run.name,
        "final state, sha256": said.state_sha256 or "",
        "accuracy": fraction(said.accuracy.mean),
        "selected round": whole(said.selected_round),
    }
