"""The methods by name. Adding one takes one file and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import InputError
from ..plugins import load_object
from ..protocol import Algorithm
from .fedavg import FedAvg
from .pfedafm import PFedAFM
from .standalone import Standalone

ALGORITHMS: Mapping[str, type[Algorithm[Any, Any, Any]]] = {
    "pfedafm": PFedAFM,
    "fedavg": FedAvg,
    "standalone": Standalone,
}


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
