"""Randomness that is derived, never advanced.

A `Key` stands for a path such as `seed / "round" / 3 / "client" / 7 / "batches"`. It holds only the SHA-256 chain of
that path, so whoever receives a key can derive what lies below it and nothing beside or above it. Because drawing
from a key does not change the key, no generator state is ever saved, the order of clients does not matter, and a draw
added in one place moves no draw in another.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def round_half_up(value: float) -> int:
    """How many to draw: 2.5 becomes 3 (Python's own `round` gives 2)."""
    return int(value + 0.5)


@dataclass(frozen=True, slots=True)
class Key:
    """A node of the tree of randomness: 32 bytes that reveal neither parent nor sibling."""

    digest: bytes

    @classmethod
    def root(cls, seed: int) -> Key:
        """The key of a whole run. `seed` is any integer."""
        return cls(hashlib.sha256(b"unalike/" + str(int(seed)).encode()).digest())

    def __truediv__(self, part: str | int) -> Key:
        """The child named `part`; 3 and "3" are different children."""
        label = f"{type(part).__name__}:{part}".encode()
        return Key(hashlib.sha256(self.digest + label).digest())

    def __repr__(self) -> str:
        return f"Key({self.digest.hex()[:8]}...)"

    @property
    def seed(self) -> int:
        """A seed in [0, 2**63) for a generator that is used once."""
        return int.from_bytes(self.digest[:8], "little") >> 1

    def numpy(self) -> np.random.Generator:
        """A fresh NumPy generator of this key."""
        return np.random.default_rng(self.seed)

    def torch(self) -> torch.Generator:
        """A fresh generator on the CPU: draws are the same whatever device computes."""
        import torch

        return torch.Generator().manual_seed(self.seed)

    @contextlib.contextmanager
    def scope(self) -> Iterator[None]:
        """Seed torch's global generators (dropout, initialisation) inside the block and restore them after it."""
        import torch

        cuda: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if cuda else []):
            torch.default_generator.manual_seed(self.seed)
            if cuda:
                torch.cuda.manual_seed_all(self.seed)
            yield
