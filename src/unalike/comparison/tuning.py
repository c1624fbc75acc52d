"""Which settings each method is tried with: its own share of one grid, equally many for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from ..config import parameter_types, parameters_of
from ..errors import InputError
from ..protocol import Algorithm
from ..rng import Key

FORM = 'write --tune "lr=0.03|0.1|0.3,alpha0=0.25|0.5", and lr=0.01..0.3 for a range'


@dataclass(frozen=True)
class Range:
    """Numbers between two bounds, drawn evenly; evenly in their logarithm where both are positive."""

    low: float
    high: float

    def draw(self, share: float) -> float:
        """The number at `share` in 0..1 of the range, with four digits."""
        ratio = self.low > 0
        found = self.low * (self.high / self.low) ** share if ratio else self.low + (self.high - self.low) * share
        return min(max(float(f"{found:.4g}"), self.low), self.high)


Axis: TypeAlias = "tuple[Any, ...] | Range"
Point: TypeAlias = dict[str, Any]


def read_axes(given: str | Mapping[str, Any]) -> dict[str, Axis]:
    """Parameter, or METHOD.PARAMETER for one method only, to what is tried.

    Args:
        given: "lr=0.03|0.1,alpha0=0..1", or a mapping to lists and to such texts.

    Raises:
        InputError: what was given cannot be read.
    """
    if isinstance(given, str):
        parts: dict[str, str] = {}
        for part in filter(None, (p.strip() for p in given.split(","))):
            name, equals, values = part.partition("=")
            if not equals and not parts:
                raise InputError(f"--tune {given} cannot be read: {FORM}")
            if equals:
                parts[name.strip()] = values
            else:  # lr=0.1,0.3 goes on with its list
                parts[next(reversed(parts))] += f"|{part}"
        given = parts
    if not isinstance(given, Mapping):
        raise InputError(f"--tune {given} cannot be read: {FORM}")
    axes = {field_name(str(name)): _axis(str(name), values) for name, values in given.items()}
    if not axes:
        raise InputError(f"--tune names no parameter: {FORM}")
    return axes


def field_name(key: str) -> str:
    """A key as methods declare it: "local-epochs" is local_epochs, and lg-fedavg.local-epochs keeps its label."""
    label, dot, name = key.rpartition(".")
    return label + dot + name.replace("-", "_")


def _axis(name: str, values: Any) -> Axis:
    if isinstance(values, str):
        low, dots, high = values.partition("..")
        if dots:
            try:
                found = Range(float(low), float(high))
            except ValueError:
                raise InputError(f"--tune {name}={values} is no range: {FORM}") from None
            if not (math.isfinite(found.low) and found.low < found.high < math.inf):
                raise InputError(f"--tune {name}={values} is no range: the first number must be the smaller one")
            return found
        values = [_value(part.strip()) for part in values.split("|") if part.strip()]
    values = values if isinstance(values, Sequence) else [values]
    listed = tuple(value for i, value in enumerate(values) if value not in values[:i])
    if not listed:
        raise InputError(f"--tune {name} has nothing to try: {FORM}")
    return listed


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def points(
    kinds: Mapping[str, type[Algorithm[Any, Any, Any]]], axes: Mapping[str, Axis], trials: int | None, key: Key
) -> dict[str, list[Point]]:
    """For each method (by its label) equally many settings to try; {} for each where nothing is tuned.

    A method is tried on its own parameters among `axes`. All combinations are tried where all methods have as many;
    else a random choice of them, as many as the smallest grid has, or `trials`.

    Raises:
        InputError: no method has such a parameter, a method has none of them, or not enough combinations.
    """
    if not axes:
        return {label: [] for label in kinds}
    own = {label: _own(label, kind, axes) for label, kind in kinds.items()}
    for axis in axes:
        if not any(axis in used.values() for used in own.values()):
            raise InputError(f"--tune {axis}: none of {', '.join(kinds)} has this parameter")
    for label, used in own.items():
        if not used:
            raise InputError(
                f"{label} has none of the parameters tuned, {', '.join(axes)}: name one of its own, so that all get "
                "equally many trials"
            )
    sizes = {label: _size([axes[axis] for axis in used.values()]) for label, used in own.items()}
    smallest = min(sizes.values())
    count = trials or (8 if smallest == math.inf else int(smallest))
    for label, size in sizes.items():
        if size < count:
            raise InputError(
                f"{label} has {int(size)} combinations of {', '.join(own[label])} for {count} trials: list more "
                "values, give a range (lr=0.01..0.3), or ask for fewer --trials"
            )
    found = {label: _draw({n: axes[a] for n, a in used.items()}, count, key / label) for label, used in own.items()}
    return {label: [_whole(kinds[label], point) for point in tried] for label, tried in found.items()}


def _whole(kind: type[Algorithm[Any, Any, Any]], point: Point) -> Point:
    """What a range has drawn for a parameter that counts is rounded."""
    types = parameter_types(kind)
    counts = {name for name in point if getattr(types[name], "__origin__", types[name]) is int}
    return {n: round(v) if n in counts and isinstance(v, float) else v for n, v in point.items()}


def _own(label: str, kind: type[Algorithm[Any, Any, Any]], axes: Mapping[str, Axis]) -> dict[str, str]:
    """The method's parameter to the axis that says what is tried; METHOD.PARAMETER goes before PARAMETER."""
    shared = {name: name for name in axes if name in parameters_of(kind)}
    named = {axis.rpartition(".")[2]: axis for axis in axes if axis.rpartition(".")[0] == label}
    for name, axis in named.items():
        if name not in parameters_of(kind):
            raise InputError(f"--tune {axis}: {label} has no parameter {name}; it has {', '.join(parameters_of(kind))}")
    return shared | named


def _size(axes: Sequence[Axis]) -> float:
    return math.prod(math.inf if isinstance(axis, Range) else len(axis) for axis in axes)


def _draw(axes: Mapping[str, Axis], count: int, key: Key) -> list[Point]:
    rng = key.numpy()
    listed = {name: axis for name, axis in axes.items() if not isinstance(axis, Range)}
    if len(listed) < len(axes):
        return [
            {n: a.draw(rng.random()) if isinstance(a, Range) else a[int(rng.integers(len(a)))] for n, a in axes.items()}
            for _ in range(count)
        ]
    grid = [dict(zip(listed, values, strict=True)) for values in itertools.product(*listed.values())]
    return [grid[i] for i in sorted(rng.choice(len(grid), count, replace=False))]
