"""A reference against the other methods of a comparison: differences paired by seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..summary import difference
from .records import Method


@dataclass(frozen=True)
class Gap:
    """`reference` minus `other`, accuracies in 0..1; `half` is the half-width of Student's 95 % interval over seeds."""

    reference: str
    other: str
    mean: float
    half: float | None
    seeds: int

    @property
    def settled(self) -> bool:
        """Whether the interval excludes 0."""
        return self.half is not None and abs(self.mean) > self.half


def gap(reference: Method, other: Method) -> Gap:
    """Over the seeds both have. Where their means are not listed, what the row itself says of its difference."""
    if paired := difference(reference.by_seed, other.by_seed, other.method):
        return Gap(reference.method, other.method, paired["mean"], paired["ci95"], len(paired["per_seed"]))
    told = other.difference
    if told and told.to == reference.method and told.mean is not None:
        return Gap(reference.method, other.method, -told.mean, told.ci95, len(told.per_seed) or len(other.seeds))
    return Gap(reference.method, other.method, (reference.mean or 0) - (other.mean or 0), None, 0)


def reference_name(methods: Iterable[Method]) -> str | None:
    """The method that the others' differences are to."""
    return next((m.difference.to for m in methods if m.difference), None)


def named(methods: Iterable[Method], name: str | None) -> Method | None:
    return next((m for m in methods if m.method == name), None)


def ranked(methods: Iterable[Method]) -> list[Method]:
    """Those that finished, by their mean; equals in the order given."""
    return sorted((m for m in methods if not m.failed), key=lambda m: -(m.mean or 0))


def best_other(methods: Iterable[Method], reference: str, rivals: Sequence[str] = ()) -> Method | None:
    """The finished method with the highest mean but the reference, among `rivals` where some are named."""
    others = (m for m in ranked(methods) if m.method != reference and (not rivals or m.method in rivals))
    return next(others, None)
