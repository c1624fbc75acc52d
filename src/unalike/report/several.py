"""The page of a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import contrasts, story
from .axes import alphas, hues, validation
from .html import Html, definitions, document, figure, legend, prose, section, table, tag
from .records import Comparison, Method, Run
from .sections import alpha, asked, partition, provenance
from .svg import inline
from .units import duration, flops, fraction, interval, listing, size, whole


def page(found: Comparison) -> str:
    names = listing([m.method for m in found.methods])
    first = {name: runs[0] for name, runs in found.runs.items() if runs}
    sample = next(iter(first.values()), None)
    data = f" on {sample.summary.data}" if sample and sample.summary.data else ""
    result, *more = story.comparison(found.methods)
    return document(
        f"{names}{data}",
        tag("header", tag("h1", f"A comparison{data}"), tag("p", names, class_="paper")),
        section("The result in one sentence", prose(result, class_="verdict"), *map(prose, more)),
        section("What was asked", definitions(_common(found).items())),
        section(
            "The methods", _intervals(found.methods), table("Methods", list(map(_row, found.methods)), ("status",))
        ),
        _curves(found.runs),
        _clients(first),
        partition(sample) if sample else "",
        *(alpha(run, of=name) for name, run in first.items() if alphas(run.rounds)),
        _traffic(found.methods),
        _provenance(found),
    )


def _common(found: Comparison) -> dict[str, str]:
    """What all runs were asked alike, and the seeds."""
    each = [asked(run) for runs in found.runs.values() for run in runs]
    shared = {k: v for k, v in each[0].items() if all(other.get(k) == v for other in each)} if each else {}
    seeds = sorted({seed for m in found.methods for seed in m.seeds})
    shared.pop("seed", None)
    return shared | {"seeds": ", ".join(map(str, seeds))}


def _intervals(methods: Sequence[Method]) -> Html:
    if all(m.failed for m in methods):
        return Html("")
    caption = "Filled: mean test accuracy; the bar is its 95 % interval over seeds. Open: the worst client."
    return figure(inline(contrasts.intervals(methods), "intervals"), caption)


def _row(m: Method) -> dict[str, str]:
    return {
        "method": m.method,
        "status": f"{m.status}: {m.reason}" if m.reason else m.status,
        "mean": interval(m.mean, m.ci95),
        "std": fraction(m.std),
        "worst": fraction(m.worst),
        "worst decile": fraction(m.worst_decile),
        "up": size(m.bytes_up),
        "down": size(m.bytes_down),
        "computed": flops(m.flops),
        "time": duration(m.seconds),
    }


def _curves(runs: Mapping[str, Sequence[Run]]) -> Html:
    known = {name: several for name, several in runs.items() if any(validation(run.rounds)[1] for run in several)}
    if not known:
        return Html("")
    caption = "Accuracy on validation, mean over clients: thick over the seeds, thin for each seed."
    return section("Accuracy over rounds", figure(inline(contrasts.curves(known), "curves"), caption))


def _clients(first: Mapping[str, Run]) -> Html:
    scores = {name: run.summary.accuracy.per_client for name, run in first.items() if run.summary.accuracy.per_client}
    if not scores:
        return Html("")
    key = legend(hues(list(scores)), contrasts.MARKS.values())
    seed = next(iter(first.values())).summary.seed
    caption = f"Accuracy on each client’s own test rows{'' if seed is None else f', seed {seed}'}."
    return section("Each client", key, figure(inline(contrasts.clients(scores), "clients"), caption))


def _traffic(methods: Sequence[Method]) -> Html:
    if not any(m.bytes_up or m.bytes_down for m in methods if not m.failed):
        return Html("")
    caption = "Tensor payload of a whole run, all clients together: down to the left, up to the right."
    return section("Traffic", figure(inline(contrasts.traffic(methods), "traffic"), caption))


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
