"""Names of language models, where they are looked for, and how their tokenisers write rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import pretrained
from unalike.errors import InputError
from unalike.plugins import absolute, label
from unalike.pretrained import Adapted, Tokeniser, located, neutral, tokeniser


def test_a_name_says_model_and_adapters() -> None:
    assert Adapted.read("lm:a/b") == Adapted("a/b", 8, 16, 0.05, "q_proj,v_proj", "float32", 512)
    assert Adapted.read("lm:x(r=4, dtype='bfloat16', targets='all-linear')").r == 4


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lm:x(rank=4)", "no option 'rank'; it has r, alpha, dropout, targets, dtype, length"),
        ("lm:x(r=0)", "r = 0 is refused: give a whole number from 1"),
        ("lm:x(r=True)", "r = True is refused"),
        ("lm:x(dropout=1)", "dropout = 1 is refused: give a number from 0, below 1"),
        ("lm:x(dtype='int8')", "give one of float32, bfloat16, float16"),
        ("lm:", "no language model"),
        ("cnn-1", "no language model"),
    ],
)
def test_what_a_name_cannot_say(name: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Adapted.read(name)
    assert said in str(caught.value)


def test_a_folder_is_found_from_anywhere_and_its_name_is_the_same_everywhere(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    assert absolute("lm:own(r=4)", tmp_path) == f"lm:{tmp_path / 'own'}(r=4)"
    assert absolute("lm:owner/name", tmp_path) == "lm:owner/name"
    assert label(f"lm:{tmp_path / 'own'}(r=4)") == "lm:own(r=4)"
    assert label("lm:owner/name") == "lm:owner/name"


def refused(model: str, *words: str) -> None:
    with pytest.raises(InputError) as caught:
        located.__wrapped__(model)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_what_is_nowhere_says_which_cache_or_folder_would_serve(tmp_path: Path, monkeypatch: Any) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cache = Path(constants.HF_HUB_CACHE) / "models--nobody--nothing"
    refused("nobody/nothing", "could not be had from the hub", str(cache), "give the folder of a copy")
    refused("nothing", "neither a folder, nor a .gguf file, nor an id of the hub such as owner/name")
    refused(str(tmp_path), "folder without config.json, as save_pretrained writes it")
    (tmp_path / "model.gguf").write_bytes(b"no")
    refused(str(tmp_path), f"give lm:{tmp_path / 'model.gguf'}")
    refused(str(tmp_path / "other.gguf"), f"there is no file {tmp_path / 'other.gguf'}")
    monkeypatch.setenv("UNALIKE_CACHE", str(tmp_path / "cache"))
    refused("tiny", "lm:tiny is not in", "python -m unalike.tiny model")
    refused(str(tmp_path / "model.gguf"), "cannot be read as a language model")
    assert not list((tmp_path / "cache" / "gguf").iterdir()), "half a conversion is no model"


def test_a_gguf_file_is_converted_once(tmp_path: Path, monkeypatch: Any) -> None:
    file, asked = tmp_path / "model.gguf", list[Path]()

    def convert(source: Path, folder: Path) -> None:
        asked.append(source)
        (folder / "config.json").write_text("{}")

    file.write_bytes(b"weights")
    monkeypatch.setattr(pretrained, "_convert", convert)
    monkeypatch.setenv("UNALIKE_CACHE", str(tmp_path / "cache"))
    first, again = located.__wrapped__(str(file)), located.__wrapped__(str(file))
    assert first == again
    assert first.parent == tmp_path / "cache" / "gguf"
    assert (first / "config.json").is_file()
    assert asked == [file]
    file.write_bytes(b"other weights")
    assert located.__wrapped__(str(file)) != first


def test_a_fingerprint_is_of_the_files_wherever_they_lie(tiny_lm: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_lm, tmp_path / "copy")
    first = pretrained.fingerprint(f"lm:{tiny_lm}(r=2)")
    assert first == pretrained.fingerprint(f"lm:{copy}")
    assert pretrained.fingerprint("cnn-1") is None
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert pretrained.fingerprint(f"lm:{copy}") != first


def test_prompts_stand_on_the_right_and_keep_their_end(tiny_lm: Path) -> None:
    words = tokeniser(str(tiny_lm))
    x = words.prompts(["say fox .", "say fox lamp bell ."], 64)
    assert words.prompt_mask(x).sum(1).tolist() == [x.shape[1] - 2, x.shape[1]]
    assert words.prompt_mask(x)[0, :2].tolist() == [0, 0]
    assert words.instructions(x) == ["say fox .", "say fox lamp bell ."]
    assert words.prompts(["say fox lamp bell ."], 8).equal(x[1:, -8:])
    assert words.prompts([], 8).shape == (0, 0)


def test_answers_stand_on_the_left_and_end(tiny_lm: Path) -> None:
    words = tokeniser(str(tiny_lm))
    y = words.answers(["fox lamp", "fox"])
    assert y[:, -1].tolist() == [words.eos, words.pad]
    assert words.answer_mask(y).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert words.texts(y) == ["fox lamp", "fox"]


def test_the_end_may_be_what_rows_are_filled_up_with(tiny_lm: Path) -> None:
    """As for SmolLM2: the first of them is the answer's end, and trained; the others are filling."""
    words = Tokeniser(tiny_lm)
    words.pad = words.eos
    y = words.answers(["fox lamp", "fox"])
    assert words.answer_mask(y).tolist() == [[1, 1, 1], [1, 1, 0]]
    assert words.texts(torch.tensor([[words.eos] * 3])) == [""]
    x = words.prompts(["say fox .", "say fox lamp bell ."], 64)
    assert words.prompt_mask(x).sum(1).tolist() == [x.shape[1] - 2, x.shape[1]]


def test_neutral_instructions_are_the_models_own_where_it_has_some(tiny_lm: Path, tmp_path: Path) -> None:
    assert len(neutral(str(tiny_lm))) == 32
    (tmp_path / "config.json").write_text("{}")
    assert neutral(str(tmp_path)) == pretrained.INSTRUCTIONS
    (tmp_path / "neutral.json").write_text(json.dumps({"no": "list"}))
    with pytest.raises(InputError, match="must be a list of instructions"):
        neutral(str(tmp_path))
