"""Where the numbers of many runs come from: commits, seeds, machines, versions."""

from __future__ import annotations

from .records import Comparison, Grid, Manifest
from .units import counted, listing


def origin(found: Grid | Comparison) -> list[tuple[str, str]]:
    """Terms with what is known, each value once."""
    kept = found.manifests
    return [
        ("seeds", ", ".join(map(str, sorted(found.seeds)))),
        ("runs", counted(len(kept), "run") if kept else ""),
        ("simulated shift", listing(list(dict.fromkeys(one.simulated_shift for one in kept if one.simulated_shift)))),
        ("commit", listing(list(dict.fromkeys(one.commit for one in kept if one.commit)))),
        ("machine", "; ".join(dict.fromkeys(filter(None, map(_machine, kept))))),
        ("versions", "; ".join(dict.fromkeys(filter(None, map(_versions, kept))))),
    ]


def _machine(one: Manifest) -> str:
    """Linux, Intel Xeon, 2 cores, cpu"""
    return ", ".join(
        f"{value} cores" if name in {"cores", "cpus"} else str(value) for name, value in one.machine.items()
    )


def _versions(one: Manifest) -> str:
    return ", ".join(f"{name} {version}" for name, version in one.versions.items())
