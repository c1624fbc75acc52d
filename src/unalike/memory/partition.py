"""A chain cut into blocks so that the largest training step is the smallest.

    f(k, i) = min over j of max(M[i, j), f(k - 1, j)),   f(1, i) = M[i, n)

f(k, i): least largest cost of units i..n-1 in k blocks. M[i, j): cost of the step that trains units i..j-1 beside
frozen ones before and a proxy for each block after. The proxies depend on the cuts after j: they are those of the best
partition of that rest, so the cost of every step is that of the cuts returned. ProFL's paper leaves the cuts open.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import InputError
from ..local import SGD
from ..models import chain
from ..models.progressive import SubModel
from ..protocol import Spec
from ..tasks import Task
from . import stages
from .needs import HEADROOM
from .predict import predict

Cost: TypeAlias = Callable[[int, tuple[int, ...]], float]
"""cost(i, rest): of training units i..rest[0]-1, where `rest` = (j, ..., n) are the cuts from its end on."""


@dataclass(frozen=True, slots=True)
class Partition:
    """Cuts of a chain and what each step costs."""

    cuts: tuple[int, ...]
    """Rising from 0 to the number of units."""
    costs: tuple[float, ...]
    """Of each step, in the cost's unit; for predicted memory bytes."""

    @property
    def peak(self) -> float:
        """The largest step's cost."""
        return max(self.costs)


def best(units: int, cost: Cost, steps: int) -> Partition:
    """The partition of `units` units into `steps` blocks whose largest cost is the least; the earlier cuts on a tie.

    Exact where costs do not depend on the cuts after the block. Raises `InputError` unless 1 <= steps <= units.
    """
    if not 1 <= steps <= units:
        raise InputError(f"a chain of {units} units has between 1 and {units} blocks, not {steps}")

    @functools.cache
    def rest(k: int, i: int) -> Partition:
        ends = [units] if k == 1 else range(i + 1, units - k + 2)
        found = [joined(i, rest(k - 1, j) if k > 1 else Partition((units,), ())) for j in ends]
        return min(found, key=lambda partition: partition.peak)

    def joined(i: int, after: Partition) -> Partition:
        return Partition((i, *after.cuts), (cost(i, after.cuts), *after.costs))

    return rest(steps, 0)


def fewest(units: int, cost: Cost, budget: float, most: int | None = None) -> Partition:
    """The partition of fewest blocks (at most `most`) none of which costs more than `budget`.

    Raises `InputError` naming the smallest need and its step when there is none.
    """
    closest: Partition | None = None
    for steps in range(1, (most or units) + 1):
        found = best(units, cost, steps)
        if found.peak <= budget:
            return found
        closest = found if closest is None or found.peak < closest.peak else closest
    assert closest is not None
    step = closest.costs.index(closest.peak) + 1
    raise InputError(
        f"no partition into at most {most or units} blocks fits {_mib(budget)}: the least need is "
        f"{_mib(closest.peak)}, in step {step} of the cuts {closest.cuts}: take smaller batches or a narrower model"
    )


def _mib(bytes: float) -> str:
    return f"{bytes / 2**20:.1f} MiB" if math.isfinite(bytes) else "any memory"


def step_cost(spec: Spec, task: Task, optimiser: SGD, n: int) -> Cost:
    """The predicted peak of a step in bytes at batches of `n` rows, each of its kind predicted once."""
    emitted = [(wide, len(shape)) for wide, shape in zip(chain.widths(spec), chain.shapes(spec), strict=True)]
    known: dict[tuple[object, ...], float] = {}

    def cost(i: int, rest: tuple[int, ...]) -> float:
        kind = (i, rest[0], *(emitted[cut - 1] for cut in rest[1:]))  # where cuts lie matters by the proxies' shapes
        if kind not in known:
            known[kind] = predict(stages.step(_with_step(spec, i, rest), task, optimiser, n)).bytes
        return known[kind]

    return cost


def _with_step(spec: Spec, i: int, rest: tuple[int, ...]) -> SubModel:
    return SubModel(spec, (0, i, *rest) if i else (0, *rest), 2 if i else 1)


def partition(
    spec: Spec, task: Task, optimiser: SGD, n: int, steps: int | None = None, budget: float | None = None
) -> Partition:
    """A model's chain cut by predicted memory, costs in bytes: into `steps` blocks, or the fewest within `budget`.

    With both, the fewest of at most `steps`. Raises `InputError` where the chain breaks or nothing fits.
    """
    units, cost = len(chain.units(spec)), step_cost(spec, task, optimiser, n)
    if budget is not None:
        return fewest(units, cost, budget, steps)
    if steps is None:
        raise InputError("a partition needs a number of steps or a budget in bytes")
    return best(units, cost, steps)


def costs(spec: Spec, cuts: Sequence[int], task: Task, optimiser: SGD, n: int) -> Partition:
    """Given cuts with the predicted peak of each of their steps."""
    cost = step_cost(spec, task, optimiser, n)
    return Partition(tuple(cuts), tuple(cost(i, tuple(cuts[t + 1 :])) for t, i in enumerate(cuts[:-1])))


def for_fleet(
    spec: Spec, task: Task, optimiser: SGD, n: int, budgets: Sequence[int | None], most: int, rho: float
) -> Partition:
    """The fewest blocks, at most `most`, each step of which fits the memory of ceil(rho · N) clients or more.

    Args:
        budgets: of the N clients in bytes, None without one; `needs.HEADROOM` is left in each.

    Where so many clients are without a budget any number of blocks would do: there are `most`. Raises `InputError`
    where the chain breaks or no partition is fine enough.
    """
    most = min(most, len(chain.units(spec)))
    budget = sorted(budgets, key=lambda b: math.inf if b is None else b)[-math.ceil(rho * len(budgets))]
    return partition(spec, task, optimiser, n, most, None if budget is None else budget / HEADROOM)


def read(cuts: str, spec: Spec) -> tuple[int, ...]:
    """Cuts as they are written down: "paper" for the architecture's own, or units, "0,3,5,7,9"."""
    if cuts == "paper":
        return chain.cuts(spec)
    if not re.fullmatch(r"\d+(,\d+)*", cuts):
        raise InputError(f"cuts = {cuts!r} is refused: it should be paper, auto or units such as 0,3,5,7,9")
    return tuple(map(int, cuts.split(",")))
