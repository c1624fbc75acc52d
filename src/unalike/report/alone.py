"""The methods by which each client trains for itself: what federating has to beat."""

from __future__ import annotations

from collections.abc import Sequence

ALONE = {"": "standalone", "lm:": "local-lora", "vl:": "local-adapter"}
"""What names of models begin with to the method for such models."""
BASELINES = tuple(ALONE.values())


def alone_with(models: Sequence[str]) -> str:
    """The method for clients that have these models."""
    return next((ALONE[mark] for mark in ALONE if mark and any(name.startswith(mark) for name in models)), ALONE[""])
