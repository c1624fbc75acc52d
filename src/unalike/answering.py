"""What methods share that tune a frozen model of images and questions: a visit, answers, what they ask of clients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import InputError
from .local import Loss, Step, batches, train
from .models import multimodal
from .models.tuned import Tuned
from .multimodal import Foundation, is_multimodal
from .optimisers import AdamW
from .plugins import VISION_LANGUAGE, require_extra
from .protocol import Batch, ClientInfo, Count, NonNegative, Positive, Ready, Spec
from .rng import Key
from .tasks import Task
from .tree import Tree

PRESETS: Mapping[str, Mapping[str, Any]] = {"paper": {"batch_size": 2}, "tiny": {"lr": 1e-3}}
"""`paper`: the batches of FedDAT's authors, with which an epoch has 16 times as many steps; `tiny`: a step size for
backbones of a few layers."""


@dataclass(frozen=True, kw_only=True)
class AnswerTraining:
    """The hyper-parameters of a client's visit, for methods to have beside their own."""

    sees: ClassVar[bool] = True
    """That the method is for images and questions. Of others it is asked in `runs.prepare`."""

    rounds: Count = 30
    """How many rounds the run has."""
    local_epochs: Count = 1
    """E: passes over the client's training rows in a visit."""
    batch_size: Count = 32
    """Rows of a batch."""
    lr: Positive = 1e-4
    """η: step size of AdamW; 1e-3 suits tiny backbones."""
    weight_decay: NonNegative = 1e-2
    """Weight decay of AdamW, none on biases and weights of LayerNorm."""

    def optimiser(self) -> AdamW:
        """AdamW with β = (0.9, 0.98) and a constant step size."""
        return AdamW(self.lr, self.weight_decay, betas=(0.9, 0.98), decays_vectors=False)

    def visits(self, data: Batch, key: Key) -> Iterator[Batch]:
        """E epochs of batches."""
        return batches(data, self.batch_size, self.local_epochs, key)

    def visit(self, loss: Loss, params: Tree, data: Batch, key: Key) -> tuple[dict[str, Any], float]:
        """E epochs on all of `params`, and the mean loss; the optimisers are fresh."""
        step = Step(loss, dict.fromkeys(params, self.optimiser()))
        return train([step], params, {}, self.visits(data, key / "batches"), key / "noise")


@runtime_checkable
class Viewed(Protocol):
    """A method whose model can be seen in several ways, each of which is scored on the client's own test rows."""

    views: ClassVar[tuple[str, ...]]
    """Names of the ways, beside the one that `predict` has."""

    def view(self, name: str, ready: Ready, batch: Batch) -> Tensor:
        """As `predict`, in the way called `name`."""


def tuned_loss(spec: Spec, task: Task, kind: str, scale: float, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The task's loss with the head of `params`, and with what else there is in it, which is tuned.

    Args:
        kind: the branch of `params` beside "head", "adapter" say; where it is not there, nothing is tuned.
        scale: s of LoRA.
    """
    tuned: Tuned = {kind: [params[kind]]} if kind in params else {}
    return task.loss(multimodal.logits(spec, tuned, params["head"], batch, True, scale), batch)


def require(method: str, models: Mapping[str, Spec], shared: str, clients: Sequence[ClientInfo]) -> None:
    """Raise `InputError` unless all clients have one model of images and questions, whatever their answers."""
    require_extra("llm", "transformers")
    for info in clients:
        name, common = models[info.tier].name, models[shared].name
        if not is_multimodal(name):
            raise InputError(
                f"{method} tunes a model of images and questions, and client {info.id} has {info.tier}: give such data "
                f"(--data FOLDER) and --models {VISION_LANGUAGE}FOLDER_OR_HUB_ID"
            )
        if Foundation.read(name) != Foundation.read(common):
            raise InputError(f"{method}: client {info.id} has {name}, and what is tuned in it does not fit {common}")


def joined(rows: Sequence[Batch], pad: int) -> dict[str, Tensor]:
    """Rows of several clients as one batch: questions filled up on the right, "client" (n,) whose each row is, counted
    in the order given."""
    width = max(part["x"].shape[1] for part in rows)

    def filled(name: str, part: Tensor) -> Tensor:
        return torch.nn.functional.pad(part, (0, width - part.shape[1]), value=pad) if name == "x" else part

    found = {name: torch.cat([filled(name, part[name]) for part in rows]) for name in rows[0]}
    counts = torch.tensor([len(part["x"]) for part in rows])
    return found | {"client": torch.repeat_interleave(counts).to(found["x"].device)}
