"""The methods by which each client trains for itself: what federating has to beat."""

from __future__ import annotations

from collections.abc import Sequence

from ..plugins import LANGUAGE, VISION_LANGUAGE

NETWORKS = "standalone"
FOUNDATIONS = {LANGUAGE: "local-lora", VISION_LANGUAGE: "local-adapter"}
"""What names of models begin with to the method for such models."""
BASELINES = (NETWORKS, *FOUNDATIONS.values())


def alone_with(models: Sequence[str]) -> str:
    """The method for clients that have these models; in a federation all are of one kind."""
    return next((FOUNDATIONS[mark] for mark in FOUNDATIONS if models and models[0].startswith(mark)), NETWORKS)
