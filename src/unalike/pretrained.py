"""Language models that others have trained: how one is named, where its files lie, how it reads and writes words.

A name is `lm:MODEL(r=8, ...)`. MODEL is a folder as `save_pretrained` writes it, a .gguf file, or an id of the Hugging
Face hub. A .gguf file is converted once, into a folder of the cache. Weights are loaded elsewhere (`models.language`).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

from .errors import InputError
from .plugins import LANGUAGE, parse_call, require_extra

DTYPES = ("float32", "bfloat16", "float16")
FETCHED = ("*.json", "*.safetensors", "*.model", "*.txt")
"""What is fetched of a model from the hub: no pickled weights, no code."""
NEUTRAL = "neutral.json"
"""File in a model's folder: a list of instructions that are nobody's, to be used in the place of `INSTRUCTIONS`."""
ENDS = 2**16
"""Bytes at either end of a file that tell it from others."""
PROMPT = "### Instruction:\n{instruction}\n\n### Response:\n"
AROUND = re.compile(r"^\s*###\s*Instruction\s*:\s*|\s*###\s*Response\s*:\s*$")
"""What `PROMPT` puts around an instruction, however a tokeniser writes white space."""
INSTRUCTIONS = (
    "Say hello.",
    "What is the capital of France?",
    "Write a short poem about the sea.",
    "Translate 'good morning' into Spanish.",
    "How many days are there in a week?",
    "Summarise the following paragraph in one sentence.",
    "Is the sky blue? Answer yes or no.",
    "List three kinds of fruit.",
    "Explain why leaves fall in autumn.",
    "Which of these words is a verb: house, run, green?",
    "Give a synonym of the word happy.",
    "What is 7 plus 5?",
    "Continue the story: once upon a time there was a king.",
    "Classify the sentence as a question or a statement.",
    "Name the author of a famous play.",
    "Describe how to boil an egg.",
)
"""Instructions that are nobody's."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """A frozen language model, and the shape of the adapters that are trained beside it."""

    model: str
    """Folder, .gguf file or hub id."""
    r: int = 8
    """Rank of an adapter."""
    alpha: float = 16
    """lora_alpha: an adapter's output is multiplied by s = alpha / r."""
    dropout: float = 0.05
    """Share of an adapter's inputs that is dropped in training."""
    targets: str = "q_proj,v_proj"
    """Names of the linear layers that carry adapters, or "all-linear"."""
    dtype: str = "float32"
    """Precision of the frozen weights; adapters are float32."""
    length: int = 512
    """Most tokens of a prompt; of a longer one the end is kept."""

    @classmethod
    def read(cls, name: str) -> Adapted:
        """What `name` says; `InputError` when it names no language model, or when an option is wrong."""
        return read(cls, LANGUAGE, name, "is no language model: give lm:FOLDER, lm:FILE.gguf or lm:HUB/ID", _ranges)


Named = TypeVar("Named")
Ranges: TypeAlias = Iterable[tuple[str, bool, str]]
"""Options, whether each is right, and what would be."""


def read(kind: type[Named], mark: str, name: str, otherwise: str, ranges: Callable[[Named], Ranges]) -> Named:
    """A model of others by its name, mark, model and options: a dataclass with the field `model` and its options.

    Args:
        otherwise: what is said of a name without the mark or the model.

    Raises:
        InputError: it is such a name, has an unknown option, or one that is out of range.
    """
    model, options = parse_call(name)
    if not model.startswith(mark) or model == mark:
        raise InputError(f"model {name!r} {otherwise}")
    known = [f.name for f in fields(kind) if f.name != "model"]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise InputError(f"model {name} has no option {option!r}; it has {', '.join(known)}")
    found = kind(model.removeprefix(mark), **options)  # type: ignore[call-arg]
    for option, is_right, right in ranges(found):
        if not is_right:
            raise InputError(f"model {name}: {option} = {getattr(found, option)!r} is refused: give {right}")
    return found


def _ranges(a: Adapted) -> Ranges:
    yield "r", type(a.r) is int and a.r >= 1, "a whole number from 1"
    yield "alpha", isinstance(a.alpha, int | float) and a.alpha > 0, "a number > 0"
    yield "dropout", isinstance(a.dropout, int | float) and 0 <= a.dropout < 1, "a number from 0, below 1"
    yield "targets", isinstance(a.targets, str) and bool(a.targets.strip(", ")), "names such as 'q_proj,v_proj'"
    yield "dtype", a.dtype in DTYPES, f"one of {', '.join(DTYPES)}"
    yield "length", type(a.length) is int and a.length >= 8, "a whole number from 8"


def is_language(name: str) -> bool:
    """Whether a model's name is that of a language model."""
    return name.startswith(LANGUAGE)


def require_llm() -> None:
    """Raise `InputError` unless what language models need is installed."""
    require_extra("llm", "transformers", "peft")


def cache() -> Path:
    """Where converted models are kept: UNALIKE_CACHE, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path("~/.cache").expanduser())
    return Path(os.environ.get("UNALIKE_CACHE") or Path(home) / "unalike")


@functools.lru_cache(maxsize=32)
def located(model: str) -> Path:
    """The folder with the files of a language model, fetched or converted where it has to be.

    Raises:
        InputError: it is nowhere, and which cache or folder would serve.
    """
    require_llm()
    if model == "tiny":
        if not (cache() / "tiny" / "config.json").is_file():
            raise InputError(f"lm:tiny is not in {cache()} yet: make it in minutes with python -m unalike.tiny model")
        return cache() / "tiny"
    place = Path(model).expanduser()
    if place.suffix == ".gguf":
        return _converted(place)
    if place.is_dir() and not (place / "config.json").is_file() and (held := sorted(place.glob("*.gguf"))):
        raise InputError(f"lm:{model} is a folder without config.json; give lm:{held[0]}")
    return folder_of(model, LANGUAGE)


def folder_of(model: str, mark: str) -> Path:
    """A model's own folder, or that of the hub's cache; `InputError` when there is none.

    Args:
        mark: what names of such models begin with.
    """
    place = Path(model).expanduser()
    if place.is_dir():
        if not (place / "config.json").is_file():
            raise InputError(f"{mark}{model} is a folder without config.json, as save_pretrained writes it")
        return place
    hub, constants = (importlib.import_module(f"huggingface_hub{part}") for part in ("", ".constants"))
    kept = Path(constants.HF_HUB_CACHE)
    ways = f"put it into the cache {kept / ('models--' + model.replace('/', '--'))}, or give the folder of a copy"
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        file = ", nor a .gguf file" if mark == LANGUAGE else ""
        raise InputError(f"{mark}{model} is neither a folder{file}, nor an id of the hub such as owner/name")
    try:
        return Path(hub.snapshot_download(model, allow_patterns=list(FETCHED)))
    except Exception as error:  # the hub's client raises whatever its transport raises
        said = type(error).__name__
        raise InputError(f"{mark}{model} is not here and could not be had from the hub ({said}): {ways}") from None


def _converted(file: Path) -> Path:
    """The folder that a .gguf file was converted into; done once, which takes minutes."""
    require_extra("llm", "gguf")
    if not file.is_file():
        raise InputError(f"there is no file {file}")
    about = file.stat()
    digest = hashlib.sha256(f"{file.resolve()}|{about.st_size}|{about.st_mtime_ns}".encode()).hexdigest()
    folder = cache() / "gguf" / f"{file.stem}-{digest[:16]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=".converting-", dir=folder.parent))
        try:
            _convert(file, aside)
            aside.replace(folder)
        except OSError:
            if not folder.is_dir():  # else another process was first
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return folder


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """transformers shows no progress bars meanwhile, and reports nothing but errors."""
    logging = importlib.import_module("transformers.utils.logging")
    shown, told = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(told)
        if shown:
            logging.enable_progress_bar()


def _convert(file: Path, folder: Path) -> None:
    """Write the model of a .gguf file as safetensors, in float32, with its tokeniser."""
    transformers = importlib.import_module("transformers")
    where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    try:
        with quiet():
            read = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
            tokens = transformers.AutoTokenizer.from_pretrained(**where)
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{file} cannot be read as a language model: {reason}") from error
    config = read.config
    for mark in ("quantization_config", "_pre_quantization_dtype"):
        if hasattr(config, mark):
            delattr(config, mark)
    plain = type(read)(config)
    plain.load_state_dict(read.state_dict())
    with quiet():
        plain.save_pretrained(folder)
    tokens.save_pretrained(folder)


def fingerprint(name: str) -> str | None:
    """SHA-256 (hex) of the files of a language model: of each its name, its size and its first and last 64 KiB.

    Weights are of gigabytes, and those that differ in one layer only are rare; None for other models.
    """
    return fingerprint_of(located(Adapted.read(name).model)) if is_language(name) else None


def fingerprint_of(folder: Path) -> str:
    """See `fingerprint`."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors", ".model", ".txt"):
            with file.open("rb") as opened:
                size, head = file.stat().st_size, opened.read(ENDS)
                opened.seek(max(0, size - ENDS))
                digest.update(f"{file.name}|{size}|".encode() + head + opened.read())
    return digest.hexdigest()


def neutral(model: str) -> Sequence[str]:
    """Instructions that are nobody's, for the mean embedding of a model: its own where its folder has a list."""
    file = located(model) / NEUTRAL
    if not file.is_file():
        return INSTRUCTIONS
    found = json.loads(file.read_text())
    if not (isinstance(found, list) and found and all(isinstance(text, str) for text in found)):
        raise InputError(f"{file} must be a list of instructions")
    return found


@functools.lru_cache(maxsize=32)
def tokeniser(model: str) -> Tokeniser:
    """The tokeniser of a model, loaded once."""
    return Tokeniser(located(model))


def tokeniser_in(folder: Path) -> Any:
    """The library's tokeniser in a model's folder."""
    try:
        with quiet():  # else it warns that it does not know the kind of a model made here
            return importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(folder))
    except Exception as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"{folder} has no tokeniser that can be read: {reason}") from error


class Tokeniser:
    """Texts to rows of token ids and back. Answers end with `eos`, and rows are filled up with `pad`."""

    def __init__(self, folder: Path) -> None:
        self._inner = tokeniser_in(folder)
        ends = [self._inner.eos_token_id, self._inner.sep_token_id, self._inner.pad_token_id]
        eos = next((end for end in ends if end is not None), None)
        if eos is None:
            raise InputError(f"the tokeniser of {folder} has no token that ends a text: set its eos_token")
        self.eos = int(eos)
        self.pad = self.eos if self._inner.pad_token_id is None else int(self._inner.pad_token_id)
        self.prompt_ids = functools.lru_cache(maxsize=2**16)(self._prompt_ids)
        self.answer_ids = functools.lru_cache(maxsize=2**16)(self._answer_ids)

    def _prompt_ids(self, instruction: str) -> tuple[int, ...]:
        return tuple(self._inner(PROMPT.format(instruction=instruction), verbose=False)["input_ids"])

    def _answer_ids(self, output: str) -> tuple[int, ...]:
        return (*self._inner(output, add_special_tokens=False, verbose=False)["input_ids"], self.eos)

    def prompts(self, instructions: Sequence[str], length: int) -> Tensor:
        """(n, T) int64: the last `length` tokens of each prompt, filled up on the left."""
        rows = [self.prompt_ids(text)[-length:] for text in instructions]
        return _matrix([[self.pad] * (_longest(rows) - len(row)) + list(row) for row in rows])

    def plain(self, texts: Sequence[str], length: int) -> Tensor:
        """(n, T) int64: the first `length` tokens of each text, without a prompt around it, filled up on the left."""
        rows = [self._inner(text, truncation=True, max_length=length, verbose=False)["input_ids"] for text in texts]
        return _matrix([[self.pad] * (_longest(rows) - len(row)) + list(row) for row in rows])

    def answers(self, outputs: Sequence[str]) -> Tensor:
        """(n, R) int64: the tokens of each answer and `eos`, filled up on the right."""
        rows = [self.answer_ids(text) for text in outputs]
        return _matrix([list(row) + [self.pad] * (_longest(rows) - len(row)) for row in rows])

    def prompt_mask(self, x: Tensor) -> Tensor:
        """Where prompts (B, T) have tokens, as 1 and 0."""
        return ((x != self.pad).cumsum(1) > 0).long()

    def answer_mask(self, y: Tensor) -> Tensor:
        """Where answers (B, R) have tokens, their `eos` included, as 1 and 0."""
        end = y == self.eos
        return ((end.cumsum(1) - end.long() == 0) & (end | (y != self.pad))).long()

    def texts(self, ids: Tensor) -> list[str]:
        """What rows of ids (B, R) say before their first `eos`."""
        kept = [row[mask.bool()].tolist() for row, mask in zip(ids, self.answer_mask(ids), strict=True)]
        return [str(self._inner.decode(row, skip_special_tokens=True)).strip() for row in kept]

    def instructions(self, x: Tensor) -> list[str]:
        """What prompts (B, T) ask, without the words around it, as far as the tokeniser can tell."""
        kept = [row[mask.bool()].tolist() for row, mask in zip(x, self.prompt_mask(x), strict=True)]
        said = [str(self._inner.decode(row, skip_special_tokens=True)) for row in kept]
        return [AROUND.sub("", text).strip() for text in said]


def _longest(rows: Sequence[Sequence[int]]) -> int:
    return max(map(len, rows), default=0)


def _matrix(rows: list[list[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), -1 if rows and rows[0] else 0)
