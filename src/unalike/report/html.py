"""Markup that cannot be injected into: only `Html` passes unescaped, and only `tag` and its like make `Html`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from itertools import cycle

from .style import CSS


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def safe(text: str) -> Html:
    return text if isinstance(text, Html) else Html(escape(text))


def tag(name: str, *children: str, **attributes: str) -> Html:
    """tag("td", "a < b", class_="n") -> <td class="n">a &lt; b</td>"""
    names = ((key.rstrip("_").replace("_", "-"), value) for key, value in attributes.items())
    head = "".join(f' {key}="{escape(value)}"' for key, value in names)
    return Html(f"<{name}{head}>{''.join(map(safe, children))}</{name}>")


def prose(text: str, **attributes: str) -> Html:
    """A paragraph; what stands between backticks is code."""
    return tag("p", Html(re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))), **attributes)


def linked(text: str) -> Html:
    """An arXiv number, DOI or address in the text becomes a link."""
    url = re.search(r"https?://[^\s<>\"')]+", text)
    number = re.search(r"\b\d{4}\.\d{4,5}\b", text)
    doi = re.search(r"\b10\.\d{4,}/[^\s,;)]+", text)
    if url:
        return _link(text, url, url[0])
    if doi:
        return _link(text, doi, f"https://doi.org/{doi[0]}")
    return _link(text, number, f"https://arxiv.org/abs/{number[0]}") if number else safe(text)


def _link(text: str, found: re.Match[str], address: str) -> Html:
    start, end = found.span()
    return Html(safe(text[:start]) + tag("a", found[0], href=address) + safe(text[end:]))


def section(title: str, *children: str) -> Html:
    """Nothing at all when there is nothing to show."""
    return tag("section", tag("h2", title), *children) if any(children) else Html("")


def figure(picture: Html, caption: str) -> Html:
    return tag("figure", picture, tag("figcaption", caption))


def legend(roles: Mapping[str, str], marks: Iterable[str] = "●") -> Html:
    """Names with their role (a CSS variable) and mark; marks are used in turn."""
    entries = zip(roles.items(), cycle(marks), strict=False)
    items = (
        tag("li", tag("i", mark, style=f"color:var(--{role})", aria_hidden="true"), name)
        for (name, role), mark in entries
    )
    return tag("ul", *items, class_="legend")


def definitions(pairs: Iterable[tuple[str, str]], kind: str = "facts") -> Html:
    """A definition list without those that are empty: short `facts` in columns, or `lines` across the page."""
    kept = [tag("div", tag("dt", term), tag("dd", value)) for term, value in pairs if value]
    return tag("dl", *kept, class_=kind) if kept else Html("")


def table(label: str, rows: Sequence[Mapping[str, str]], words: Sequence[str] = (), *, wide: bool = False) -> Html:
    """Rows are mappings by column; a column empty throughout is left out. The first column heads its row.

    The first and those in `words` are set left, numbers right. The table scrolls in its own container, which may be
    wider than the text.
    """
    head = [name for name in rows[0] if any(row[name] for row in rows)] if rows else []
    kinds = {name: "w" if name in (head[0], *words) else "n" for name in head}
    top = tag("tr", *(tag("th", name, scope="col", class_=kinds[name]) for name in head))
    body = [
        tag(
            "tr",
            tag("th", row[head[0]], scope="row", class_="w" + " long" * _is_long(row[head[0]])),
            *(tag("td", row[name], class_=kinds[name] + " long" * _is_long(row[name])) for name in head[1:]),
        )
        for row in rows
    ]
    whole = tag("table", tag("thead", top), tag("tbody", *body))
    return tag("div", whole, class_="scroll" + " wide" * wide, role="region", aria_label=label, tabindex="0")


def _is_long(cell: str) -> bool:
    return len(re.sub("<[^>]*>", "", cell)) > 24


def document(title: str, *children: str) -> str:
    head = tag(
        "head",
        Html('<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'),
        Html('<meta name="color-scheme" content="light dark">'),
        tag("title", title),
        tag("style", Html(CSS)),
    )
    return f'<!doctype html>\n<html lang="en">{head}<body>{tag("main", *children)}</body></html>\n'
