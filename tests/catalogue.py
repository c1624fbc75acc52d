"""The methods by what they are for."""

from __future__ import annotations

from unalike import ALGORITHMS

SPEAKING = [name for name, kind in ALGORITHMS.items() if getattr(kind, "speaks", False)]
"""Those for texts."""
ANSWERING = [name for name, kind in ALGORITHMS.items() if getattr(kind, "sees", False)]
"""Those for questions about images."""
NETWORKS = [name for name in ALGORITHMS if name not in (*SPEAKING, *ANSWERING)]
"""Those for rows of numbers."""
