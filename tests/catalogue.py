"""The methods by what they are for."""

from __future__ import annotations

from unalike import ALGORITHMS

SPEAKING = [name for name, kind in ALGORITHMS.items() if getattr(kind, "speaks", False)]
"""Those for texts."""
NETWORKS = [name for name in ALGORITHMS if name not in SPEAKING]
"""Those for rows of numbers."""
