"""`vl:tiny`: a ViLT small enough for tests, trained on the neutral mixture."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import local, pretrained, tree
from ..files import write_json
from ..models.multimodal import BODIES, NORMALISED, Asked
from ..optimisers import AdamW
from ..rng import Key
from . import questions, world

SIDE = 32
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "image_size": SIDE,
    "patch_size": 8,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
STEPS, BATCH, LR = 6000, 128, 1e-3
POOL = 20_000
"""Scenes that the mixture draws from, again and again, asked anew each time."""
WITHOUT = 0.05
"""Share of rows without their image, and of rows without their question, so that a model knows what that is."""
POSITION = 0.5
"""Standard deviation of what says where a patch lies, at the start: with ViLT's zeros no place is learnt here."""
SPECIAL = ("<pad>", "<start>", "<unk>")


class Mixture:
    """Questions about neutral scenes, without end; a part of the scenes can be kept apart."""

    def __init__(self, scenes: int, key: Key, side: int = SIDE) -> None:
        rng = key.numpy()
        self.scenes = [world.scene(rng, neutral=True) for _ in range(scenes)]
        self.images = np.stack([world.draw(found, world.NEUTRAL, side, rng) for found in self.scenes])
        self.answers = {answer: i for i, answer in enumerate(questions.answers())}

    def asked(self, kind: str, rng: np.random.Generator) -> tuple[int, str, int]:
        """Number of a scene, a question of a kind about it, number of the answer."""
        while True:
            row = int(rng.integers(len(self.scenes)))
            try:
                question, answer = questions.ask(self.scenes[row], kind, questions.NEUTRAL, rng)
            except LookupError:
                continue
            return row, question, self.answers[answer]

    def rows(self, n: int, rng: np.random.Generator, kinds: Sequence[str] = ()) -> tuple[Tensor, list[str], Tensor]:
        """Images uint8 (n, 3, side, side), questions and numbers of answers (n,)."""
        among = kinds or tuple(questions.NEUTRAL)
        number, asked, y = zip(*(self.asked(among[int(rng.integers(len(among)))], rng) for _ in range(n)), strict=True)
        images = torch.from_numpy(self.images[list(number)].transpose(0, 3, 1, 2).copy())
        return images, list(asked), torch.tensor(y)


class Answerer(nn.Module):
    """A model of kind `kind` with a head onto all answers, for as long as it is trained."""

    def __init__(self, kind: str, model: nn.Module, width: int, answers: int) -> None:
        super().__init__()
        self.kind, self.model, self.head = kind, model, nn.Linear(width, answers)

    def forward(self, batch: tree.Batch) -> Tensor:
        x, told = batch["x"], batch["told"]
        read = (x != 0) & told[:, None]
        read[:, 0] = True
        pixels = batch["image"].float() / 127.5 - 1
        found: Tensor = self.head(
            BODIES[self.kind](self.model, Asked(x * read, read, told, pixels, batch["pictured"], {}))
        )
        return found


def batches(
    mixture: Mixture, read: Any, steps: int, rng: np.random.Generator, size: int = BATCH
) -> Iterator[tree.Batch]:
    """Batches as `Answerer` takes them."""
    for _ in range(steps):
        images, asked, y = mixture.rows(size, rng)
        missing = rng.random(size)
        yield {
            "x": read(asked),
            "image": images,
            "y": y,
            "pictured": torch.from_numpy(missing > WITHOUT),
            "told": torch.from_numpy(missing < 1 - WITHOUT),
        }


def words() -> list[str]:
    """The vocabulary."""
    return [*SPECIAL, *questions.words()]


def tokeniser(transformers: Any) -> Any:
    """A token a word, and one before each question."""
    import tokenizers

    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>")
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = tokenizers.normalizers.Lowercase()
    pattern = tokenizers.Regex(r"\w+|[^\w\s]")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", SPECIAL.index("<start>"))]
    )
    special = dict(zip(("pad_token", "cls_token", "unk_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def write(folder: Path, steps: int = STEPS, pool: int = POOL, seed: int = 0, size: dict[str, Any] = SIZE) -> Path:
    """Train `vl:tiny` and write it with its tokeniser."""
    pretrained.require_llm()
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    words_of = tokeniser(transformers)
    words_of.save_pretrained(folder)
    write_json(folder / NORMALISED, {"image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    key = Key.root(seed) / "vl-tiny"
    mixture = Mixture(pool, key / "scenes", size["image_size"])
    config = transformers.ViltConfig(vocab_size=len(words()), **size)
    with key.scope():
        model = Answerer("vilt", transformers.ViltModel(config), config.hidden_size, len(mixture.answers))
        nn.init.normal_(model.model.embeddings.position_embeddings, std=POSITION)  # type: ignore[union-attr,arg-type]
    trained = train(
        model, batches(mixture, functools.partial(padded, words_of), steps, (key / "rows").numpy()), steps, key
    )
    trained.model.save_pretrained(folder)  # type: ignore[operator]
    return folder


def padded(words_of: Any, asked: Sequence[str]) -> Tensor:
    """Tokens (n, T) of questions, filled up with 0."""
    found: Tensor = words_of(list(asked), padding=True, return_tensors="pt")["input_ids"]
    return found


def train(model: Answerer, found: Iterator[tree.Batch], steps: int, key: Key) -> Answerer:
    """The same module after an AdamW with a falling step size has gone over the batches."""
    weights = {name: leaf.detach() for name, leaf in model.named_parameters() if leaf.requires_grad}
    step = local.Step(functools.partial(_loss, model), {"model": AdamW(LR, 0.01, clip=1.0, steps=steps)})
    trained, _ = local.train([step], {"model": weights}, {}, found, key / "noise")
    model.load_state_dict(trained["model"], strict=False)
    return model


def _loss(model: Answerer, params: tree.Tree, given: tree.Tree, batch: tree.Batch) -> Tensor:
    logits = torch.func.functional_call(model, params["model"], (batch,))
    return nn.functional.cross_entropy(logits, batch["y"])
