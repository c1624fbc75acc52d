"""A matplotlib figure as inline SVG that follows the theme of the page: its colours are CSS variables.

Each picture is drawn twice, wide and narrow, and CSS shows the one that fits: text stays legible on a telephone.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from .html import Html, tag
from .style import DARK, LIGHT

WIDE, NARROW = 880, 380
"""Pixels; one matplotlib point is one pixel here."""

ROLES = ("ink", "soft", "rule", "paper", "c0", "c1", "c2", "c3", "c4", "c5", "c6")
"""CSS variables. c0.. are for categories and tell apart under colour-blindness."""

HUES = tuple(role for role in ROLES if role.startswith("c"))


def colour(role: str) -> str:
    """A stand-in matplotlib accepts; `inline` turns it into var(--role)."""
    return f"#fe00{ROLES.index(role):02x}"


STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": colour("soft"),
    "axes.labelcolor": colour("soft"),
    "axes.labelsize": 12,
    "axes.linewidth": 0.7,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": colour("ink"),
    "axes.titlelocation": "left",
    "axes.titlesize": 12.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 72,
    "font.size": 12,
    "grid.color": colour("rule"),
    "grid.linewidth": 0.7,
    "lines.linewidth": 1.7,
    "svg.fonttype": "none",
    "text.color": colour("ink"),
    "text.parse_math": False,
    "xtick.color": colour("soft"),
    "xtick.labelsize": 11.5,
    "xtick.major.size": 0,
    "ytick.color": colour("soft"),
    "ytick.labelsize": 11.5,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Picture:
    """`draw(figure, wide)` fills an empty figure; `alt` says in words what it shows."""

    alt: str
    draw: Callable[[Figure, bool], None]
    height: float = 260
    narrow_height: float = 230


def inline(picture: Picture, key: str) -> Html:
    """Both drawings. `key` must be unlike that of any other picture on the page: ids derive from it."""
    return Html("".join(_svg(picture, key, wide) for wide in (True, False)))


def alone(picture: Picture, key: str) -> str:
    """The wide drawing as a file of its own, on paper and in both themes."""
    drawing = str(_svg(picture, key, wide=True)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    head, end, rest = drawing.partition(">")
    themes = f":root{{{LIGHT}}}@media(prefers-color-scheme:dark){{:root{{{DARK}}}}}"
    plain = "svg{background:var(--paper)}text{fill:var(--ink);font-family:system-ui,sans-serif}"
    return f"{head}{end}<style>{themes}{plain}</style>{rest}\n"


def _svg(picture: Picture, key: str, wide: bool) -> Html:
    width, height = (WIDE, picture.height) if wide else (NARROW, picture.narrow_height)
    file = io.StringIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # the browser has fonts that matplotlib lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**STYLE, "svg.hashsalt": f"{key}/{width}"})
        figure = Figure(figsize=(width / 72, height / 72))
        picture.draw(figure, wide)
        figure.savefig(file, format="svg", transparent=True)
    return tag(
        "svg",
        _themed(file.getvalue()),
        viewBox=f"0 0 {width} {height:g}",
        role="img",
        aria_label=picture.alt,
        class_="wide" if wide else "narrow",
    )


def _themed(svg: str) -> Html:
    """The drawing alone: no prolog, metadata, global style, group ids or fonts; short numbers; theme
    colours, mixed with ink where they are text, for contrast."""
    body = svg[svg.index('<g id="figure_1">') : svg.rindex("</svg>")]
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;]*;", "", body).replace("xlink:href", "href")
    body = re.sub(r'="[^"]*"', lambda m: re.sub(r"(\d\.\d\d)\d+", r"\1", m[0]).replace("\n", " "), body)
    body = re.sub(r"#fe00(0[0-9a])", lambda m: f"var(--{ROLES[int(m[1], 16)]})", body)
    body = re.sub(r"(<text [^>]*)(var\(--c\d\))", r"\1color-mix(in srgb, \2 60%, var(--ink))", body)
    return Html(re.sub(r"\n\s*", "\n", body))
