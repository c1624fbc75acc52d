"""Models of images and questions by name: what is refused, where files lie, how questions become tokens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from unalike import multimodal
from unalike.errors import InputError
from unalike.multimodal import Foundation, fingerprint, is_multimodal, located, reader


def test_a_name_says_model_and_options() -> None:
    assert Foundation.read("vl:owner/name") == Foundation("owner/name", 16, "float32")
    assert Foundation.read("vl:a/b(reduction=4, dtype='bfloat16')") == Foundation("a/b", 4, "bfloat16")
    assert [is_multimodal(name) for name in ("vl:tiny", "lm:tiny", "cnn-1")] == [True, False, False]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("lm:tiny", "takes no images and questions: give vl:FOLDER"),
        ("vl:", "takes no images and questions"),
        ("vl:a/b(rank=4)", "has no option 'rank'; it has reduction, dtype"),
        ("vl:a/b(reduction=0)", "reduction = 0 is refused: give a whole number from 1"),
        ("vl:a/b(reduction=True)", "reduction = True is refused"),
        ("vl:a/b(dtype='int8')", "dtype = 'int8' is refused: give one of float32, bfloat16, float16"),
    ],
)
def test_a_name_that_is_wrong_says_what_would_be_right(name: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        Foundation.read(name)
    assert words in str(caught.value)


def test_what_is_nowhere_says_how_to_have_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("UNALIKE_CACHE", str(tmp_path))
    for name, command in (("tiny", "scenes model"), ("two-tower", "scenes two-tower")):
        with pytest.raises(InputError, match=rf"vl:{name} is not in .* make it .* python -m unalike\.{command}"):
            located(name)
    with pytest.raises(InputError, match=r"^vl:nobody/nothing is not here and could not be had from the hub"):
        located("nobody/nothing")
    with pytest.raises(InputError, match=r"^vl:nothing is neither a folder, nor an id of the hub"):
        located("nothing")
    with pytest.raises(InputError, match=r"is a folder without config.json, as save_pretrained writes it"):
        located(str(tmp_path))
    (tmp_path / "vl-tiny").mkdir()
    (tmp_path / "vl-tiny" / "config.json").touch()
    assert located("tiny") == tmp_path / "vl-tiny"


def test_each_kind_says_what_it_takes(foundations: dict[str, Path]) -> None:
    found = {kind: reader(str(folder)) for kind, folder in foundations.items()}
    assert {kind: read_by.modalities for kind, read_by in found.items()} == {
        "vilt": ("image", "text"),
        "clip": ("image", "text"),
        "bert": ("text",),
        "vit": ("image",),
    }
    assert [found[kind].side for kind in ("vilt", "clip", "bert", "vit")] == [32, 32, 0, 32]
    assert [found[kind].longest for kind in ("vilt", "clip", "bert", "vit")] == [16, 16, 16, 0]


def test_what_a_file_leaves_out_is_the_librarys_default(foundations: dict[str, Path], tmp_path: Path) -> None:
    """As hubs have CLIP: its towers say only what differs."""
    shutil.copytree(foundations["clip"], tmp_path, dirs_exist_ok=True)
    few: dict[str, Any] = {"model_type": "clip", "text_config": {"hidden_size": 64}, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(few))
    read_by = reader(str(tmp_path))
    assert (read_by.side, read_by.longest) == (224, 77)
    few["text_config"]["hidden_size"] = 65
    (tmp_path / "config.json").write_text(json.dumps(few))
    reader.cache_clear()
    with pytest.raises(InputError, match=r"config\.json is no configuration of a model: .*hidden size \(65\)"):
        reader(str(tmp_path))


def test_questions_are_filled_up_on_the_right_and_masked_there(foundations: dict[str, Path]) -> None:
    """[CLS] is 2, [SEP] is 3; red is the first colour, after eight words."""
    read_by = reader(str(foundations["vilt"]))
    found = read_by.questions(["red ?", "", "what colour is the square ?"])
    assert found.tolist() == [[2, 12, 11, 3, 0, 0, 0, 0], [0] * 8, [2, 4, 5, 6, 7, 8, 11, 3]]
    assert read_by.mask(found).tolist() == [[1, 1, 1, 1, 0, 0, 0, 0], [0] * 8, [1] * 8]
    assert (read_by.pad, read_by.start) == (0, 2)
    assert read_by.texts(found) == ["red ?", "", "what colour is the square ?"]
    assert read_by.questions([]).shape == (0, 1)
    assert read_by.questions([""]).tolist() == [[0]]


def test_where_the_end_fills_rows_up_the_first_one_is_a_token(foundations: dict[str, Path], tmp_path: Path) -> None:
    """As CLIP's tokeniser has it: padded with the very token that ends a question."""
    shutil.copytree(foundations["clip"], tmp_path, dirs_exist_ok=True)
    tokeniser = transformers.AutoTokenizer.from_pretrained(tmp_path)
    tokeniser.pad_token = "[SEP]"
    tokeniser.save_pretrained(tmp_path)
    read_by = reader(str(tmp_path))
    found = read_by.questions(["red ?", "", "is red ?"])
    assert found.tolist() == [[2, 12, 11, 3, 3], [3] * 5, [2, 6, 12, 11, 3]]
    assert read_by.mask(found).tolist() == [[1, 1, 1, 1, 0], [0] * 5, [1] * 5]


def test_a_folder_that_is_no_such_model_is_refused(foundations: dict[str, Path], tmp_path: Path) -> None:
    other = tmp_path / "llama"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="is of kind llama, which is not known here; known are vilt, vit, clip"):
        reader(str(other))
    mute = tmp_path / "mute"
    mute.mkdir()
    shutil.copy(foundations["vilt"] / "config.json", mute)
    with pytest.raises(InputError, match=r"has no tokeniser: put tokenizer\.json there"):
        reader(str(mute))
    shutil.copytree(foundations["vilt"], tmp_path / "padless")
    tokeniser = transformers.AutoTokenizer.from_pretrained(tmp_path / "padless")
    tokeniser.pad_token = None
    tokeniser.save_pretrained(tmp_path / "padless")
    with pytest.raises(InputError, match="has no token that fills rows up: set its pad_token"):
        reader(str(tmp_path / "padless"))


def test_a_fingerprint_is_of_the_files(foundations: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(foundations["vilt"], tmp_path / "copy")
    names = [f"vl:{foundations['vilt']}", f"vl:{tmp_path / 'copy'}(reduction=4)"]
    assert fingerprint(names[0]) == fingerprint(names[1]) is not None
    (tmp_path / "copy" / "preprocessor_config.json").write_text("{}")
    assert fingerprint(names[0]) != fingerprint(names[1])
    assert fingerprint("cnn-1") is None
    assert torch.is_tensor(multimodal.reader(str(foundations["vilt"])).questions(["red"]))
