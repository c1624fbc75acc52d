"""FedDAT whose head is trained once a batch, for ways.toml: by both halves it has twice as many steps as a rival's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from unalike.algorithms.feddat import FedDAT
from unalike.local import Step
from unalike.protocol import ClientInfo


@dataclass(frozen=True, kw_only=True)
class HeadOfShared(FedDAT):
    """The head is trained where the shared adapter is."""

    def steps(self, info: ClientInfo, alpha: float) -> Sequence[Step]:
        first, second = super().steps(info, alpha)
        return [first, replace(second, trains={"local": second.trains["local"]})]


@dataclass(frozen=True, kw_only=True)
class HeadOfDual(FedDAT):
    """The head is trained where the dual-adapter teacher is."""

    def steps(self, info: ClientInfo, alpha: float) -> Sequence[Step]:
        first, second = super().steps(info, alpha)
        return [replace(first, trains={"shared": first.trains["shared"]}), second]
