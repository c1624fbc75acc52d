"""`vl:tiny`: a ViLT small enough for tests, trained on the neutral mixture."""

from __future__ import annotations

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
    "initializer_range": 0.06,
}
STEPS, BATCH, LR = 5000, 64, 3e-3
WARM = 200
"""Steps in which the step size rises."""
POOL = 20_000
"""Scenes that the mixture draws from, again and again, asked anew each time."""
WITHOUT = 0.05
"""Share of rows without their image, and of rows without their question, so that a model knows what that is."""
POSITION = 0.5
"""Standard deviation of what says where a patch lies, at the start: with ViLT's zeros no place is learnt here."""
NAMES = ([*world.SHAPES], [*world.COLOURS], [*world.SIZES])
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


def named(question: str, found: world.Scene) -> list[list[float] | None]:
    """Of each word for a colour or a shape: in which of `world.PLACES` there is one, as 1 and 0. None for others."""
    where: dict[str, list[float]] = {name: [0.0] * len(world.PLACES) for name in questions.names()}
    for thing in found:
        for name in (thing.colour, thing.shape, questions.plural(thing.shape)):
            where[name][thing.place] = 1.0
    return [where.get(word) for word in question.split()]


class Answerer(nn.Module):
    """A model of kind `kind` with three heads, for as long as it is trained.

    One answers. The others ask tokens of the last layer: those of a corner of the image, which shape is there,
    in which colour and size; those of words, in which corners there is what they name.
    """

    def __init__(self, kind: str, model: nn.Module, layer: nn.Module, width: int, answers: int) -> None:
        super().__init__()
        self.kind, self.model = kind, model
        self.head, self.corners = nn.Linear(width, answers), nn.Linear(width, sum(CORNER))
        self.named = nn.Linear(width, len(world.PLACES))
        self._tokens = torch.empty(0)
        layer.register_forward_hook(self._keep)

    def _keep(self, layer: nn.Module, given: Any, found: Any) -> None:
        self._tokens = found[0] if isinstance(found, tuple) else found

    def forward(self, batch: tree.Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (B, answers), of corners (B, 4, sum of `CORNER`), of words (B, T, 4)."""
        answered, asked = self.head(self.pooled(batch)), batch["x"].shape[1]
        side = round((self._tokens.shape[1] - asked) ** 0.5)
        grid = self._tokens[:, -side * side :].transpose(1, 2).reshape(len(answered), -1, side, side)
        corners = self.corners(nn.functional.adaptive_avg_pool2d(grid, 2).flatten(2).transpose(1, 2))
        return answered, corners, self.named(self._tokens[:, :asked])

    def pooled(self, batch: tree.Batch) -> Tensor:
        """Features (B, width); of a row without a question the first token stays."""
        x, told = batch["x"], batch["told"]
        read = (x != 0) & told[:, None]
        read[:, 0] = True
        pixels = batch["image"].float() / 127.5 - 1
        return BODIES[self.kind](self.model, Asked(x * read, read, told, pixels, batch["pictured"], {}))


def batches(
    mixture: Mixture, tokens: Any, steps: int, rng: np.random.Generator, size: int = BATCH
) -> Iterator[tree.Batch]:
    """Batches as `Answerer` takes them; `tokens` is a tokeniser of transformers."""
    for _ in range(steps):
        number, asked, y = mixture.rows(size, rng)
        yield {
            "image": torch.from_numpy(mixture.images[number].transpose(0, 3, 1, 2).copy()),
            **labels(mixture, tokens, number, asked, rng),
            "y": y,
        }


def labels(
    mixture: Mixture, tokens: Any, number: Sequence[int], asked: Sequence[str], rng: np.random.Generator
) -> dict[str, Tensor]:
    """Of questions about scenes, some of which are to be shown without image or question: "x" (B, T), "told" (B,) and
    "pictured" (B,) bool, "corners" (B, 4, 3); "named" (B, T, 4) of those tokens that "names" (B, T) marks."""
    encoded = tokens(list(asked), padding=True, return_tensors="pt")
    x, missing = encoded["input_ids"], torch.from_numpy(rng.random(len(asked)))
    told, pictured = missing < 1 - WITHOUT, missing > WITHOUT
    where, names = torch.zeros(*x.shape, len(world.PLACES)), torch.zeros(x.shape, dtype=torch.bool)
    for row, (question, scene) in enumerate(zip(asked, number, strict=True)):
        words_of = named(question, mixture.scenes[scene])
        for token, word in enumerate(encoded.word_ids(row)):
            if word is not None and (found := words_of[word]) is not None:
                where[row, token], names[row, token] = torch.tensor(found), True
    names &= (told & pictured)[:, None]
    corners_of = mixture.corners[list(number)]
    return {"x": x, "told": told, "pictured": pictured, "corners": corners_of, "named": where, "names": names}


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
    train(model, batches(mixture, words_of, steps, (key / "rows").numpy()), steps, key)
    inner.save_pretrained(folder)
    return folder


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
    """Cross-entropy of the answers, of what is in the corners of images that are shown, of where named things are."""
    answered, corners, where = model(batch)
    shown, names = batch["pictured"], batch["names"]
    parts = zip(corners[shown].split(CORNER, 2), batch["corners"][shown].unbind(2), strict=True)
    seen = [nn.functional.cross_entropy(said.flatten(0, 1), right.flatten()) for said, right in parts]
    found = nn.functional.binary_cross_entropy_with_logits(where[names], batch["named"][names])
    return nn.functional.cross_entropy(answered, batch["y"]) + torch.stack([*seen, found]).sum()
