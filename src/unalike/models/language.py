"""Frozen language models with trainable adapters, as pure functions of the adapters' weights.

A language model is loaded once a process, shared by all clients of it, and never written: it is in no state and in no
message. What is trained, kept and sent is an adapter, a tree of one tensor for each A and B of

    h = W x + s B A x                                                  one adapter,   s = alpha / r
    h = W x + (1 − a) s B_g A_g x + a s B_l A_l x                      two blended,   a one number a row

in every linear layer that `targets` names, called as `get_peft_model_state_dict` calls them. The layers are PEFT's: two
adapters, "global" and "local", stand on the model for the whole life of the process. A call binds the tensors it is
given and takes them out again; a blend puts its weights where PEFT has the scaling of an adapter.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..plugins import LANGUAGE
from ..pretrained import Adapted, Tokeniser, located, quiet, tokeniser
from ..protocol import Batch, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from . import on_real_tensors

NAMES = ("global", "local")
"""The two adapters: the one that travels, the one that stays."""
Adapters = Mapping[str, Tree]
"""One or both of `NAMES` to the weights of an adapter."""


class Base:
    """A language model of this process, with places for two adapters."""

    def __init__(self, model: nn.Module, adapted: Adapted) -> None:
        """`model`: as transformers built it; it is frozen, and layers in it are replaced by those with adapters."""
        peft, targets = importlib.import_module("peft"), _targets(model, adapted)
        self.generates = bool(getattr(model, "can_generate", bool)())
        config = peft.LoraConfig(
            r=adapted.r,
            lora_alpha=adapted.alpha,
            lora_dropout=adapted.dropout,
            target_modules=targets,
            task_type="CAUSAL_LM" if self.generates else "FEATURE_EXTRACTION",
        )
        with Key.root(0).scope(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about biases and tied weights, neither of which adapters touch
            self._peft: Any = peft.get_peft_model(model, config, adapter_name=NAMES[0])
            self._peft.add_adapter(NAMES[1], config)
        self.model: Any = self._peft.base_model.model
        self.model.requires_grad_(False).eval()
        self.layers = [m for m in self.model.modules() if isinstance(m, peft.tuners.lora.LoraLayer)]
        self.shapes: dict[str, torch.Size] = {
            name: leaf.shape for name, leaf in peft.get_peft_model_state_dict(self._peft, adapter_name=NAMES[0]).items()
        }
        self._slots = {name: self._places(name) for name in NAMES}
        self._takes = inspect.signature(self.model.forward).parameters.keys()

    def _places(self, adapter: str) -> list[tuple[dict[str, Any], str]]:
        """Where the tensors of an adapter are held, each with the name of its leaf."""
        found = []
        for prefix, module in self._peft.named_modules():
            if isinstance(module, nn.Linear) and prefix.endswith((f".lora_A.{adapter}", f".lora_B.{adapter}")):
                found.append((module._parameters, f"{prefix.removesuffix(f'.{adapter}')}.weight"))
        return found

    @contextlib.contextmanager
    def bound(self, adapters: Adapters, a: Tensor | None = None, train: bool = False) -> Iterator[Any]:
        """The model as it computes with these adapters; afterwards it holds none of their tensors.

        Args:
            adapters: one of them, which then counts in full, or both.
            a: (rows,) the weight of "local" in each row that the model is given, where there are both.
            train: whether dropout is on.
        """
        if len(adapters) == 2 and a is None:
            raise ValueError("two adapters need the weight of the local one in each row")
        self._peft.base_model.set_adapter([name for name in NAMES if name in adapters], inference_mode=True)
        before = [(table, table["weight"]) for name in adapters for table, _ in self._slots[name]]
        scalings = [dict(layer.scaling) for layer in self.layers]
        if self.model.training != train:
            self.model.train(train)
        try:
            for name, weights in adapters.items():
                for table, leaf in self._slots[name]:
                    table["weight"] = weights[leaf]
            if len(adapters) == 2 and a is not None:
                self._weigh(dict(zip(NAMES, (1 - a, a), strict=True)))
            yield self.model
        finally:
            for table, weight in before:
                table["weight"] = weight
            for layer, scaling in zip(self.layers, scalings, strict=True):
                layer.scaling.update(scaling)

    def _weigh(self, shares: Mapping[str, Tensor]) -> None:
        """Multiply each adapter's scaling by its share (rows,) of each row."""
        for layer in self.layers:
            for name, share in shares.items():
                layer.scaling[name] = layer.scaling[name] * share.reshape(-1, 1, 1)

    def accepted(self, **offered: Any) -> dict[str, Any]:
        """Those arguments that the model's forward pass knows."""
        return {name: value for name, value in offered.items() if name in self._takes}


def _targets(model: nn.Module, adapted: Adapted) -> list[str] | str:
    if adapted.targets == "all-linear":
        return adapted.targets
    asked = [name.strip() for name in adapted.targets.split(",") if name.strip()]
    linear = (nn.Linear, importlib.import_module("transformers.pytorch_utils").Conv1D)  # GPT-2's is transposed
    has = dict.fromkeys(name.rpartition(".")[2] for name, m in model.named_modules() if isinstance(m, linear))
    for name in asked:
        if name not in has:
            raise InputError(
                f"lm:{adapted.model} has no linear layer called {name!r} (targets); it has {', '.join(has)}"
            )
    return asked


@functools.lru_cache(maxsize=4)
@on_real_tensors
def _base(adapted: Adapted, device: str) -> Base:
    return Base(_loaded(adapted).to(device), adapted)


def base(spec: Spec, like: Tensor | None = None) -> Base:
    """The model of a spec on the device of `like`, loaded at the first call in a process."""
    return _base(Adapted.read(spec.name), "cpu" if like is None else str(like.device))


def writes(adapted: Adapted) -> bool:
    """Whether a model writes answers, by what its configuration says; else it only reads."""
    config = _read("AutoConfig", adapted)
    return any("CausalLM" in name or "LMHead" in name for name in config.architectures or ())


def _loaded(adapted: Adapted) -> nn.Module:
    """The frozen weights: a model that writes where there is one, else one that only reads."""
    kind = "AutoModelForCausalLM" if writes(adapted) else "AutoModel"
    with Key.root(0).scope(), quiet():
        model: nn.Module = _read(kind, adapted, dtype=getattr(torch, adapted.dtype), use_safetensors=True)
    return model


def _read(kind: str, adapted: Adapted, **how: Any) -> Any:
    """What transformers' class `kind` reads in a model's folder."""
    folder, transformers = located(adapted.model), importlib.import_module("transformers")
    try:
        return getattr(transformers, kind).from_pretrained(str(folder), **how)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"lm:{adapted.model} cannot be loaded: {reason}") from error


def tokens_of(spec: Spec) -> Tokeniser:
    """The tokeniser of a spec's model."""
    return tokeniser(Adapted.read(spec.name).model)


def initial(spec: Spec, key: Key) -> dict[str, Tensor]:
    """A fresh adapter: A uniform within ±1/√in, as PEFT draws it; B = 0, so that it changes nothing yet."""
    fresh = {}
    for name, shape in base(spec).shapes.items():
        if ".lora_A." in name:
            bound = 1 / math.sqrt(shape[1])
            fresh[name] = (2 * torch.rand(shape, generator=(key / name).torch()) - 1) * bound
        else:
            fresh[name] = torch.zeros(shape)
    return fresh


def parameters(spec: Spec) -> int:
    """Number of scalars of one adapter."""
    return sum(math.prod(shape) for shape in base(spec).shapes.values())


def answer_logits(spec: Spec, adapters: Adapters, batch: Batch, a: Tensor | None = None, train: bool = False) -> Tensor:
    """Logits (B, R, vocabulary) from which the tokens of the answers "y" (B, R) after prompts "x" (B, T) are told."""
    found, tokens = base(spec, batch["x"]), tokens_of(spec)
    x, before = _trimmed(batch["x"], tokens)
    answered = tokens.answer_mask(batch["y"])
    length = _longest(answered)
    ids, mask = torch.cat([x, batch["y"][:, :length]], 1), torch.cat([before, answered[:, :length]], 1)
    more = found.accepted(position_ids=_positions(mask), use_cache=False, logits_to_keep=length + 1)
    with found.bound(adapters, a, train) as model:
        logits: Tensor = model(input_ids=ids, attention_mask=mask, **more).logits
    told = logits[:, -length - 1 : -1]
    return nn.functional.pad(told, (0, 0, 0, batch["y"].shape[1] - length))


def answer_loss(spec: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The task's loss with the one adapter that there is: in `params` what trains."""
    return task.loss(answer_logits(spec, params, batch, train=True), batch)


def blended_loss(spec: Spec, task: Task, a: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The task's loss with both adapters, `a` the weight of the local one: in `params` what trains, in `given` what
    does not."""
    share = torch.full((len(batch["x"]),), a, device=batch["x"].device)
    return task.loss(answer_logits(spec, {**given, **params}, batch, share, train=True), batch)


@torch.no_grad()
def generate(
    spec: Spec, adapters: Adapters, x: Tensor, a: Tensor | None = None, *, tokens: int, beams: int = 1
) -> Tensor:
    """Answers (B, tokens) to prompts (B, T): the likeliest by `beams` beams, filled up on the right.

    a (B,) is fixed for the whole answer; each beam of a row has the row's.
    """
    found, words = base(spec, x), tokens_of(spec)
    if not found.generates:
        raise InputError(f"{spec.name} only reads: it can embed instructions, but it writes no answers")
    x, mask = _trimmed(x, words)
    config = importlib.import_module("transformers").GenerationConfig(
        max_new_tokens=tokens, num_beams=beams, do_sample=False, pad_token_id=words.pad, eos_token_id=words.eos
    )
    with found.bound(adapters, None if a is None else a.repeat_interleave(beams)) as model:
        model.generation_config = config
        ids = model.generate(x, attention_mask=mask, generation_config=config)
    written = ids[:, x.shape[1] :]
    written = nn.functional.pad(written, (0, tokens - written.shape[1]), value=words.pad)
    return written.where(words.answer_mask(written).bool(), words.pad)  # beams go on with `eos` after their end


@torch.no_grad()
def embed(spec: Spec, adapters: Adapters, x: Tensor, a: Tensor | None = None) -> Tensor:
    """e(x) (B, d): the last hidden layer at the last token of the prompt; of a model that only reads the mean over its
    tokens."""
    found, words = base(spec, x), tokens_of(spec)
    x, mask = _trimmed(x, words)
    with found.bound(adapters, a) as model:
        body = model.get_decoder() if found.generates else model
        hidden: Tensor = body(input_ids=x, attention_mask=mask, position_ids=_positions(mask)).last_hidden_state
    if found.generates:
        return hidden[:, -1].float()
    return (hidden * mask[:, :, None]).sum(1).float() / mask.sum(1, keepdim=True)


def embed_texts(model: str, texts: Sequence[str], device: torch.device) -> Tensor:
    """e (B, d) of texts as they are, by the model `model` without any adapter, so its layers may be called anything."""
    adapted = Adapted.read(model)
    x = tokeniser(adapted.model).plain(texts, adapted.length)
    bare = f"{LANGUAGE}{adapted.model}(r=1, targets='all-linear', dtype='{adapted.dtype}')"
    return embed(Spec(bare, (adapted.length,), 0), {}, x.to(device))


def _trimmed(x: Tensor, words: Tokeniser) -> tuple[Tensor, Tensor]:
    """Prompts without the columns on the left that are empty in all rows, and where they have tokens."""
    mask = words.prompt_mask(x)
    width = _longest(mask)
    return x[:, -width:], mask[:, -width:]


def _longest(mask: Tensor) -> int:
    """Tokens of the longest row, at least one."""
    return max(1, int(mask.sum(1).max()))


def _positions(mask: Tensor) -> Tensor:
    """Positions that count from each row's first token."""
    return (mask.cumsum(1) - 1).clamp(min=0)
