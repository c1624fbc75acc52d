"""Peak memory of a piece of work, predicted: it runs on fake tensors, which have shapes and lifetimes but no bytes.

The figure is that of live tensor storages, and of what convolutions take within themselves: what the same tracker
counts on real tensors, byte for byte (`count`). Not in it are the interpreter and its libraries.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    UnsupportedOperatorException,
)
from torch.overrides import TorchFunctionMode

from .. import tree
from ..errors import InputError
from ..models import on_real_tensors
from .liveness import Liveness
from .work import Work, materialised


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes at their peak, what they are for at that moment, and operations."""

    bytes: int
    """The sum of the seven below."""
    parameters: int
    """Weights as they arrived, and the copies that train."""
    buffers: int
    """Batch normalisation's statistics, frozen parameters counted among a tree's "~" leaves, and their copies."""
    batch: int
    gradients: int
    """Of parameters."""
    optimiser: int
    """What it keeps between steps: momenta, copies of gradients."""
    activations: int
    """Whatever else lives: outputs kept for the backward pass, their gradients, and what passes."""
    workspace: int
    """Of the convolution at work, if there is one."""
    flops: int
    """Floating-point operations of a step (a multiplication and an addition are two), by torch's formulas."""


@on_real_tensors
def predict(work: Work, device: str = "cpu") -> Peak:
    """The peak of `work` on `device`, nothing allocated. Numbers read from tensors are taken to be 1.

    A tracker around the call does not see it: a client that is watched may ask what it can do.

    Raises `InputError` for an LSTM on a CPU, for CUDA where there is none (fake tensors need its driver for a backward
    pass), for tensors that the work has captured instead of being given them, and when shapes depend on values, which
    fake tensors do not have.
    """
    if torch.device(device).type == "cuda" and not torch.cuda.is_available():
        raise InputError("memory on CUDA can be predicted only where CUDA is: predict for the CPU here")
    try:
        with FakeTensorMode(), _RefuseLSTM(device):
            held = tree.map_leaves(lambda leaf: _fake(leaf, device), work.held)
            return _tracked(work, held, Liveness(pretend=True))
    except (DataDependentOutputException, DynamicOutputShapeException, UnsupportedOperatorException) as error:
        raise InputError(
            f"memory cannot be predicted: {error} depends on the values of tensors: count or measure it"
        ) from error
    except AssertionError as error:
        if "to FakeTensors" not in str(error):
            raise
        raise InputError(
            "memory cannot be predicted: the work uses a tensor that is not among those it holds"
        ) from error


class _RefuseLSTM(TorchFunctionMode):
    """On a CPU real LSTMs are a kernel of oneDNN with a large workspace; fake ones are not, and would need less."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.lstm and self.device == "cpu":
            raise InputError(
                "memory of an LSTM on a CPU cannot be predicted, its kernel keeps much of its own: measure it"
            )
        return func(*args, **(kwargs or {}))


def count(work: Work, device: str = "cpu") -> Peak:
    """What `predict` predicts, counted on real tensors: it takes the memory and the time of the work."""
    return _tracked(work, materialised(work, torch.device(device)), Liveness())


def _fake(leaf: Tensor, device: str) -> Tensor:
    return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device=device)


def _tracked(work: Work, held: dict[str, Any], tracker: Liveness) -> Peak:
    roles = work.roles()
    for name, leaf in tree.flatten(held).items():
        tracker.mark(roles[name], [leaf])
    with tracker:
        work.run(held, tracker.mark)
    tracker.close()
    found = tracker.peak()
    by_role = {name: found.get(name, 0) for name in Peak.__dataclass_fields__ if name not in ("bytes", "flops")}
    return Peak(bytes=sum(by_role.values()), **by_role, flops=tracker.flops // work.steps)
