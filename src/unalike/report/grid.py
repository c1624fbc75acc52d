"""The page of a grid: many comparisons on one page, each with a link to its own."""

from __future__ import annotations

from collections.abc import Sequence

from . import classes, columns, matrix, verdicts
from .forest import Twig, forest
from .html import Html, definitions, document, figure, prose, section, table, tag
from .origin import origin
from .paired import Gap
from .records import Compared, Grid, Method
from .svg import inline
from .units import UNKNOWN, fraction, signed


def page(found: Grid) -> str:
    reference = matrix.reference_of(found.rows)
    gaps = [verdicts.gap_of(row, reference, found.about.rivals) if reference else None for row in found.rows]
    result, *more = verdicts.grid(found, reference) or ["Nothing has been run yet."]
    return document(
        found.about.title,
        tag("header", tag("h1", found.about.title)),
        section("The result in one sentence", prose(result, class_="verdict"), *map(prose, more)),
        _gaps(found, reference, gaps),
        _matrix(found, reference, gaps),
        section("Each regime", _recalled(found), *(_regime(found, row, reference) for row in found.rows)),
        section("Where this comes from", definitions(origin(found), "lines")),
    )


def _recalled(found: Grid) -> Html:
    """What the tables of the regimes are, where there are any."""
    known = any(m.pooled.recall for row in found.rows for m in row.methods)
    return prose(f"In the tables: {columns.RECALL[0].lower()}{columns.RECALL[1:]}") if known else Html("")


def _gaps(found: Grid, reference: str | None, gaps: Sequence[Gap | None]) -> Html:
    known = [(row, gap) for row, gap in zip(found.rows, gaps, strict=True) if gap]
    if not known:
        return Html("")
    twigs = [Twig(matrix.title(row), gap.mean, gap.half, note=gap.other) for row, gap in known]
    label = f"points of {reference} above the best {'of the rivals' if found.about.rivals else 'of the others'}"
    caption = "With the name of which one that was. Filled: the 95 % interval excludes 0. "
    drawing = inline(forest(twigs, label), "gaps")
    return section(f"{reference} against the best", figure(drawing, caption + verdicts.HARDEST.format(reference)))


def _matrix(found: Grid, reference: str | None, gaps: Sequence[Gap | None]) -> Html:
    names = matrix.methods(found.rows, reference)
    rows = [
        {
            "regime": _name(found, row),
            **({f"{reference} against best": _gap(gap)} if reference else {}),
            **{name: _cell(matrix.cell(row, name), matrix.best(row)) for name in names},
        }
        for row, gap in zip(found.rows, gaps, strict=True)
    ]
    told = (
        "Mean test accuracy and the half-width of its 95 % interval over seeds; the best is bold. "
        "▲ and ▼: the interval of the difference excludes 0."
    )
    return section("All regimes", prose(told), table("All regimes", rows, wide=True))


def _name(found: Grid, row: Compared) -> Html:
    """The regime's name, linked to its own page where there is one, and whether it is finished."""
    page = f"{row.regime.folder}/report.html"
    name = tag("a", row.regime.name, href=page) if (found.folder / page).is_file() else tag("span", row.regime.name)
    return name if row.regime.status == "done" else Html(name + tag("small", row.regime.status))


def _gap(gap: Gap | None) -> Html:
    """▲ +2.3, and below it its interval and the other's name"""
    if gap is None:
        return Html(UNKNOWN)
    mark = ("▲ " if gap.mean > 0 else "▼ ") if gap.settled else ""
    kind = ("above" if gap.mean > 0 else "below") if gap.settled else "open"
    half = "" if gap.half is None else f"{signed(gap.mean - gap.half)} to {signed(gap.mean + gap.half)}, "
    return Html(tag("span", f"{mark}{signed(gap.mean)}", class_=kind) + tag("small", f"{half}{gap.other}"))


def _cell(m: Method | None, best: Method | None) -> Html:
    if m is None:
        return Html(UNKNOWN)
    if m.mean is None:
        return tag("span", "failed", title=m.reason or "")
    mean = tag("strong", fraction(m.mean)) if m is best else tag("span", fraction(m.mean))
    half = "" if m.ci95 is None else tag("small", f"± {fraction(m.ci95)}")
    return Html(mean + half + (tag("small", "failed") if m.failed else ""))


def _regime(found: Grid, row: Compared, reference: str | None) -> Html:
    """Its name, its keys, how the reference stands in it, and what failed."""
    keys = row.regime.told
    said = tag("p", tag("strong", _name(found, row)), Html("<br>"), told(row, reference, found.about.rivals))
    failed = [f"{m.method} failed{f': {m.reason}' if m.reason else ''}." for m in row.methods if m.failed]
    recalls = classes.by_class(row.methods, row.classes)
    below = table(f"Recall by class, {row.regime.name}", recalls, wide=True) if recalls else ""
    return Html(said + (tag("small", keys) if keys else "") + "".join(prose(one) for one in failed) + below)


def told(row: Compared, reference: str | None, rivals: Sequence[str]) -> str:
    """The regime in one sentence."""
    if not row.methods:
        return f"Nothing to tell yet ({row.regime.status})."
    said = verdicts.verdict(row.methods, reference, rivals) if reference else f"{verdicts.lead(row.methods)}."
    return said if row.regime.status == "done" else f"{said[:-1]}, so far ({row.regime.status})."
