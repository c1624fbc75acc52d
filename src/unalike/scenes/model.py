"""`vl:tiny`: a ViLT small enough for tests, trained on the neutral mixture."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import pretrained, tree
from ..files import write_json
from ..models.multimodal import BODIES, NORMALISED, Asked
from ..rng import Key
from . import questions, world

SIDE = 32
SIZE: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "image_size": SIDE,
    "patch_size": 8,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}
STEPS, BATCH, LR = 6000, 64, 1.5e-3
WARM = 200
"""Steps in which the step size rises."""
POOL = 20_000
"""Scenes that the mixture draws from, again and again, asked anew each time."""
WITHOUT = 0.05
"""Share of rows without their image, and of rows without their question, so that a model knows what that is."""
POSITION = 0.5
"""Standard deviation of what says where a patch lies, at the start: with ViLT's zeros no place is learnt here."""
NAMES = ([*world.SHAPES, *world.MORE_SHAPES], [*world.COLOURS, *world.MORE_COLOURS], [*world.SIZES])
CORNER = [1 + len(names) for names in NAMES]
"""What there can be in a corner of an image: a shape, a colour and a size, or none."""
SPECIAL = ("<pad>", "<start>", "<unk>")


class Mixture:
    """Questions about neutral scenes, without end; a part of the scenes can be kept apart."""

    def __init__(self, scenes: int, key: Key, side: int = SIDE) -> None:
        rng = key.numpy()
        self.scenes = [world.scene(rng, neutral=True) for _ in range(scenes)]
        self.images = np.stack([world.draw(found, world.NEUTRAL, side, rng) for found in self.scenes])
        self.corners = torch.tensor([corners(found) for found in self.scenes])
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

    def rows(self, n: int, rng: np.random.Generator, kinds: Sequence[str] = ()) -> tuple[list[int], list[str], Tensor]:
        """Numbers of n scenes, questions about them, and numbers of the answers (n,)."""
        among = kinds or tuple(questions.NEUTRAL)
        number, asked, y = zip(*(self.asked(among[int(rng.integers(len(among)))], rng) for _ in range(n)), strict=True)
        return list(number), list(asked), torch.tensor(y)


def corners(found: world.Scene) -> list[list[int]]:
    """Of each of `world.PLACES` the numbers of its shape, colour and size, counted from 1; 0 for none."""
    told = [[0, 0, 0] for _ in world.PLACES]
    for thing in found:
        listed = zip(NAMES, (thing.shape, thing.colour, thing.size), strict=True)
        told[thing.place] = [1 + names.index(name) for names, name in listed]
    return told


class Answerer(nn.Module):
    """A model of kind `kind` with two heads, for as long as it is trained: one onto all answers, and one that says of
    each corner of the image which shape is there, in which colour and size, from the last layer's tokens of it."""

    def __init__(self, kind: str, model: nn.Module, last: nn.Module, width: int, answers: int) -> None:
        super().__init__()
        self.kind, self.model = kind, model
        self.head, self.corners = nn.Linear(width, answers), nn.Linear(width, sum(CORNER))
        self._tokens = torch.empty(0)
        last.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, given: Any, found: Any) -> None:
        self._tokens = found[0] if isinstance(found, tuple) else found

    def forward(self, batch: tree.Batch) -> tuple[Tensor, Tensor]:
        """Logits (B, answers), and (B, 4, sum of `CORNER`)."""
        answered = self.head(self.pooled(batch))
        side = round((self._tokens.shape[1] - batch["x"].shape[1]) ** 0.5)
        grid = self._tokens[:, -side * side :].transpose(1, 2).reshape(len(answered), -1, side, side)
        return answered, self.corners(nn.functional.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2))

    def pooled(self, batch: tree.Batch) -> Tensor:
        """Features (B, width); of a row without a question the first token stays."""
        x, told = batch["x"], batch["told"]
        read = (x != 0) & told[:, None]
        read[:, 0] = True
        pixels = batch["image"].float() / 127.5 - 1
        return BODIES[self.kind](self.model, Asked(x * read, read, told, pixels, batch["pictured"], {}))


def batches(
    mixture: Mixture, read: Any, steps: int, rng: np.random.Generator, size: int = BATCH
) -> Iterator[tree.Batch]:
    """Batches as `Answerer` takes them."""
    for _ in range(steps):
        number, asked, y = mixture.rows(size, rng)
        missing = rng.random(size)
        yield {
            "x": read(asked),
            "image": torch.from_numpy(mixture.images[number].transpose(0, 3, 1, 2).copy()),
            "corners": mixture.corners[number],
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
        inner = transformers.ViltModel(config)
        model = Answerer("vilt", inner, inner.encoder.layer[-1], config.hidden_size, len(mixture.answers))
        nn.init.normal_(inner.embeddings.position_embeddings, std=POSITION)
    train(model, batches(mixture, functools.partial(padded, words_of), steps, (key / "rows").numpy()), steps, key)
    inner.save_pretrained(folder)
    return folder


def padded(words_of: Any, asked: Sequence[str]) -> Tensor:
    """Tokens (n, T) of questions, filled up with 0."""
    found: Tensor = words_of(list(asked), padding=True, return_tensors="pt")["input_ids"]
    return found


def train(model: Answerer, found: Iterator[tree.Batch], steps: int, key: Key, lr: float = LR) -> Answerer:
    """The same module after AdamW has gone over the batches; its step size rises, and falls again."""
    optimiser = torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.98), weight_decay=0.01)
    with key.scope():
        for step, batch in enumerate(found):
            for group in optimiser.param_groups:
                group["lr"] = lr * min((step + 1) / WARM, 1 - step / steps)
            optimiser.zero_grad()
            loss(model, batch).backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
    return model.eval()


def loss(model: Answerer, batch: tree.Batch) -> Tensor:
    """Cross-entropy of the answers, and of what is in the corners of those images that are shown."""
    answered, corners = model(batch)
    shown = batch["pictured"]
    parts = zip(corners[shown].split(CORNER, 2), batch["corners"][shown].unbind(2), strict=True)
    seen = [nn.functional.cross_entropy(said.flatten(0, 1), right.flatten()) for said, right in parts]
    return nn.functional.cross_entropy(answered, batch["y"]) + torch.stack(seen).sum()
