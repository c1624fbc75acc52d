"""A network as a chain of units: which pieces follow one another, and where a chain breaks. Knows modules only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from ..errors import InputError


class Chain(nn.Sequential):
    """Named units one after another, and pieces without weights after the last (pooling, flattening).

    `cuts` are the block boundaries of the architecture's paper as positions among the units: (0, 3, 5, 7, 9) makes four
    blocks of nine units. Empty where there are none.
    """

    def __init__(self, units: Mapping[str, nn.Module], tail: Sequence[nn.Module], cuts: Sequence[int] = ()) -> None:
        super().__init__()
        for name, unit in units.items():
            self.add_module(name, unit)
        for i, piece in enumerate(tail):
            self.add_module(f"tail{i}", piece)
        self.units, self.cuts = tuple(units), tuple(cuts)


@dataclass(frozen=True, slots=True)
class Unit:
    """Smallest piece that blocks are made of."""

    name: str
    """Path of its first layer with weights."""
    module: nn.Module


@dataclass(frozen=True, slots=True)
class _Piece:
    name: str
    module: nn.Module
    starts: bool
    """Whether a unit begins here."""


def units(extractor: nn.Module, where: str) -> list[Unit]:
    """The units of an extractor, in order. Raises `InputError` saying where the chain breaks.

    A `Chain` names its own. In any other `nn.Sequential`, nested ones included, a unit begins at each piece with
    weights that is no normalisation. What has none (activation, pooling, dropout) belongs to the unit before it, and an
    `nn.Flatten` to the one after it, so that a unit emits maps for as long as there are any.
    """
    if not _is_sequential(extractor):
        raise InputError(
            f"{where} cannot be cut into blocks: the chain breaks at its extractor, a {type(extractor).__name__} with "
            "a forward of its own: make it an nn.Sequential of its units"
        )
    groups = _grouped(list(_pieces(extractor, "")))
    if len(groups) < 2:
        named = groups[0].name if groups else "none"
        raise InputError(f"{where} cannot be cut into blocks: its chain has a single unit with weights ({named})")
    _require_own_weights(groups, where)
    return groups


def own_cuts(extractor: nn.Module) -> tuple[int, ...]:
    """The cuts that the architecture brings along, () where it has none."""
    return next((m.cuts for m in extractor.modules() if isinstance(m, Chain)), ())


def _is_sequential(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _pieces(module: nn.Module, prefix: str) -> Iterator[_Piece]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        if isinstance(module, Chain):
            yield _Piece(path, child, name in module.units)
        elif _is_sequential(child):
            yield from _pieces(child, f"{path}.")
        else:
            yield _Piece(path, child, any(True for _ in child.parameters()) and not _is_normalisation(child))


def _is_normalisation(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm | nn.LayerNorm)


def _grouped(pieces: Sequence[_Piece]) -> list[Unit]:
    groups: list[list[_Piece]] = []
    waiting: list[_Piece] = []  # for the next unit
    for piece in pieces:
        if piece.starts:
            groups.append([*waiting, piece])
            waiting = []
        elif not groups or waiting or isinstance(piece.module, nn.Flatten):
            waiting.append(piece)
        else:
            groups[-1].append(piece)
    if groups:
        groups[-1] += waiting
    return [_unit(group) for group in groups]


def _unit(group: Sequence[_Piece]) -> Unit:
    name = next(piece.name for piece in group if piece.starts)
    return Unit(name, group[0].module if len(group) == 1 else nn.Sequential(*(piece.module for piece in group)))


def _require_own_weights(found: Sequence[Unit], where: str) -> None:
    owners: dict[int, str] = {}
    for unit in found:
        for parameter in unit.module.parameters():
            other = owners.setdefault(id(parameter), unit.name)
            if other != unit.name:
                raise InputError(
                    f"{where} cannot be cut into blocks: the chain breaks at unit {unit.name}, which shares a weight "
                    f"with {other}: give each unit its own"
                )
