"""The page of one run."""

from __future__ import annotations

from . import classes, course, elsewhere, forgotten, impressions, likeness, pictures, story, views, work
from .alone import BASELINES
from .axes import MANY, validation
from .html import Html, definitions, document, figure, linked, prose, section, table, tag
from .records import Client, Run
from .sections import alpha, asked, partition, provenance, shift_of, simulated, trains_on
from .svg import inline
from .units import duration, flops, fraction, signed, size, whole

ROWS = 200
"""A longer table of clients shows the lowest so many."""


def page(run: Run, other: Run | None) -> str:
    paper = [tag("p", linked(run.summary.paper), class_="paper")] if run.summary.paper else []
    return document(
        f"{run.algorithm} on {run.summary.where or run.name}",
        tag("header", tag("h1", run.algorithm), *paper, *simulated(run)),
        _result(run, other),
        section("What was asked", definitions(asked(run).items())),
        _accuracy(run, other),
        work.single(run, other),
        course.phases(run),
        course.memory(run),
        course.took_part(run),
        _clients(run, other),
        views.single(run),
        elsewhere.single(run),
        classes.single(run, other),
        forgotten.single(run),
        impressions.single(run),
        likeness.audited(run),
        partition(run),
        alpha(run),
        _cost(run),
        _client_table(run, other),
        _provenance(run),
    )


def _result(run: Run, other: Run | None) -> Html:
    state = "" if run.finished else prose(f"Unfinished after round {run.summary.rounds or 0}.", class_="state")
    doubt = story.caution(run, other)
    remedy = "" if other or run.algorithm in BASELINES else prose(story.remedy(run))
    verdict = prose(story.verdict(run, other), class_="verdict")
    return section("The result in one sentence", state, verdict, prose(doubt) if doubt else "", remedy)


def _accuracy(run: Run, other: Run | None) -> Html:
    if not validation(run.rounds)[1]:
        return Html("")
    caption = (
        "Accuracy on validation: the mean over clients, within the band from the worst client to the best. "
        "The marked round was chosen on validation; the accuracies reported on this page are on test, at that round."
    )
    return section("Accuracy over rounds", figure(inline(pictures.accuracy(run, other), "accuracy"), caption))


def _clients(run: Run, other: Run | None) -> Html:
    if not run.summary.accuracy.per_client:
        return Html("")
    caption = "Accuracy on each client’s own test rows, at the chosen round."
    if len(run.summary.accuracy.per_client) > MANY:
        caption += " The clients are in ascending order of it."
    elif other:
        rival = "alone" if other.algorithm in BASELINES else f"with {other.algorithm}"
        caption += f" The stroke across a bar is the same client {rival}; who lost is orange."
    return section("Each client", figure(inline(pictures.clients(run, other), "clients"), caption))


def _cost(run: Run) -> Html:
    said = run.summary
    wire = said.wire_bytes.up or said.wire_bytes.down
    facts = definitions(
        [
            ("sent up", size(said.bytes.up)),
            ("sent down", size(said.bytes.down)),
            ("with envelopes", f"{size(said.wire_bytes.up)} + {size(said.wire_bytes.down)}" if wire else ""),
            ("for evaluation", size(said.bytes_evaluation) if said.bytes_evaluation else ""),
            ("computed", flops(said.flops)),
            ("time", duration(said.seconds)),
            ("peak memory", size(said.peak_memory_bytes)),
        ]
    )
    if not run.rounds:
        return section("Traffic and time", facts)
    still = not (said.bytes.up or said.bytes.down)
    caption = "Nothing travelled between clients and server." if still else "Tensor payload of all clients together."
    return section("Traffic and time", facts, figure(inline(pictures.traffic(run.rounds), "traffic"), caption))


def _client_table(run: Run, other: Run | None) -> Html:
    scores = run.summary.accuracy.per_client
    members = {client.id: client for client in run.partition.clients} or {i: Client(id=i) for i in sorted(scores)}
    if not members:
        return Html("")
    shown, note = list(members), ""
    if len(members) > ROWS:
        shown = sorted(members, key=lambda i: scores.get(i, 1.0))[:ROWS]
        note = prose(f"The {ROWS} clients with the lowest accuracy, of {len(members)}.")
    rows = [_client_row(run, other, members[i]) for i in shown]
    return section(
        "The clients in numbers",
        note,
        table("Clients in numbers", rows, words=("name", "tier", "trains on", "simulated shift", "phases")),
    )


def _client_row(run: Run, other: Run | None, client: Client) -> dict[str, str]:
    scores, i = run.summary, client.id
    row = {
        "client": str(i),
        "name": "" if client.name == str(i) else client.name,
        "tier": client.tier,
        "training rows": whole(client.train),
        "validation": whole(client.validation),
        "test": whole(client.test),
        "trains on": trains_on(run, client),
        "simulated shift": shift_of(client),
        **course.about(run, client),
        "accuracy": fraction(scores.accuracy.per_client.get(i)),
        "balanced": fraction(scores.balanced_accuracy.per_client.get(i)),
        "ROUGE-1": fraction(scores.rouge1.per_client.get(i)),
        **elsewhere.about(run, i),
        **views.about(run, i),
        **forgotten.about(run, i),
    }
    if other:
        rival = "alone" if other.algorithm in BASELINES else other.algorithm
        row[rival] = fraction(other.summary.accuracy.per_client.get(i))
        row["difference"] = signed(story.gains(run, other).get(i))
    return row


def _provenance(run: Run) -> Html:
    own = [("run", run.name), ("final state, sha256", run.summary.state_sha256 or "")]
    repeat = prose("To repeat it bit for bit: `unalike run experiment.toml`", class_="after")
    return section("Where this comes from", definitions([*own, *provenance(run)], "lines"), repeat)
