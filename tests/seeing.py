"""Models of images and questions that nobody has trained, questions about coloured squares, and clients with both."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unalike.files import write_json
from unalike.models import multimodal
from unalike.multimodal import Foundation, reader
from unalike.protocol import Batch, Spec
from unalike.rng import Key

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220), "gold": (230, 180, 30)}
WORDS = ["what", "colour", "is", "the", "square", "there", "a", "?", *COLOURS]
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
SIZE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
READS = {"vocab_size": len(SPECIAL) + len(WORDS), "max_position_embeddings": 16}
SEES = {"image_size": 32, "patch_size": 8}
KINDS = ("vilt", "bert", "vit", "clip")


def write_tokeniser(folder: Path) -> None:
    """A word a token, [CLS] before a question and [SEP] after it."""
    import tokenizers
    import transformers

    words = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    around = [(name, words[name]) for name in ("[CLS]", "[SEP]")]
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=around)
    named = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)


def write_model(folder: Path, kind: str, dropout: float = 0.0) -> Path:
    """A model of two layers of 32, its weights drawn wider than they are begun with, so that tokens differ."""
    with Key.root(7).scope():
        model = _built(kind, dropout)
        for weight in model.parameters():
            weight.data.add_(0.1 * torch.randn_like(weight))
    model.save_pretrained(folder)
    write_tokeniser(folder)
    return folder


def _built(kind: str, dropout: float) -> Any:
    import transformers

    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    if kind == "vilt":
        return transformers.ViltModel(transformers.ViltConfig(**SIZE, **READS, **SEES, **drops))
    if kind == "bert":
        return transformers.BertModel(transformers.BertConfig(**SIZE, **READS, **drops))
    if kind == "vit":
        return transformers.ViTModel(transformers.ViTConfig(**SIZE, **SEES, **drops))
    ends = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    towers = {"text_config": {**SIZE, **READS, **ends}, "vision_config": {**SIZE, **SEES}}
    return transformers.CLIPModel(transformers.CLIPConfig(**towers, projection_dim=16))


def write_questions(folder: Path, sites: int = 3, train: int = 16, test: int = 4) -> Path:
    """Sites of `train` and `test` rows, each with an image of its own: one site asks for colours, the next whether a
    square is red, and so on."""
    rng = (Key.root(5) / "questions").numpy()
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for site in range(sites):
        for part, count in (("train", train), ("test", test)):
            rows = [_row(folder, f"{site}-{part}-{i}", site % 2 == 0, rng) for i in range(count)]
            write_json(folder / f"site{site}.{part}.json", rows)
    return folder


def _row(folder: Path, name: str, asks_colour: bool, rng: np.random.Generator) -> dict[str, str]:
    colour = list(COLOURS)[int(rng.integers(len(COLOURS)))]
    pixels = rng.integers(90, 110, (32, 32, 3)).astype(np.uint8)
    y, x = (int(at) for at in rng.integers(2, 14, 2))
    pixels[y : y + 16, x : x + 16] = COLOURS[colour]
    Image.fromarray(pixels).save(folder / "images" / f"{name}.png")
    asked = "what colour is the square ?" if asks_colour else "is there a red square ?"
    answer = colour if asks_colour else "yes" if colour == "red" else "no"
    return {"image": f"images/{name}.png", "question": asked, "answer": answer}


def batch(spec: Spec, rows: int = 5, lacks: Mapping[int, str] | None = None) -> Batch:
    """Questions of unequal length about noise; `lacks`: row to what it has not, "image" or "text"."""
    lacks, read_by = lacks or {}, reader(Foundation.read(spec.name).model)
    asked = ["what colour is the square ?", "red ?", "is there a square there ?", "gold", "is a square blue ?"]
    asked = [asked[i % len(asked)] for i in range(rows)]
    texts = ["" if lacks.get(i) == "text" or "text" not in read_by.modalities else text for i, text in enumerate(asked)]
    found: dict[str, Tensor] = {"x": read_by.questions(texts), "y": torch.arange(rows) % spec.classes}
    if "image" in read_by.modalities:
        pictured = torch.tensor([lacks.get(i) != "image" for i in range(rows)])
        generator = Key.root(3).torch()
        noise = torch.randint(0, 256, (rows, 3, 32, 32), generator=generator, dtype=torch.uint8)
        found |= {"image": noise * pictured[:, None, None, None], "pictured": pictured}
    return found


def noisy(spec: Spec, kind: str, seed: int, size: float = 0.3, **more: Any) -> dict[str, Tensor]:
    """What is tuned as if it had been trained: no leaf is as it began."""
    generator = Key.root(seed).torch()
    fresh = multimodal.initial(spec, kind, Key.root(seed), **more)  # type: ignore[arg-type]
    return {name: leaf + size * torch.randn(leaf.shape, generator=generator) for name, leaf in fresh.items()}
