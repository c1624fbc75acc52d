"""What methods share that train adapters of a frozen language model: a visit, answers, and what they ask of clients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import InputError
from .local import Loss, Step, batches, train
from .models import language
from .models.language import Adapters
from .optimisers import AdamW
from .plugins import LANGUAGE
from .pretrained import Adapted, is_language, require_llm
from .protocol import Batch, ClientInfo, Count, NonNegative, Positive, Ready, Spec
from .rng import Key
from .tree import Tree

PAPER: Mapping[str, Any] = {"rounds": 20, "local_epochs": 10, "batch_size": 64, "beams": 4, "max_new_tokens": 80}
"""What the preset `paper` of these methods says: FedDPA's training and decoding."""


@dataclass(frozen=True, kw_only=True)
class LoraTraining:
    """The hyper-parameters of a client's visit and of its answers, for methods to have beside their own."""

    speaks: ClassVar[bool] = True
    """That the method is for texts. Of others it is asked in `runs.prepare`."""

    local_epochs: Count = 2
    """E: passes over the client's training rows in each phase of a visit."""
    batch_size: Count = 16
    """Rows of a batch, in training and when answers are written."""
    lr: Positive = 3e-4
    """η: first step size of AdamW; it falls linearly to 0 within a phase."""
    weight_decay: NonNegative = 0.0
    """Weight decay of AdamW."""
    clip: Positive = 1.0
    """Largest gradient norm."""
    beams: Count = 1
    """Beams that answers are searched with; 1 takes the likeliest token each time."""
    max_new_tokens: Count = 32
    """Most tokens of an answer."""

    def visit(
        self, loss: Loss, params: Tree, given: Tree, data: Batch, key: Key, epochs: int = 0
    ) -> tuple[dict[str, Any], float]:
        """E epochs of AdamW on all of `params`, or another number of them where one is given, and the mean loss; the
        optimiser is fresh and ends with step size 0."""
        rounds = list(batches(data, self.batch_size, epochs or self.local_epochs, key / "batches"))
        optimiser = AdamW(self.lr, self.weight_decay, self.clip, steps=len(rounds))
        return train([Step(loss, dict.fromkeys(params, optimiser))], params, given, rounds, key / "noise")

    def answers(self, spec: Spec, adapters: Adapters, x: Tensor, a: Tensor | None = None) -> Tensor:
        """Token ids (B, max_new_tokens) of what the model answers to prompts (B, T), a batch at a time."""
        shares = [None] * len(x) if a is None else torch.split(a, self.batch_size)
        parts = zip(torch.split(x, self.batch_size), shares, strict=False)
        how = {"tokens": self.max_new_tokens, "beams": self.beams}
        return torch.cat([language.generate(spec, adapters, rows, share, **how) for rows, share in parts])


@runtime_checkable
class Explains(Protocol):
    """A method that can say why it answers as it does."""

    def explain(self, ready: Ready, batch: Batch) -> Mapping[str, Any]:
        """For each row of `batch`: "weight" (B,) of the local adapter, "anchors" (B, S) the numbers of training rows
        that decided it, "similarities" (B, S) to them, and "answers", what each adapter and the blend writes."""


def require(method: str, models: Mapping[str, Spec], shared: str, clients: Sequence[ClientInfo]) -> None:
    """Raise `InputError` unless all clients have the language model whose adapters are trained."""
    require_llm()
    for info in clients:
        name, common = models[info.tier].name, models[shared].name
        if not is_language(name):
            raise InputError(
                f"{method} trains adapters of a language model, and client {info.id} has {info.tier}: give texts "
                f"(--data FOLDER) and --models {LANGUAGE}FOLDER_OR_HUB_ID"
            )
        if Adapted.read(name).model != Adapted.read(common).model:
            raise InputError(f"{method}: client {info.id} has {name}, and its texts are no tokens of {common}")
    if not language.writes(Adapted.read(models[shared].name)):
        raise InputError(
            f"{method} trains a model that writes answers, and {models[shared].name} only reads: give a causal "
            "language model; one that reads may serve as feddpa's --encoder"
        )


def joined(rows: Sequence[Batch], pad: int) -> Batch:
    """Rows of several clients as one batch: prompts filled up on the left, answers on the right."""
    widths = {name: max(part[name].shape[1] for part in rows) for name in ("x", "y")}

    def filled(name: str, part: Tensor) -> Tensor:
        more = widths[name] - part.shape[1]
        return torch.nn.functional.pad(part, (more, 0) if name == "x" else (0, more), value=pad)

    return {name: torch.cat([filled(name, part[name]) for part in rows]) for name in widths}
