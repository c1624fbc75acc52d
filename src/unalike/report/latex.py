r"""A comparison as a LaTeX table; needs \usepackage{booktabs}, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .columns import difference
from .paired import ranked, reference_name
from .records import Comparison, Method
from .units import UNKNOWN, counted, flops, fraction, interval, size

SPECIAL = {
    "\\": r"\textbackslash{}",
    **{sign: rf"\{sign}" for sign in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
    UNKNOWN: "--",
    "’": "'",
    "\u00a0": "~",
}


def caption(found: Comparison) -> str:
    """What was measured, on what data."""
    run = next((run for runs in found.runs.values() for run in runs), None)
    seeds = sorted({seed for m in found.methods for seed in m.seeds})
    where = [run.summary.where, run.summary.partition] if run else []
    data = f" of {', '.join(name for name in where if name)}" if any(where) else ""
    over = f" over {counted(len(seeds), 'seed')}" if seeds else ""
    reference = reference_name(found.methods)
    told = (
        f"Test accuracy over the clients{data}, at the round best on validation: mean with its 95 % interval{over}, "
        "and standard deviation, worst decile and worst over clients."
    )
    if reference:
        told += f" Difference: points to {reference}, paired by seed, with 95 % interval."
    return f"{told} Traffic: bytes up and down of a whole run, all clients together."


def table(methods: Sequence[Method], told: str) -> str:
    """The best mean is bold; a method that failed is a row with its reason."""
    best, reference = next(iter(ranked(methods)), None), reference_name(methods)
    titles = list(cells(methods[0], reference)) if methods else ["method"]
    lines = [_row(m, cells(m, reference), bold=m is best) for m in methods]
    return "\n".join(
        [
            r"% needs \usepackage{booktabs}",
            r"\begin{table*}",
            r"\centering",
            rf"\caption{{{text(told)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(titles) - 1)}}}",
            r"\toprule",
            " & ".join(map(text, titles)) + r" \\",
            r"\midrule",
            *lines,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table*}",
            "",
        ]
    )


def cells(m: Method, reference: str | None) -> dict[str, str]:
    """The columns of a paper's table, in words."""
    against = (
        {"Difference": UNKNOWN if m.method == reference else difference(m.difference) or UNKNOWN} if reference else {}
    )
    return {
        "Method": m.method,
        "Mean": interval(m.mean, m.ci95),
        "Std": fraction(m.std),
        "Worst decile": fraction(m.worst_decile),
        "Worst": fraction(m.worst),
        **against,
        "Traffic": size(m.traffic),
        "Computed": flops(m.flops),
    }


def text(plain: str) -> str:
    """Plain text so that nothing in it is a command, in one line."""
    return "".join(SPECIAL.get(sign, sign) for sign in " ".join(plain.split("\n")))


def _row(m: Method, found: Mapping[str, str], *, bold: bool) -> str:
    rest = len(found) - 1
    reason = rf"\multicolumn{{{rest}}}{{p{{.7\linewidth}}}}{{{text(m.state)}}} \\"
    if m.mean is None:
        return f"{text(m.method)} & {reason}"
    shown = {name: text(value) for name, value in found.items()}
    if bold:
        shown["Mean"] = rf"\textbf{{{shown['Mean']}}}"
    return " & ".join(shown.values()) + r" \\" + (f"\n & {reason}" if m.failed else "")
