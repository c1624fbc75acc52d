"""The methods by name. Adding one takes one file and one line here."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from ..errors import InputError
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
