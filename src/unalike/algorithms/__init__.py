"""The methods by name. Adding one takes one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..errors import InputError
from ..impressions.wrapper import WithImpressions
from ..plugins import load_object
from ..protocol import Algorithm


class Catalogue(Mapping[str, type[Algorithm[Any, Any, Any]]]):
    """Name to class, where "file:Class" of this folder is imported when it is asked for."""

    def __init__(self, places: Mapping[str, str]) -> None:
        self._places = places

    def __getitem__(self, name: str) -> type[Algorithm[Any, Any, Any]]:
        module, _, kind = self._places[name].partition(":")
        found: type[Algorithm[Any, Any, Any]] = getattr(importlib.import_module(f".{module}", __name__), kind)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


ALGORITHMS = Catalogue(
    {
        "pfedafm": "pfedafm:PFedAFM",
        "fedavg": "fedavg:FedAvg",
        "standalone": "standalone:Standalone",
        "lg-fedavg": "lg_fedavg:LGFedAvg",
        "fd": "fd:FD",
        "fedproto": "fedproto:FedProto",
        "fml": "fml:FML",
        "fedkd": "fedkd:FedKD",
        "fedapen": "fedapen:FedAPEN",
        "fedavg-ft": "fedavg_ft:FedAvgFT",
        "fedprox": "fedprox:FedProx",
        "fedbn": "fedbn:FedBN",
        "fedper": "fedper:FedPer",
        "fedrep": "fedrep:FedRep",
        "ditto": "ditto:Ditto",
        "scaffold": "scaffold:Scaffold",
        "fedcurv": "fedcurv:FedCurv",
        "vhl": "vhl:VHL",
        "profl": "profl:ProFL",
        "allsmall": "allsmall:AllSmall",
        "exclusivefl": "exclusivefl:ExclusiveFL",
        "heterofl": "heterofl:HeteroFL",
        "fedrolex": "fedrolex:FedRolex",
        "depthfl": "depthfl:DepthFL",
        "fedimpres": "fedimpres:FedImpres",
        "feddpa": "feddpa:FedDPA",
        "fedit": "fedit:FedIT",
        "fedlora": "fedlora:FedLora",
        "local-lora": "local_lora:LocalLora",
        "centralized-lora": "centralized_lora:CentralizedLora",
        "feddat": "feddat:FedDAT",
        "fedavg-adapter": "fedavg_peft:FedAvgAdapter",
        "fedavg-lora": "fedavg_peft:FedAvgLora",
        "fedavg-prompt": "fedavg_peft:FedAvgPrompt",
        "fedavg-bias": "fedavg_peft:FedAvgBias",
        "fedavg-norm": "fedavg_peft:FedAvgNorm",
        "head-only": "head_only:HeadOnly",
        "local-adapter": "local_adapter:LocalAdapter",
        "centralized-adapter": "centralized_adapter:CentralizedAdapter",
    }
)


def find(name: str) -> type[Algorithm[Any, Any, Any]]:
    """The class of a method: a name in `ALGORITHMS`, "file.py:Class" or "package.module:Class"."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    if ":" not in name:
        raise InputError(f"unknown method {name!r}: it is none of {', '.join(ALGORITHMS)}, nor file.py:Class")
    found = load_object(name)
    if not (isinstance(found, type) and issubclass(found, Algorithm)):
        raise InputError(f"{name} is not a subclass of unalike.Algorithm")
    return found


def build(name: str, parameters: Mapping[str, Any], **met: Any) -> Algorithm[Any, Any, Any]:
    """The method `name` with its parameters, and with impressions around it where it is to have them.

    Args:
        met: what its federation fills in: models and task.
    """
    made = find(name)(**parameters, **met)
    return WithImpressions.around(made) if made.impressions else made


def parameters_of(algorithm: Algorithm[Any, Any, Any], names: Iterable[str]) -> dict[str, Any]:
    """The values of a method's own parameters, also of one that has impressions around it."""
    inner = algorithm.inner if isinstance(algorithm, WithImpressions) else algorithm
    return {name: getattr(inner, name) for name in names}
