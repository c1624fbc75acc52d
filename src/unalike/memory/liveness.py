"""The tracker: which storages live when, seen from the operations that make them."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from .kernels import workspace

_READ = torch.ops.aten._local_scalar_dense.default


class Liveness(TorchDispatchMode):
    """Records the bytes of every storage that is marked, or made by an operation, from its birth to its death.

    A storage is found by the tensors on it and followed by a weak reference, so a view costs nothing and a tensor that
    only autograd keeps still counts. What an operation takes within itself no tensor tells: it is added from formulas
    (`kernels`). `flops` adds up what torch's formulas give for each operation.

    Args:
        pretend: the tensors are fake: whoever reads a number from one gets 1.
        details: keep what `peak` needs, which grows with every operation, and count `flops`; False leaves only `most`.
    """

    def __init__(self, pretend: bool = False, details: bool = True) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pretend, self.flops = pretend, 0
        self.events: list[tuple[int, int]] | None = [] if details else None
        """(storage, change of its bytes), in order."""
        self.now = self.most = 0
        """Bytes that live, and the most that have lived at once."""
        self._roles: dict[int, str] = {}
        self._living: dict[int, _Living] = {}
        self._ignored: set[int] = set()
        self._born = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.pretend and func is _READ:
            return 1 if not args[0].is_floating_point() else 1.0
        outputs = func(*args, **(kwargs or {}))
        if self.events is not None and (formula := flop_registry.get(func._overloadpacket)):
            self.flops += formula(*args, **(kwargs or {}), out_val=outputs)
        for leaf in (outputs,) if isinstance(outputs, Tensor) else tree_leaves(outputs):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        if within := workspace(func, args, outputs):
            if self.events is not None:
                self._roles[self._born] = "workspace"
            self._change(self._born, within)
            self._change(self._born, -within)
            self._born += 1
        return outputs

    def ignore(self, tensors: Iterable[Tensor]) -> None:
        """Do not count the storages of `tensors`, which stay until the end, nor views of them."""
        self._ignored |= {tensor.untyped_storage()._cdata for tensor in tensors}

    def mark(self, role: str, tensors: Iterable[Tensor]) -> None:
        """Say what the storages of `tensors` are for; the first mark of a storage holds. Unknown ones are born now."""
        for tensor in tensors:
            number = self._follow(tensor)
            if number is not None:
                self._roles.setdefault(number, role)

    def peak(self) -> dict[str, int]:
        """Bytes by role at the first moment at which the most bytes lived; what was not marked is "activations"."""
        by_role: dict[str, int] = {}
        now = most = 0
        found: dict[str, int] = {}
        for number, change in self.events or ():
            role = self._roles.get(number, "activations")
            by_role[role] = by_role.get(role, 0) + change
            now += change
            if now > most:
                most, found = now, dict(by_role)
        return found

    def close(self) -> None:
        """Stop following: deaths after the end are no events."""
        self._living.clear()

    def _follow(self, tensor: Tensor) -> int | None:
        if tensor.layout is not torch.strided:
            return None
        storage = tensor.untyped_storage()
        if storage._cdata in self._ignored:
            return None
        known, size = self._living.get(storage._cdata), storage.nbytes()
        if known is None:
            known = self._living[storage._cdata] = _Living(self._born, 0)
            known.reference = weakref.ref(storage, functools.partial(self._died, storage._cdata))
            self._born += 1
        if size != known.bytes:
            self._change(known.number, size - known.bytes)
            known.bytes = size
        return known.number

    def _died(self, address: int, reference: weakref.ref[Any]) -> None:
        known = self._living.pop(address, None)
        if known is not None:
            self._change(known.number, -known.bytes)

    def _change(self, number: int, bytes: int) -> None:
        self.now += bytes
        if self.now > self.most:
            self.most = self.now
        if self.events is not None:
            self.events.append((number, bytes))


class _Living:
    """A storage that lives: its number, its bytes, and the reference that tells its death."""

    __slots__ = ("bytes", "number", "reference")

    def __init__(self, number: int, bytes: int) -> None:
        self.number, self.bytes = number, bytes
        self.reference: weakref.ref[Any] | None = None
