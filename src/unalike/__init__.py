"""unalike: federated learning among clients that do not match."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import algorithms, data, local, models, tree
    from .algorithms import ALGORITHMS
    from .api import Result, prepare, resume, run
    from .check import check_algorithm
    from .comparison import compare
    from .data.federation import Federation, federation
    from .errors import InputError, RunError, UnalikeError
    from .personal import PersonalModel, load
    from .protocol import Algorithm, Arrival, ClientInfo, Job, Spec, Update
    from .rng import Key

_MODULES = ("algorithms", "data", "local", "models", "tree")
"""Modules that a method of one's own is written with."""
_HOMES = {
    "ALGORITHMS": "algorithms",
    "Algorithm": "protocol",
    "Arrival": "protocol",
    "ClientInfo": "protocol",
    "Federation": "data.federation",
    "InputError": "errors",
    "Job": "protocol",
    "Key": "rng",
    "PersonalModel": "personal",
    "Result": "api",
    "RunError": "errors",
    "Spec": "protocol",
    "UnalikeError": "errors",
    "Update": "protocol",
    "check_algorithm": "check",
    "compare": "comparison",
    "federation": "data.federation",
    "load": "personal",
    "prepare": "api",
    "resume": "api",
    "run": "api",
}
"""Public name to the module it lives in; imported on first use, so that reports and `--help` do not load torch."""

__all__ = [
    "ALGORITHMS",
    "Algorithm",
    "Arrival",
    "ClientInfo",
    "Federation",
    "InputError",
    "Job",
    "Key",
    "PersonalModel",
    "Result",
    "RunError",
    "Spec",
    "UnalikeError",
    "Update",
    "algorithms",
    "check_algorithm",
    "compare",
    "data",
    "federation",
    "load",
    "local",
    "models",
    "prepare",
    "resume",
    "run",
    "tree",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'unalike' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
