"""Models of images and questions that others have trained: how one is named, and how it takes what it is asked.

A name is `vl:MODEL(reduction=16, ...)`. MODEL is a folder as `save_pretrained` writes it, an id of the Hugging Face
hub, or a model that is made here. Weights are loaded elsewhere (`models.multimodal`).
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import pretrained
from .errors import InputError
from .plugins import VISION_LANGUAGE, require_extra

MODALITIES = ("image", "text")
MADE_HERE = {
    "tiny": ("vl-tiny", "python -m unalike.scenes model"),
    "two-tower": ("vl-two-tower", "python -m unalike.scenes two-tower"),
}
"""Name to the folder of the cache, and the command that makes it."""
OURS = ("unalike-two-tower",)
"""Kinds of models that are made here; others are of transformers."""
SEES = ("vilt", "vit", "clip", *OURS)
"""Kinds of models (`model_type` of their config.json) that take images."""
VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
"""Files of which a model that reads has at least one in its folder."""
READS = ("vilt", "bert", "clip", *OURS)
"""Kinds of models that take questions."""


@dataclass(frozen=True, slots=True)
class Foundation:
    """A frozen model of images and questions, and the shape of what is trained beside it."""

    model: str
    """Folder, hub id, "tiny" or "two-tower"."""
    reduction: int = 16
    """A bottleneck adapter in a layer of width d has the width d / reduction."""
    dtype: str = "float32"
    """Precision of the frozen weights; what is trained is float32."""

    @classmethod
    def read(cls, name: str) -> Foundation:
        """What `name` says; `InputError` when it names no such model, or when an option is wrong."""
        otherwise = "takes no images and questions: give vl:FOLDER, vl:HUB/ID or vl:tiny"
        return pretrained.read(cls, VISION_LANGUAGE, name, otherwise, _ranges)


def _ranges(f: Foundation) -> pretrained.Ranges:
    yield "reduction", type(f.reduction) is int and f.reduction >= 1, "a whole number from 1"
    yield "dtype", f.dtype in pretrained.DTYPES, f"one of {', '.join(pretrained.DTYPES)}"


def is_multimodal(name: str) -> bool:
    """Whether a model's name is that of a model of images and questions."""
    return name.startswith(VISION_LANGUAGE)


def located(model: str) -> Path:
    """The folder with the files of a model; `InputError` when it is nowhere, and how to have it."""
    if model in MADE_HERE:
        folder, command = pretrained.cache() / MADE_HERE[model][0], MADE_HERE[model][1]
        if not (folder / "config.json").is_file():
            raise InputError(f"vl:{model} is not in {pretrained.cache()} yet: make it in minutes with {command}")
        return folder
    require_extra("llm", "transformers")
    return pretrained.folder_of(model, VISION_LANGUAGE)


def fingerprint(name: str) -> str | None:
    """SHA-256 (hex) of the files of a model of images and questions, see `pretrained.fingerprint`; None for others."""
    return pretrained.fingerprint_of(located(Foundation.read(name).model)) if is_multimodal(name) else None


@functools.lru_cache(maxsize=32)
def reader(model: str) -> Reader:
    """How the model called `model` (without "vl:" and options) takes images and questions; made once."""
    return Reader(model, located(model))


class Reader:
    """Questions to rows of token ids, and the size of images.

    A question that is missing is a row of `pad`; a model masks those, it never reads them.
    """

    modalities: tuple[str, ...]
    """What the model takes: "image", "text" or both."""
    side: int
    """Images are uint8 (3, side, side); 0 for a model without eyes."""
    longest: int
    """Most tokens of a question, those counted that the tokeniser puts around it; 0 for a model that does not read."""
    pad: int
    """The id that fills rows of tokens up, on the right."""
    start: int
    """The id that questions begin with, where the tokeniser puts one there; else `pad`."""

    def __init__(self, model: str, folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        kind = str(config.get("model_type", ""))
        takes = {"image": kind in SEES, "text": kind in READS}
        self.modalities = tuple(name for name in MODALITIES if takes[name])
        if not self.modalities:
            kinds = ", ".join(dict.fromkeys((*SEES, *READS)))
            raise InputError(f"vl:{model} is of kind {kind or 'unknown'}, which is not known here; known are {kinds}")
        config = config if kind in OURS else _with_defaults(folder)
        vision, language = config.get("vision_config", config), config.get("text_config", config)
        self.side = int(vision["image_size"]) if takes["image"] else 0
        self.longest = int(language["max_position_embeddings"]) if takes["text"] else 0
        self.pad = self.start = 0
        self._ends_with_pad = False
        if takes["text"]:
            self._inner: Any = _tokeniser(folder)
            self.pad = self.start = int(self._inner.pad_token_id)
            around = self._inner("", verbose=False)["input_ids"]
            if around and around[0] in (self._inner.cls_token_id, self._inner.bos_token_id):
                self.start = int(around[0])
            self._ends_with_pad = bool(around) and around[-1] == self.pad
        self.ids = functools.lru_cache(maxsize=2**16)(self._ids)

    def _ids(self, question: str) -> tuple[int, ...]:
        """All tokens of a question, never cut; none of an empty one, nor where the model does not read."""
        reads = question and "text" in self.modalities
        return tuple(self._inner(question, verbose=False)["input_ids"]) if reads else ()

    def questions(self, texts: Sequence[str]) -> Tensor:
        """(n, T) int64, T the tokens of the longest question and at least 1."""
        rows = [self.ids(text) for text in texts]
        width = max(1, *map(len, rows)) if rows else 1
        return torch.tensor([[*row, *[self.pad] * (width - len(row))] for row in rows], dtype=torch.int64).reshape(
            len(rows), width
        )

    def mask(self, x: Tensor) -> Tensor:
        """Where questions (B, T) have tokens, as 1 and 0.

        CLIP ends questions with the id that fills rows up: its first one after a token is a token as well.
        """
        tokens = x != self.pad
        if self._ends_with_pad:
            tokens = tokens | torch.nn.functional.pad(tokens, (1, 0))[:, :-1]
        return tokens.long()

    def texts(self, x: Tensor) -> list[str]:
        """What questions (B, T) ask, as far as the tokeniser can tell."""
        kept = [row[row != self.pad].tolist() for row in x]
        return [str(self._inner.decode(row, skip_special_tokens=True)).strip() for row in kept]


def _with_defaults(folder: Path) -> dict[str, Any]:
    """The configuration in a folder, with what its file leaves out."""
    try:
        found: dict[str, Any] = importlib.import_module("transformers").AutoConfig.from_pretrained(folder).to_dict()
    except Exception as error:
        reason = str(error).strip().split("\n")[-1].strip()
        raise InputError(f"{folder / 'config.json'} is no configuration of a model: {reason}") from error
    return found


def _tokeniser(folder: Path) -> Any:
    if not any((folder / name).is_file() for name in VOCABULARIES):  # transformers would make one that knows no word
        raise InputError(f"{folder} has no tokeniser: put {VOCABULARIES[0]} there, as save_pretrained writes it")
    found = pretrained.tokeniser_in(folder)
    if found.pad_token_id is None:
        raise InputError(f"the tokeniser of {folder} has no token that fills rows up: set its pad_token")
    return found
