"""Frames as Flower's records and back: every dtype, shape and head that the loop sends."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from unalike import tree
from unalike.engines.flower import records
from unalike.engines.flower.grid import LocalGrid, _carried, _identify
from unalike.engines.wire import Message, pack

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
INTEGERS = [torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.uint32, torch.uint64]
SHAPES = [(), (1,), (5,), (2, 3), (0,), (0, 4), (3, 0, 2)]


def back(message: Message) -> Message:
    """The message after Flower has taken it apart and put it together."""
    from flwr.app import Message as Sent

    LocalGrid([])
    _identify(node=1)
    sent = Sent(records.to_content(message), 2, "query")
    sent.metadata.__dict__["_message_id"] = sent.object_id
    return records.from_content(_carried(sent).content)


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, torch.bool], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_leaf_comes_back_bit_for_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Random bits, so that NaNs with a payload, infinities, subnormals and negative zeros are among them."""
    bits = torch.randint(0, 256, (math.prod(shape) * dtype.itemsize,), dtype=torch.uint8)
    leaf = (bits % 2 == 1).reshape(shape) if dtype == torch.bool else bits.view(dtype).reshape(shape)
    found = back(Message({"round": 1}, pack({"w": leaf}))).tree["w"]
    assert (found.dtype, found.shape) == (dtype, leaf.shape)
    assert tree.equal({"w": found}, {"w": leaf})


def test_a_nested_tree_of_mixed_leaves_comes_back() -> None:
    value = {
        "model": {"extractor": {"0.weight": torch.rand(3, 2), "~mean": torch.rand(2).bfloat16()}, "header": {}},
        "B": {"0": torch.tensor(7), "10": torch.tensor(False), "2": torch.zeros(0)},
        "α": torch.rand(2, 2).T,
    }
    assert tree.equal(back(Message({"round": 1}, pack(value))).tree, value)


def test_no_body_stays_no_body() -> None:
    assert back(Message({"kind": "ping"})) == Message({"kind": "ping"})


@pytest.mark.parametrize(
    "value",
    [
        *(True, False, 0, -3, 2**62, 0.1, 1e-320, float("inf"), "", "text", "α/β", None, [], [1, 2], [3, None], {}),
        {"a": {"b": [0.1, 1e308]}},
        {"loss": 0.30000000000000004},
    ],
    ids=repr,
)
def test_a_heads_value_comes_back_with_its_type(value: Any) -> None:
    found = back(Message({"x": value})).head["x"]
    assert found == value
    assert type(found) is type(value)


def test_flower_reads_the_arrays_as_what_they_are() -> None:
    """So that its own tools can: only bfloat16, which NumPy lacks, is seen as the bits it has."""
    leaves = {
        "f": torch.tensor([0.5, -1.0]),
        "flag": torch.tensor(True),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
        "n": torch.tensor([3], dtype=torch.int16),
    }
    arrays = records.to_content(Message({}, pack(leaves))).array_records[records.TREE]
    assert list(arrays) == ["f", "flag", "half", "n"]
    seen = {name: array.numpy() for name, array in arrays.items()}
    assert seen["f"].dtype == np.float32
    assert seen["f"].tolist() == [0.5, -1.0]
    assert (seen["flag"].dtype, seen["flag"].shape, bool(seen["flag"])) == (np.bool_, (), True)
    assert (seen["n"].dtype, seen["n"].tolist()) == (np.int16, [3])
    assert (seen["half"].dtype, seen["half"].tolist()) == (np.uint16, [0x3FC0])
    assert [array.dtype for array in arrays.values()] == ["float32", "bool", "bfloat16", "int16"]


def test_sixteen_bit_integers_are_not_taken_for_bfloat16() -> None:
    value = {"bits": torch.tensor([0x3FC0], dtype=torch.uint16), "half": torch.tensor([1.5], dtype=torch.bfloat16)}
    assert tree.equal(back(Message({}, pack(value))).tree, value)
