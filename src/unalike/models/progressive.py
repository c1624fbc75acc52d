"""The sub-models of progressive training: frozen blocks, one that trains, and stand-ins for those after it.

    step t:  x ─► blocks 1..t-1 (frozen) ─► block t (active) ─► proxies t+1..T ─► mean ─► header
    mapping: the same with proxy t in place of block t, taught by the step itself

A proxy is one convolution (kernel 3, stride 2, padding 1, no bias, nothing after it); on tokens and vectors it is one
linear map without bias. Weights are four trees, each a branch of its own:

    frozen, active   leaves of the model's "extractor" branch, under the same names
    proxies          {"3": {"weight"}, "4": {"weight"}}: for the missing blocks, by their number from 1
    header           the model's "header" branch: the same shape at every step, as is that of each proxy

Without proxies (`proxied` is False) the mean of what block t emits goes to a linear header of its own width.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..protocol import Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree, clone
from . import chain, head
from . import initial as initial_model

AT_ONCE = (16, 4)
"""Rows that pass the frozen blocks at once: the first that a client's memory holds."""


@dataclass(frozen=True, slots=True)
class SubModel:
    """Step `step` (from 1) of a model cut at `cuts`."""

    spec: Spec
    cuts: tuple[int, ...]
    step: int
    proxied: bool = True
    """Whether proxies stand in for the blocks after the active one."""
    at_once: int = AT_ONCE[0]
    """Rows that pass the frozen blocks at once."""

    def __post_init__(self) -> None:
        chain.require_cuts(self.spec, self.cuts)
        if not 1 <= self.step <= self.steps:
            raise InputError(f"model {self.spec.name} is cut into {self.steps} blocks: there is no step {self.step}")

    @property
    def steps(self) -> int:
        """T: the number of blocks."""
        return len(self.cuts) - 1

    @property
    def start(self) -> int:
        """First unit of the active block."""
        return self.cuts[self.step - 1]

    @property
    def stop(self) -> int:
        """First unit after the active block."""
        return self.cuts[self.step]

    @property
    def missing(self) -> range:
        """Numbers of the blocks that proxies stand in for."""
        return range(self.step + 1, self.steps + 1 if self.proxied else self.step + 1)

    def proxy_shape(self, block: int) -> tuple[int, ...]:
        """Weight shape of the proxy for `block`: from what block - 1 emits to what `block` emits, in channels.

        It is the same at every step. Block `step` itself has one too: the proxy that mapping teaches.
        """
        if not 2 <= block <= self.steps:
            raise InputError(f"block {block} of {self.steps} has no proxy: those of 2 to {self.steps} have one")
        wide, before = chain.widths(self.spec), self.cuts[block - 1] - 1
        return chain.proxy_shape(self.spec, before, wide[before], wide[self.cuts[block] - 1])


def initial(sub: SubModel, key: Key) -> dict[str, Any]:
    """First weights {"frozen", "active", "proxies", "header"}: the model's own of `key`, and fresh proxies."""
    return {**split(sub, initial_model(sub.spec, key)["extractor"]), **output_module(sub, key)}


def split(sub: SubModel, extractor: Tree) -> dict[str, Any]:
    """{"frozen", "active"} of a whole "extractor" branch: the same tensors. What comes after is left out."""
    frozen = chain.part(sub.spec, extractor, 0, sub.start)
    return {"frozen": frozen, "active": chain.part(sub.spec, extractor, sub.start, sub.stop)}


def blocks(sub: SubModel, extractor: Tree) -> dict[str, Any]:
    """All blocks of a whole "extractor" branch by their number from 1: the same tensors."""
    bounds = enumerate(itertools.pairwise(sub.cuts), start=1)
    return {str(b): chain.part(sub.spec, extractor, start, stop) for b, (start, stop) in bounds}


def output_module(sub: SubModel, key: Key, known: Tree | None = None) -> dict[str, Any]:
    """{"proxies", "header"} of the step: those of `known` that it has, the others fresh ones of `key`.

    A fresh header is the model's own of `key`, but without proxies it is one of the active block's width. Raises
    `InputError` where that would have to be more than one linear layer.
    """
    known = known or {"header": _header(sub, key)}
    proxies = {str(b): known.get("proxies", {}).get(str(b)) or proxy(sub, b, key / "proxy" / b) for b in sub.missing}
    return {"proxies": proxies, "header": known["header"]}


def _header(sub: SubModel, key: Key) -> Tree:
    whole: dict[str, Tensor] = initial_model(sub.spec, key)["header"]
    if sub.proxied or sub.step == sub.steps:
        return whole
    if whole.keys() - {"weight", "bias"} or whole["weight"].ndim != 2:
        raise InputError(f"model {sub.spec.name} needs proxies: its header is more than one linear layer")
    with (key / "header" / sub.step).scope():
        layer = nn.Linear(chain.widths(sub.spec)[sub.stop - 1], len(whole["weight"]), "bias" in whole)
    return {name: leaf.detach() for name, leaf in layer.named_parameters()}


def student(sub: SubModel, key: Key, header: Tree) -> dict[str, Any]:
    """What mapping trains: a fresh "proxy" for the active block, and in the last step a copy of the "header"."""
    along = {"header": clone(header)} if sub.step == sub.steps else {}
    return {"proxy": proxy(sub, sub.step, key / "proxy" / sub.step), **along}


def mapped(sub: SubModel, output: Tree, student: Tree) -> dict[str, Any]:
    """{"proxies", "header"} of the step before, when mapping has taught the student in the place of the block."""
    proxies = {**output.get("proxies", {}), str(sub.step): student["proxy"]}
    return {"proxies": proxies, "header": student.get("header", output["header"])}


def proxy(sub: SubModel, block: int, key: Key) -> dict[str, Tensor]:
    """Fresh weights {"weight"} of the proxy for `block`, with PyTorch's initialisation of that layer."""
    weight = torch.empty(sub.proxy_shape(block))
    with key.scope():
        nn.init.kaiming_uniform_(weight, a=5**0.5)
    return {"weight": weight}


def prefix(sub: SubModel, frozen: Tree, x: Tensor, train: bool = False) -> Tensor:
    """Blocks 1..t-1 without gradients; `train` has them normalise by the batch, and write their statistics.

    In evaluation mode rows do not know of each other: they pass by `sub.at_once`, which takes the memory of so many.
    """
    with torch.no_grad():
        if train or len(x) <= sub.at_once or not sub.start:
            return chain.run(sub.spec, 0, sub.start, frozen, x, train)
        whole: Tensor | None = None
        for at in range(0, len(x), sub.at_once):
            y = chain.run(sub.spec, 0, sub.start, frozen, x[at : at + sub.at_once])
            whole = y.new_empty(len(x), *y.shape[1:]) if whole is None else whole
            whole[at : at + sub.at_once] = y
        assert whole is not None
        return whole


def after(sub: SubModel, proxies: Sequence[Tree], header: Tree, y: Tensor, train: bool = False) -> Tensor:
    """What the last block emits to logits: each of `proxies` in turn, the mean over places, the header."""
    tokens = len(sub.spec.input) != 2
    for given in proxies:
        y = _stand_in(given["weight"], y, tokens)
    return head(sub.spec, header, _mean_over_places(y, tokens), train)


def _stand_in(weight: Tensor, y: Tensor, tokens: bool) -> Tensor:
    if weight.ndim > 2:
        convolution = F.conv2d if weight.ndim == 4 else F.conv1d
        return convolution(y, weight, stride=2, padding=1)
    return F.linear(y if y.ndim == 3 and tokens else _mean_over_places(y, tokens), weight)


def _mean_over_places(y: Tensor, tokens: bool) -> Tensor:
    if y.ndim == 3 and tokens:
        return y.mean(1)
    return y.flatten(2).mean(2) if y.ndim > 2 else y


def forward(sub: SubModel, weights: Tree, x: Tensor, train: bool = False, frozen_train: bool = False) -> Tensor:
    """Logits (B, classes) of the step for x (B, *spec.input). `weights`: all four branches.

    `train` is the mode of block and header, `frozen_train` that of the frozen blocks, which never get gradients.
    """
    y = prefix(sub, weights["frozen"], x, frozen_train)
    return _from_block(sub, weights, y, train)


def _from_block(sub: SubModel, weights: Tree, y: Tensor, train: bool) -> Tensor:
    y = chain.run(sub.spec, sub.start, sub.stop, weights["active"], y, train)
    return after(sub, _in_order(sub, weights), weights["header"], y, train)


def _in_order(sub: SubModel, weights: Tree) -> list[Tree]:
    return [weights["proxies"][str(block)] for block in sub.missing]


def supervised_loss(
    sub: SubModel, task: Task, params: Tree, given: Tree, batch: Tree, frozen_train: bool = False
) -> Tensor:
    """The task's loss: "active", "proxies" and "header" in params["model"], "frozen" in `given`."""
    weights = {**params["model"], "frozen": given["frozen"]}
    return task.loss(forward(sub, weights, batch["x"], train=True, frozen_train=frozen_train), batch)


def mapping_loss(sub: SubModel, params: Tree, given: Tree, batch: Tree) -> Tensor:
    """mean (student - teacher)² of the logits, (B, classes): params["model"]["proxy"] learns to be block t.

    `given`: the step's four branches, which are the teacher and the student's other parts. A "header" in
    params["model"] is the student's own and trains along. The frozen blocks run once for both.
    """
    y = prefix(sub, given["frozen"], batch["x"])
    with torch.no_grad():
        taught = _from_block(sub, given, y, train=False)
    header = params["model"].get("header", given["header"])
    proxies = [params["model"]["proxy"], *_in_order(sub, given)]
    return (after(sub, proxies, header, y, train=True) - taught).square().mean()
