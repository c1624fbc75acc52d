"""What memory is asked for: some tensors, and a function that works with them.

The same `Work` is predicted (`predict`), counted on real tensors (`count`) and measured (`measure`). Its tensors may
lie on the meta device: then they are shapes only, and are made where they are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import local, tree
from ..local import SGD, Loss, Memory, Step, is_trainable
from ..optimisers import Optimiser
from ..protocol import Batch
from ..rng import Key
from ..tree import Tree

Mark: TypeAlias = Callable[[str, Iterable[Tensor]], None]
"""mark(role, tensors): tells the tracker what storages are for. Roles: `ROLES`; what is not marked is activations."""

ROLES = ("parameters", "buffers", "batch", "gradients", "optimiser", "activations")


@dataclass(frozen=True, slots=True)
class Work:
    """Tensors, and what is done with them: `run(held, mark)`."""

    held: Mapping[str, Tree]
    """Trees that are there before the work begins and until it ends; those below "batch" are data."""
    run: Callable[[Mapping[str, Any], Mark], object]
    """A function of the trees it is given: it captures no tensor."""
    steps: int = 1
    """How many equal steps a run has, for operations a step."""

    def roles(self) -> dict[str, str]:
        """Name of each held leaf, as `tree.flatten` has it, to its role."""
        return {name: _role(name, leaf) for name, leaf in tree.flatten(self.held).items()}


def _role(name: str, leaf: Tensor) -> str:
    if name.startswith("batch/"):
        return "batch"
    return "parameters" if is_trainable(name, leaf) else "buffers"


def nothing(role: str, tensors: Iterable[Tensor]) -> None:
    """The mark of a run that is only measured."""


def rows(input: Sequence[int], n: int) -> dict[str, Tensor]:
    """The shapes of a labelled batch: "x" (n, *input) float32 and "y" (n,) int64, on the meta device."""
    return {"x": torch.empty(n, *input, device="meta"), "y": torch.empty(n, dtype=torch.int64, device="meta")}


def shapes_of(leaves: Tree) -> dict[str, Any]:
    """The tree on the meta device: shapes without memory."""
    return tree.to(leaves, torch.device("meta"))


def training(steps: Sequence[Step], params: Tree, given: Tree, batch: Batch, batches: int = 2) -> Work:
    """A client's visit, by `local.train`: `batches` batches, since momentum appears only after the first.

    Counted are `params` as they arrived, the copies that train, gradients, and what the optimisers keep. The client's
    stored rows are not: of them only the batch at hand.
    """

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        watched = [_watched(step, mark) for step in steps]
        return local.train(watched, held["params"], held["given"], [held["batch"]] * batches, Key.root(0))

    return Work({"params": params, "given": given, "batch": batch}, run, batches)


@dataclass(frozen=True, slots=True)
class _Watched:
    """An optimiser that says which tensors are gradients, and which it keeps."""

    inner: Optimiser
    mark: Mark

    def update(self, weights: list[Tensor], gradients: list[Tensor], memory: Memory) -> None:
        """See `Optimiser`."""
        self.mark("gradients", gradients)
        self.inner.update(weights, gradients, memory)
        for kept in memory.values():
            self.mark("optimiser", kept)


def _watched(step: Step, mark: Mark) -> Step:
    def loss(params: Tree, given: Tree, batch: Batch) -> Any:
        for name, leaf in tree.flatten(params).items():
            mark(_role(name, leaf), [leaf])
        return step.loss(params, given, batch)

    return replace(step, loss=loss, trains={branch: _Watched(o, mark) for branch, o in step.trains.items()})


def sgd(loss: Loss, params: Tree, optimiser: SGD, batch: Batch, given: Tree | None = None) -> Work:
    """`training` in its simplest case: one loss, one optimiser for each branch of `params`.

    Distillation is this as well: the teacher is in `given`, and the loss runs it without gradients.
    """
    return training([Step(loss, dict.fromkeys(params, optimiser))], params, given or {}, batch)


def evaluation(function: Callable[[Tree, Batch], object], weights: Tree, batch: Batch) -> Work:
    """`function(weights, batch)` without gradients."""

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        with torch.no_grad():
            return function(held["weights"], held["batch"])

    return Work({"weights": weights, "batch": batch}, run)


def module_training(
    module: nn.Module,
    loss: Callable[[Any, Batch], Tensor],
    optimiser: Callable[[list[Tensor]], torch.optim.Optimizer],
    batch: Batch,
    batches: int = 2,
) -> Work:
    """The plain loop of PyTorch on any module, in the mode it is in: zero_grad, forward, backward, step.

    Args:
        loss: of the module's outputs for batch["x"], beside the batch.
        optimiser: constructor from the parameters that train, such as `functools.partial(torch.optim.Adam, lr=0.1)`.

    The module itself is not changed, and may lie on the meta device.
    """

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        frozen = {name for name, parameter in module.named_parameters() if not parameter.requires_grad}
        tensors = {n: leaf.detach().requires_grad_(n not in frozen) for n, leaf in held["parameters"].items()}
        trained = [leaf for leaf in tensors.values() if leaf.requires_grad]
        taker, everything = optimiser(trained), {**tensors, **_plain(held["buffers"])}
        for _ in range(batches):
            taker.zero_grad(set_to_none=True)
            loss(functional_call(module, everything, (held["batch"]["x"],)), held["batch"]).backward()  # type: ignore[no-untyped-call]
            mark("gradients", [leaf.grad for leaf in trained if leaf.grad is not None])
            taker.step()
            mark("optimiser", (kept for kept in _tensors(taker.state.values())))
        return None

    return Work({**_state(module), "batch": batch}, run, batches)


def module_evaluation(module: nn.Module, batch: Batch) -> Work:
    """A forward pass of any module without gradients, in the mode it is in."""

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        with torch.no_grad():
            everything = {**held["parameters"], **_plain(held["buffers"])}
            return functional_call(module, everything, (held["batch"]["x"],))

    return Work({**_state(module), "batch": batch}, run)


def _state(module: nn.Module) -> dict[str, Tree]:
    parameters = {name: leaf.detach() for name, leaf in module.named_parameters()}
    return {"parameters": parameters, "buffers": {f"~{name}": leaf for name, leaf in module.named_buffers()}}


def _plain(buffers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix("~"): leaf for name, leaf in buffers.items()}


def _tensors(states: Iterable[Mapping[str, Any]]) -> list[Tensor]:
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def materialised(work: Work, device: torch.device) -> dict[str, Any]:
    """Copies of the held trees on `device`, every page written. What lies on the meta device gets values.

    Floating leaves are drawn from [0, 0.1), which is a variance as well; others are zeros: label 0, an empty count.
    """
    generator = Key.root(0).torch()

    def real(leaf: Tensor) -> Tensor:
        if not leaf.is_meta:
            return leaf.detach().to(device, copy=True)
        made = torch.empty(leaf.shape, dtype=leaf.dtype)
        return (made.uniform_(0, 0.1, generator=generator) if leaf.is_floating_point() else made.fill_(0)).to(device)

    return tree.map_leaves(real, work.held)
