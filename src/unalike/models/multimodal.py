"""Frozen models of images and questions, as pure functions of what is trained beside them.

A model is loaded once a process, shared by all clients of it, and never written: it is in no state and in no message.
What is trained, kept and sent are trees: adapters, LoRA, soft prompts, biases or norms (`tuned`), and a linear head
onto a client's own answers. A call binds the tensors it is given and takes them out again.

Features are what the model itself pools: ViLT's and BERT's pooler of the first token, ViT's pooler; where a model comes
without a pooler, its first token after the last normalisation. CLIP's two towers are pooled before their projections
and put side by side. Soft prompts stand after the first token, in each tower. Images are squares of the one size that a
model is configured for: ViLT, which has seen images in their own proportions, sees them squeezed here.

What a row lacks is masked, never fed. A row without a question keeps one token, the one that all questions begin with,
which ViLT and BERT pool; a row without an image keeps the image's own first token in ViT and CLIP, and none in ViLT. Of
CLIP the features of a tower whose input is missing are 0.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..multimodal import Foundation, Reader, located, reader
from ..pretrained import quiet
from ..protocol import Batch, Spec
from ..rng import Key
from ..tree import Tree
from . import on_real_tensors
from .tuned import Kind, Places, Slot, Tuned, drawn

__all__ = ["Base", "Tuned", "base", "features", "initial", "initial_head", "logits", "parameters", "shapes"]

NORMALISED, PROCESSOR = "preprocessor_config.json", "processor_config.json"
"""File in a model's folder with "image_mean" and "image_std" of each colour, for images in 0..1; and a newer one, which
has the same under "image_processor"."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a model is asked: B rows of up to T tokens and an image each."""

    x: Tensor
    """(B, T) token ids; of a row without a question the first one is what questions begin with."""
    read: Tensor
    """(B, T) bool: where there is a token."""
    told: Tensor
    """(B,) bool: whether there is a question."""
    pixels: Tensor | None
    """(B, 3, side, side), scaled."""
    pictured: Tensor
    """(B,) bool: whether there is an image."""
    prompts: Mapping[str, Tensor]
    """Tower to its soft prompt (P, d); empty where there is none."""


Body = Callable[[Any, Asked], Tensor]
"""body(model, asked): features (B, d)."""


class Base:
    """A model of this process, with places at which it can be tuned."""

    def __init__(self, model: nn.Module, kind: str, reader: Reader | None, mean: Tensor, std: Tensor) -> None:
        """
        Args:
            model: it is frozen, and hooks are hung onto it.
            kind: `model_type` of its configuration, in `BODIES`.
            reader: how questions are written; None where none are asked.
            mean, std: (3,) of images in 0..1.
        """
        self.model: Any = model.requires_grad_(False).eval()
        self.reader, self._body = reader, BODIES[kind]
        self.places = Places(model.get_submodule("fusion") if kind == "unalike-two-tower" else model)
        if not self.places.adapters:
            raise InputError(f"a model of kind {kind} here has no layers with a feed-forward, where adapters go")
        self.towers: Mapping[str, int] = TOWERS[kind](model)
        self.width = sum(self.towers.values())
        self._scale = [255 * part.reshape(3, 1, 1) for part in (mean, std)]
        self._kept = [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
        self._slots: dict[str, Slot] = {
            f"~{owner}.{leaf}": (table, leaf)
            for owner, part in model.named_modules()
            for table in (part._parameters, part._buffers)
            for leaf, value in table.items()
            if value is not None
        }

    @property
    def frozen(self) -> dict[str, Tensor]:
        """All weights and buffers of the model, under names that say that they never train."""
        scale = dict(zip(("~mean", "~std"), self._scale, strict=True))
        return {name: table[leaf] for name, (table, leaf) in self._slots.items()} | scale

    @contextlib.contextmanager
    def holding(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Meanwhile the model has other tensors in the place of `frozen`: shapes without numbers, say."""
        before, scale = self.frozen, self._scale
        try:
            for name, (table, leaf) in self._slots.items():
                table[leaf] = weights[name]
            self._scale = [weights["~mean"], weights["~std"]]
            yield
        finally:
            for name, (table, leaf) in self._slots.items():
                table[leaf] = before[name]
            self._scale = scale

    def features(self, tuned: Tuned, batch: Batch, train: bool = False, scale: float = 1.0) -> Tensor:
        """See `features`."""
        if self.model.training != train:
            self.model.train(train)
            for part in self._kept:
                part.eval()  # statistics are frozen as well
        asked = self._asked(batch, tuned)
        with self.places.bound(tuned, scale):
            return self._body(self.model, asked).float()

    def _asked(self, batch: Batch, tuned: Tuned) -> Asked:
        x, n = batch["x"], len(batch["x"])
        dtype = next(self.model.parameters()).dtype
        read, start = torch.zeros_like(x, dtype=torch.bool), 0
        if self.reader is not None:
            read, start = self.reader.mask(x).bool(), self.reader.start
        told = read.any(1)
        first = torch.zeros_like(read)
        first[:, 0] = ~told
        pixels, pictured = None, x.new_ones(n, dtype=torch.bool)
        if "image" in batch:
            mean, std = self._scale
            pixels, pictured = ((batch["image"].float() - mean) / std).to(dtype), batch["pictured"]
        prompts = tuned["prompt"][0] if tuned.get("prompt") else {}
        return Asked(x.masked_fill(first, start), read | first, told, pixels, pictured, prompts)


def features(spec: Spec, tuned: Tuned, batch: Batch, train: bool = False, scale: float = 1.0) -> Tensor:
    """Features (B, d) of questions "x" (B, T) and images "image" uint8 (B, 3, side, side) where "pictured" (B,).

    Args:
        tuned: kind ("adapter", "lora", "prompt", "bias", "norm") to its trees; nothing for the model as it is.
        train: whether dropout is on.
        scale: s of LoRA, alpha / r.
    """
    return base(spec, batch["x"]).features(tuned, batch, train, scale)


def logits(spec: Spec, tuned: Tuned, head: Tree, batch: Batch, train: bool = False, scale: float = 1.0) -> Tensor:
    """Outputs (B, A) of a head {"weight" (A, d), "bias" (A,)} on the features; arguments as `features` has them."""
    return F.linear(features(spec, tuned, batch, train, scale), head["weight"], head["bias"])


def shapes(spec: Spec, kind: Kind, r: int = 16, tokens: int = 16) -> dict[str, tuple[int, ...]]:
    """Name of each leaf of what is tuned to its shape.

    Args:
        r: rank of LoRA.
        tokens: length of a soft prompt.
    """
    found = base(spec)
    if kind == "prompt":
        return {tower: (tokens, d) for tower, d in found.towers.items()}
    return found.places.shapes(kind, Foundation.read(spec.name).reduction, r)


def initial(spec: Spec, kind: Kind, key: Key, r: int = 16, tokens: int = 16) -> dict[str, Tensor]:
    """First values of a tree of this kind: an adapter and a soft prompt N(0, 0.02) with biases 0; of LoRA A uniform and
    B 0; biases and norms as the frozen model has them."""
    if kind in ("bias", "norm"):
        return base(spec).places.frozen(kind)
    return drawn(shapes(spec, kind, r, tokens), key)


def initial_head(spec: Spec, key: Key) -> dict[str, Tensor]:
    """A head onto `spec.classes` answers, drawn as torch.nn.Linear draws: uniform within ±1/√d."""
    d = base(spec).width
    leaves = {"weight": (spec.classes, d), "bias": (spec.classes,)}
    return {
        name: (2 * torch.rand(shape, generator=(key / name).torch()) - 1) / math.sqrt(d)
        for name, shape in leaves.items()
    }


def parameters(spec: Spec) -> int:
    """Number of scalars of one adapter."""
    return sum(math.prod(shape) for shape in shapes(spec, "adapter").values())


@functools.lru_cache(maxsize=4)
@on_real_tensors
def _base(foundation: Foundation, device: str) -> Base:
    model, folder = foundation.model, located(foundation.model)
    kind = str(json.loads((folder / "config.json").read_text()).get("model_type", ""))
    read = reader(model)
    mean, std = _normalisation(folder, model)
    loaded = _loaded(foundation, folder, kind).to(device)
    return Base(loaded, kind, read if "text" in read.modalities else None, mean.to(device), std.to(device))


def base(spec: Spec, like: Tensor | None = None) -> Base:
    """The model of a spec on the device of `like`, loaded at the first call in a process; its answers do not count."""
    return _base(Foundation.read(spec.name), "cpu" if like is None else str(like.device))


def _loaded(foundation: Foundation, folder: Path, kind: str) -> nn.Module:
    dtype = getattr(torch, foundation.dtype)
    try:
        with Key.root(0).scope(), quiet():
            if kind == "unalike-two-tower":
                model: nn.Module = importlib.import_module(f"{__package__}.two_tower").load(folder, dtype)
                return model
            auto = importlib.import_module("transformers").AutoModel
            model, about = auto.from_pretrained(
                str(folder), dtype=dtype, use_safetensors=True, output_loading_info=True
            )
    except InputError:
        raise
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"vl:{foundation.model} cannot be loaded: {reason}") from error
    absent = sorted(about["missing_keys"])
    if any(name.startswith("pooler.") for name in absent):
        model.pooler = None  # type: ignore[assignment]
    if more := [name for name in absent if not name.startswith("pooler.")]:
        raise InputError(f"vl:{foundation.model} has no weights for {more[0]} and {len(more) - 1} more of its layers")
    return model


def _normalisation(folder: Path, model: str) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (3,) of colours in 0..1, ½ where the model's folder does not tell."""
    file = next((folder / name for name in (NORMALISED, PROCESSOR) if (folder / name).is_file()), None)
    about = json.loads(file.read_text()) if file else {}
    about = about.get("image_processor", about)
    if not about.get("do_normalize", True):
        return torch.zeros(3), torch.ones(3)
    found = [torch.tensor(about.get(name, [0.5] * 3), dtype=torch.float32) for name in ("image_mean", "image_std")]
    if any(part.shape != (3,) for part in found) or not bool((found[1] > 0).all()):
        raise InputError(f"vl:{model}: {file} must have three numbers in image_mean and three above 0 in image_std")
    return found[0], found[1]


# How each kind of model is asked --------------------------------------------------------------------------------------


def with_prompt(hidden: Tensor, seen: Tensor, prompt: Tensor | None) -> tuple[Tensor, Tensor]:
    """A sequence (B, T, d) and what of it is there (B, T), with a soft prompt (P, d) after the first token."""
    if prompt is None:
        return hidden, seen
    more = prompt.to(hidden.dtype).expand(len(hidden), *prompt.shape)
    marks = seen.new_ones(len(seen), len(prompt))
    return torch.cat([hidden[:, :1], more, hidden[:, 1:]], 1), torch.cat([seen[:, :1], marks, seen[:, 1:]], 1)


def additive(seen: Tensor, dtype: torch.dtype, causal: bool = False) -> Tensor:
    """(B, 1, 1, T), or (B, 1, T, T) where it is causal: 0 where a token is seen, else the lowest number there is."""
    seen = seen[:, None, None, :]
    if causal:
        n = seen.shape[-1]
        seen = seen & torch.ones(n, n, dtype=torch.bool, device=seen.device).tril()
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)


def through(layers: Sequence[nn.Module], hidden: Tensor, mask: Tensor) -> Tensor:
    """Hidden states (B, T, d) after some layers, of which what `additive` gives is the mask."""
    for layer in layers:
        found = layer(hidden, mask)
        hidden = found[0] if isinstance(found, tuple) else found
    return hidden


def _pooled(model: Any, hidden: Tensor) -> Tensor:
    pooled: Tensor = hidden[:, 0] if getattr(model, "pooler", None) is None else model.pooler(hidden)
    return pooled


def _vilt(model: Any, asked: Asked) -> Tensor:
    """One sequence: the question, then the image's own first token and its patches, each with its position."""
    embed, assumed = model.embeddings, asked.pixels
    assert assumed is not None
    kinds = embed.token_type_embeddings.weight
    text = embed.text_embeddings(input_ids=asked.x) + kinds[0]
    patches = embed.patch_embeddings(assumed).flatten(2).transpose(1, 2)
    image = torch.cat([embed.cls_token.expand(len(patches), -1, -1), patches], 1) + embed.position_embeddings
    image = embed.dropout(image) + kinds[1]
    seen = torch.cat([asked.read, asked.pictured[:, None].expand(-1, image.shape[1])], 1)
    hidden, seen = with_prompt(torch.cat([text, image], 1), seen, asked.prompts.get("fused"))
    hidden = through(model.encoder.layer, hidden, additive(seen, hidden.dtype))
    return _pooled(model, model.layernorm(hidden))


def _bert(model: Any, asked: Asked) -> Tensor:
    hidden, seen = with_prompt(model.embeddings(input_ids=asked.x), asked.read, asked.prompts.get("text"))
    return _pooled(model, through(model.encoder.layer, hidden, additive(seen, hidden.dtype)))


def _own_token(pictured: Tensor, tokens: int) -> Tensor:
    """(B, tokens): the image's own first token is always seen, its patches where there is an image."""
    return torch.cat([pictured.new_ones(len(pictured), 1), pictured[:, None].expand(-1, tokens - 1)], 1)


def _vit(model: Any, asked: Asked) -> Tensor:
    hidden = model.embeddings(asked.pixels)
    seen = _own_token(asked.pictured, hidden.shape[1])
    hidden, seen = with_prompt(hidden, seen, asked.prompts.get("image"))
    return _pooled(model, model.layernorm(through(model.layers, hidden, additive(seen, hidden.dtype))))


def _clip(model: Any, asked: Asked) -> Tensor:
    text, vision = model.text_model, model.vision_model
    hidden, seen = with_prompt(text.embeddings(input_ids=asked.x), asked.read, asked.prompts.get("text"))
    hidden = through(text.encoder.layers, hidden, additive(seen, hidden.dtype, causal=True))
    last = text.final_layer_norm(hidden)[torch.arange(len(seen), device=seen.device), seen.sum(1) - 1]
    hidden = vision.pre_layrnorm(vision.embeddings(asked.pixels))
    seen = _own_token(asked.pictured, hidden.shape[1])
    hidden, seen = with_prompt(hidden, seen, asked.prompts.get("image"))
    first = vision.post_layernorm(through(vision.encoder.layers, hidden, additive(seen, hidden.dtype))[:, 0])
    return torch.cat([last * asked.told[:, None], first * asked.pictured[:, None]], 1)


def _two_tower(model: Any, asked: Asked) -> Tensor:
    found: Tensor = model(asked.x, asked.read, asked.pixels, asked.pictured, asked.prompts.get("fused"))
    return found


BODIES: Mapping[str, Body] = {
    "vilt": _vilt,
    "bert": _bert,
    "vit": _vit,
    "clip": _clip,
    "unalike-two-tower": _two_tower,
}
TOWERS: Mapping[str, Callable[[Any], Mapping[str, int]]] = {
    "vilt": lambda model: {"fused": model.config.hidden_size},
    "bert": lambda model: {"text": model.config.hidden_size},
    "vit": lambda model: {"image": model.config.hidden_size},
    "clip": lambda model: {
        "text": model.config.text_config.hidden_size,
        "image": model.config.vision_config.hidden_size,
    },
    "unalike-two-tower": lambda model: {"fused": model.width},
}
"""Kind of a model to its sequences of tokens, each with the width of its features."""
