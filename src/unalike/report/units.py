"""Numbers as people read them. What is not known is an en dash."""

from __future__ import annotations

from collections.abc import Sequence

UNKNOWN = "–"


def fraction(value: float | None) -> str:
    """0.8873 -> 0.887"""
    return UNKNOWN if value is None else f"{value:.3f}".replace("-", "−")


def interval(mean: float | None, half: float | None) -> str:
    """0.887 ± 0.010"""
    return fraction(mean) if half is None else f"{fraction(mean)} ± {fraction(half)}"


def percent(share: float | None) -> str:
    """0.85 -> 85 %"""
    return UNKNOWN if share is None else f"{100 * share:.0f} %"


def points(difference: float) -> str:
    """0.066 -> 6.6 points (percentage points, unsigned)"""
    return f"{abs(difference) * 100:.1f} points"


def signed(difference: float | None) -> str:
    """-0.021 -> −2.1 (percentage points)"""
    if difference is None:
        return UNKNOWN
    text = f"{difference * 100:+.1f}".replace("-", "−")
    return text[1:] if text[1:] == "0.0" else text


def whole(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:,.0f}"


def scaled(value: float | None, unit: str) -> str:
    """2660192, B -> 2.66 MB; decimal prefixes"""
    if value is None:
        return UNKNOWN
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 999.5 or prefix == "P":
            break
        value /= 1000
    return f"{value:.3g} {prefix}{unit}"


def size(value: float | None) -> str:
    return scaled(value, "B")


def flops(value: float | None) -> str:
    return scaled(value, "FLOP")


def duration(seconds: float | None) -> str:
    """83 -> 1 min 23 s"""
    if seconds is None:
        return UNKNOWN
    if seconds < 59.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def counted(number: int, noun: str) -> str:
    """1, client -> 1 client"""
    return f"{whole(number)} {noun}{'' if number == 1 else 's'}"


def listing(items: Sequence[object]) -> str:
    """[4, 7, 9] -> 4, 7 and 9"""
    texts = [str(item) for item in items]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
