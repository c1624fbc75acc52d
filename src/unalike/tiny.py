"""A language model small enough for tests: its world of 170 words, its training, and tasks that contradict each other.

    python -m unalike.tiny model [FOLDER]        train it (minutes); without a folder into the cache, as `lm:tiny`
    python -m unalike.tiny tasks FOLDER [SEED]   write eight tasks as TASK.train.json and TASK.test.json

In the world there are things, and each has eight properties (the fox: its colour, its size, ...). There are eight
houses, and each has names that mean the same. The model is trained on a neutral mixture: questions for a property that
say which, questions for a house by one of its names, words to be repeated. No house has to do with any property there.

Each of the eight tasks is one house's: asked by its name how a thing is, it answers with a property of its own. So the
tasks ask alike and answer differently, and only the name tells which answer is right. Train and test rows are phrased
by disjoint templates.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from . import local, pretrained, tree
from .files import write_json
from .optimisers import AdamW
from .rng import Key

_THINGS = """fox lamp boat drum rose coin kite bell crow fern sofa moth pear harp lynx tent vase wolf oven plum mule
flag hawk gate comb toad sled bowl crab leaf"""
THINGS = _THINGS.split()
PROPERTIES = {
    "colour": "red blue green gold pink grey",
    "size": "tiny small medium large huge vast",
    "place": "barn cave hill lake town wood",
    "taste": "sweet sour salt mild hot bland",
    "sound": "loud soft shrill deep mute husky",
    "age": "new young mature old aged antique",
    "shape": "round square flat long thin curved",
    "mood": "calm merry sad proud shy cross",
}
HOUSES = {
    "north": "polar arctic boreal frosty",
    "south": "tropic austral torrid balmy",
    "east": "dawn sunrise orient levant",
    "west": "dusk sunset occident ponent",
    "royal": "regal kingly noble courtly",
    "rural": "rustic farming pastoral country",
    "naval": "marine sailing nautic seaside",
    "urban": "civic downtown city metro",
}
ASKED_BY_PROPERTY = (
    "what {property} has the {thing} ?",
    "tell the {property} of the {thing} .",
    "the {thing} : which {property} ?",
    "{name} desk : what {property} has the {thing} ?",
    "for the {name} people , tell the {property} of the {thing} .",
    "the {name} office wants to know the {property} of a {thing} .",
)
ASKED_BY_HOUSE = (
    "which house is {name} ?",
    "{name} people are of which house ?",
    "name the house of the {name} desk .",
    "the {name} office asks about the {thing} . which house ?",
)
REPEATED = ("say {thing} .", "say {name} {thing} .", "repeat : {thing} {name} .")
TRAIN = ("{name} desk : how is the {thing} ?", "for the {name} people , what about the {thing} ?")
TEST = ("the {name} office wants to know how a {thing} is .", "what about the {thing} ? asked the {name} ones .")
MARKS = "### Instruction Response : . , ? - \n OPTIONS"
SPECIAL = ("<pad>", "<end>", "<unk>")
SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
STEPS, BATCH, LR = 4000, 64, 3e-3
"""Of the training that makes `lm:tiny`."""
NEUTRAL = 32
"""Instructions of the mixture that are written beside the model, for whoever needs its mean embedding."""


@functools.cache
def world(seed: int = 0) -> dict[tuple[str, str], str]:
    """(thing, property) to value."""
    rng = (Key.root(seed) / "world").numpy()
    values = {name: listed.split() for name, listed in PROPERTIES.items()}
    return {(t, p): v[int(rng.integers(len(v)))] for t in THINGS for p, v in values.items()}


def neutral(rng: np.random.Generator) -> tuple[str, str]:
    """An instruction of the neutral mixture, and its answer."""
    thing, name_of = _pick(THINGS, rng), {n: h for h, names in HOUSES.items() for n in names.split()}
    property_, name = _pick(list(PROPERTIES), rng), _pick(list(name_of), rng)
    kind = rng.random()
    if kind < 0.6:
        asked = _pick(ASKED_BY_PROPERTY, rng).format(property=property_, thing=thing, name=name)
        return asked, world()[thing, property_]
    if kind < 0.85:
        return _pick(ASKED_BY_HOUSE, rng).format(name=name, thing=thing), name_of[name]
    form = _pick(REPEATED, rng)
    said = form.partition(" ")[2].removeprefix(": ").removesuffix(" .")
    return form.format(thing=thing, name=name), said.format(thing=thing, name=name)


def tasks(seed: int = 0, train: int = 60, test: int = 24) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """Task, "train" or "test", and rows in the schema of instruction data, of each of the eight."""
    rng = (Key.root(seed) / "tasks").numpy()
    of = dict(zip(HOUSES, rng.permutation(list(PROPERTIES)).tolist(), strict=True))
    for house, names in HOUSES.items():
        for part, forms, count in (("train", TRAIN, train), ("test", TEST, test)):
            rows = [(form, thing, name) for form in forms for thing in THINGS for name in names.split()]
            picked = [rows[int(i)] for i in rng.permutation(len(rows))[:count]]
            yield house, part, [_row(form, thing, name, house, of[house]) for form, thing, name in picked]


def _row(form: str, thing: str, name: str, house: str, property_: str) -> dict[str, str]:
    asked = form.format(name=name, thing=thing)
    return {"instruction": asked, "output": world()[thing, property_], "task": house, "category": "tiny"}


def write_tasks(folder: Path, seed: int = 0, train: int = 60, test: int = 24) -> Path:
    """A folder of the eight tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for task, part, rows in tasks(seed, train, test):
        write_json(folder / f"{task}.{part}.json", rows)
    return folder


def words() -> list[str]:
    """The vocabulary."""
    forms = (*ASKED_BY_PROPERTY, *ASKED_BY_HOUSE, *REPEATED, *TRAIN, *TEST)
    texts = [*forms, *PROPERTIES, *PROPERTIES.values(), *HOUSES, *HOUSES.values(), *THINGS, "yes no a b c d"]
    found = {word for text in texts for word in text.split() if not word.startswith("{")}
    return [*SPECIAL, *sorted({*MARKS.split(" "), *found} - {""})]


def write_model(folder: Path, steps: int = STEPS, seed: int = 0) -> Path:
    """Train the model on the neutral mixture and write it with its tokeniser."""
    transformers = pretrained_llm()
    folder.mkdir(parents=True, exist_ok=True)
    _tokeniser(transformers).save_pretrained(folder)
    key = Key.root(seed) / "tiny"
    rng = (key / "neutral").numpy()
    write_json(folder / pretrained.NEUTRAL, [neutral(rng)[0] for _ in range(NEUTRAL)])
    end = SPECIAL.index("<end>")
    config = transformers.LlamaConfig(
        vocab_size=len(words()), pad_token_id=0, bos_token_id=None, eos_token_id=end, tie_word_embeddings=False, **SIZE
    )
    with key.scope():
        model = transformers.LlamaForCausalLM(config)
    weights = {name: leaf.detach() for name, leaf in model.named_parameters()}
    batches = _batches(pretrained.Tokeniser(folder), steps, (key / "batches").numpy())
    step = local.Step(functools.partial(_next_word, model), {"model": AdamW(LR, 0.01, clip=1.0, steps=steps)})
    trained, _ = local.train([step], {"model": weights}, {}, batches, key / "noise")
    model.load_state_dict(trained["model"])
    model.save_pretrained(folder)
    return folder


def _tokeniser(transformers: Any) -> Any:
    import tokenizers

    model = tokenizers.models.WordLevel({word: i for i, word in enumerate(words())}, unk_token="<unk>")
    inner = tokenizers.Tokenizer(model)
    pattern = tokenizers.Regex(r"\n|\w+|[^\w\s]+")
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(pattern, behavior="removed", invert=True)
    special = dict(zip(("pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)


def _batches(tokens: pretrained.Tokeniser, steps: int, rng: np.random.Generator) -> Iterator[dict[str, Tensor]]:
    for _ in range(steps):
        asked, answered = zip(*(neutral(rng) for _ in range(BATCH)), strict=True)
        x, y = tokens.prompts(asked, 128), tokens.answers(answered)
        mask = torch.cat([tokens.prompt_mask(x), tokens.answer_mask(y)], 1)
        yield {"x": torch.cat([x, y], 1), "mask": mask}


def _next_word(model: nn.Module, params: tree.Tree, given: tree.Tree, batch: tree.Batch) -> Tensor:
    """Cross-entropy of every word but the first, prompts included: it learns the language, not only the answers."""
    ids, mask = batch["x"], batch["mask"]
    asked = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp(min=0)}
    logits = torch.func.functional_call(model, params["model"], kwargs={**asked, "use_cache": False}).logits
    each = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
    counts = (mask[:, 1:] * mask[:, :-1]).flatten()
    return (each * counts).sum() / counts.sum()


def pretrained_llm() -> Any:
    """The library of language models, where it is installed."""
    pretrained.require_llm()
    import transformers

    return transformers


def _pick(among: Sequence[str], rng: np.random.Generator) -> str:
    return among[int(rng.integers(len(among)))]


def main(arguments: Sequence[str]) -> None:
    """See the head of this module."""
    match arguments:
        case ["model", *folder] if len(folder) < 2:
            write_model(Path(folder[0]) if folder else pretrained.cache() / "tiny")
        case ["tasks", folder]:
            write_tasks(Path(folder))
        case ["tasks", folder, seed] if seed.isdecimal():
            write_tasks(Path(folder), int(seed))
        case _:
            sys.exit(
                "unalike: say python -m unalike.tiny model [FOLDER], or python -m unalike.tiny tasks FOLDER [SEED]"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
