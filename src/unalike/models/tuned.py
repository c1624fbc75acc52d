"""What is trained beside frozen transformers, on any module that has some: bottleneck adapters, LoRA, biases, norms.

    adapter   h ← h + Up(ReLU(Down(h)))               after the feed-forward of every layer, residual included
    lora      W x ← W x + s B A x                     at the projections onto queries and values
    bias      every bias of the module is replaced    (BitFit)
    norm      weights and biases of every LayerNorm are replaced

Several adapters at once are averaged inside each layer, on the same hidden state: h + mean of Up_i(ReLU(Down_i(h))).
Where a layer ends with its normalisation, as BERT's do, r being the feed-forward's output and u its input,

    y = r + Up(ReLU(Down(LN(r + u)))),  and the layer's output is LN(y + u).

`Places` finds the places once and hangs a hook on each, which does nothing unless a call has bound tensors.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..rng import Key
from ..tree import Tree

Kind: TypeAlias = Literal["adapter", "lora", "prompt", "bias", "norm"]
Tuned: TypeAlias = Mapping[str, Sequence[Tree]]
"""Kind to its trees: one of each, but of adapters as many as are to be averaged."""
PROJECTIONS = ("query", "value", "q_proj", "v_proj")
"""Names of the linear layers that carry LoRA."""
STD = 0.02
"""Of an adapter's weights and of a soft prompt's, at the start."""
Slot: TypeAlias = tuple[dict[str, Any], str]
"""Where a module holds a tensor: one of its tables, and the name there."""


class Places:
    """The places of a frozen module at which it can be tuned."""

    def __init__(self, module: nn.Module) -> None:
        self.adapters: dict[str, int] = {}
        """Layer to the width of its hidden state."""
        self.lora: dict[str, tuple[int, int]] = {}
        """Linear layer to its outputs and inputs."""
        self.biases: dict[str, Slot] = {}
        self.norms: dict[str, Slot] = {}
        self._tuned: Tuned = {}
        self._scale = 1.0
        for name, part in module.named_modules():
            self._find_adapter(name, part)
            if isinstance(part, nn.Linear) and name.rpartition(".")[2] in PROJECTIONS:
                self.lora[name] = (part.out_features, part.in_features)
                part.register_forward_hook(functools.partial(self._projected, name))
            for leaf in ("weight", "bias"):
                slot = (part._parameters, leaf)
                if part._parameters.get(leaf) is not None and leaf == "bias":
                    self.biases[f"{name}.{leaf}"] = slot
                if part._parameters.get(leaf) is not None and isinstance(part, nn.LayerNorm):
                    self.norms[f"{name}.{leaf}"] = slot

    def _find_adapter(self, name: str, part: nn.Module) -> None:
        """Told by how a layer is made: `intermediate` and `output` in BERT and ViLT, `mlp` in CLIP and ViT."""
        output, mlp = getattr(part, "output", None), getattr(part, "mlp", None)
        if hasattr(part, "intermediate") and isinstance(getattr(output, "dense", None), nn.Linear):
            assert isinstance(output, nn.Module)
            self.adapters[name] = int(output.dense.out_features)  # type: ignore[union-attr,arg-type]
            if isinstance(getattr(output, "LayerNorm", None), nn.LayerNorm):
                output.forward = functools.partial(self._normed_last, name, output)
            else:
                output.register_forward_hook(functools.partial(self._normed_first, name))
        elif isinstance(mlp, nn.Module) and isinstance(getattr(mlp, "fc2", None), nn.Linear):
            self.adapters[name] = int(mlp.fc2.out_features)  # type: ignore[union-attr,arg-type]
            part.register_forward_hook(functools.partial(self._normed_first, name))

    @contextlib.contextmanager
    def bound(self, tuned: Tuned, scale: float = 1.0) -> Iterator[None]:
        """Meanwhile the module computes with `tuned`; afterwards it holds none of these tensors.

        Args:
            scale: s of LoRA, alpha / r.
        """
        before: list[tuple[dict[str, Any], str, Any]] = []
        try:
            self._tuned, self._scale = tuned, scale
            for kind, slots in (("bias", self.biases), ("norm", self.norms)):
                for tree in tuned.get(kind, ()):
                    for name, (table, leaf) in slots.items():
                        before.append((table, leaf, table[leaf]))
                        table[leaf] = tree[name].to(table[leaf].dtype)
            yield
        finally:
            self._tuned = {}
            for table, leaf, value in reversed(before):
                table[leaf] = value

    def _branches(self, name: str, h: Tensor) -> Tensor:
        """The mean of Up(ReLU(Down(h))) over the adapters that are bound, in their precision."""
        x = h.float()
        found = []
        for tree in self._tuned["adapter"]:
            down = F.relu(F.linear(x, tree[f"{name}.down.weight"], tree[f"{name}.down.bias"]))
            found.append(F.linear(down, tree[f"{name}.up.weight"], tree[f"{name}.up.bias"]))
        total = functools.reduce(torch.add, found)
        return (total / len(found) if len(found) > 1 else total).to(h.dtype)

    def _normed_first(self, name: str, part: nn.Module, inputs: Any, h: Any) -> Any:
        """After a layer that normalises its inputs: h is its output, or the first of its outputs."""
        if not self._tuned.get("adapter"):
            return None
        if isinstance(h, tuple):
            return (h[0] + self._branches(name, h[0]), *h[1:])
        return h + self._branches(name, h)

    def _normed_last(self, name: str, output: Any, hidden: Tensor, u: Tensor) -> Tensor:
        """The end of a layer that normalises its output, in the place of its own `forward`."""
        r = output.dropout(output.dense(hidden))
        if self._tuned.get("adapter"):
            r = r + self._branches(name, output.LayerNorm(r + u))
        found: Tensor = output.LayerNorm(r + u)
        return found

    def _projected(self, name: str, part: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> Tensor | None:
        trees = self._tuned.get("lora")
        if not trees:
            return None
        a, b = trees[0][f"{name}.lora_A.weight"], trees[0][f"{name}.lora_B.weight"]
        return outputs + (self._scale * F.linear(F.linear(inputs[0].float(), a), b)).to(outputs.dtype)

    def shapes(self, kind: Kind, reduction: int = 16, r: int = 16) -> dict[str, tuple[int, ...]]:
        """Name of each leaf of a tree of this kind to its shape; "prompt" is told elsewhere.

        Args:
            reduction: a layer's width over an adapter's.
            r: rank of LoRA.
        """
        if kind == "adapter":
            return {k: v for name, d in self.adapters.items() for k, v in _bottleneck(name, d, reduction).items()}
        if kind == "lora":
            pairs = self.lora.items()
            into: dict[str, tuple[int, ...]] = {f"{name}.lora_A.weight": (r, inside) for name, (_, inside) in pairs}
            return into | {f"{name}.lora_B.weight": (outside, r) for name, (outside, _) in pairs}
        slots = {"bias": self.biases, "norm": self.norms}[kind]
        return {name: tuple(table[leaf].shape) for name, (table, leaf) in slots.items()}

    def frozen(self, kind: Literal["bias", "norm"]) -> dict[str, Tensor]:
        """Copies of the frozen biases, or of the LayerNorms' leaves, in float32."""
        slots = {"bias": self.biases, "norm": self.norms}[kind]
        return {name: table[leaf].detach().to("cpu", torch.float32, copy=True) for name, (table, leaf) in slots.items()}


def _bottleneck(name: str, d: int, reduction: int) -> dict[str, tuple[int, ...]]:
    inner = max(1, d // reduction)
    down = {f"{name}.down.weight": (inner, d), f"{name}.down.bias": (inner,)}
    return down | {f"{name}.up.weight": (d, inner), f"{name}.up.bias": (d,)}


def drawn(shapes: Mapping[str, tuple[int, ...]], key: Key) -> dict[str, Tensor]:
    """First values: weights N(0, `STD`), biases 0; LoRA's A uniform within ±1/√in and B 0: it changes nothing yet."""
    fresh = {}
    for name, shape in shapes.items():
        generator = (key / name).torch()
        if name.endswith((".bias", "lora_B.weight")):
            fresh[name] = torch.zeros(shape)
        elif name.endswith("lora_A.weight"):
            fresh[name] = (2 * torch.rand(shape, generator=generator) - 1) / math.sqrt(shape[1])
        else:
            fresh[name] = STD * torch.randn(shape, generator=generator)
    return fresh
