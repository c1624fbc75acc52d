"""Frames of `wire` as the content of Flower messages, and back, without torch.

The head becomes a ConfigRecord "ticket" (numbers and texts as they are, the rest as JSON), the tree an ArrayRecord
"tree" whose names are those of the leaves, joined by "/". Arrays are NumPy's format, as Flower's own are; bfloat16,
which NumPy lacks, travels as the 16-bit integers of the same bits under its own name.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from ..wire import Message

TICKET, TREE, NESTED = "ticket", "tree", ".json"
BFLOAT16 = "bfloat16"
_HELD = {
    **{f"F{bits}": f"<f{bits // 8}" for bits in (16, 32, 64)},
    **{f"{kind}{bits}": f"<{kind.lower()}{bits // 8}" for kind in "IU" for bits in (8, 16, 32, 64)},
    "BOOL": "?",
    "BF16": "<u2",
}
"""How NumPy holds what safetensors calls so."""


def to_content(message: Message) -> RecordDict:
    """A message of the loop as a Flower message's content."""
    head = {k if _is_plain(v) else k + NESTED: v if _is_plain(v) else json.dumps(v) for k, v in message.head.items()}
    content = RecordDict({TICKET: ConfigRecord(head)})
    if message.body:
        leaves = safetensors.deserialize(message.body)  # type: ignore[no-untyped-call]
        content[TREE] = ArrayRecord({name: _array(leaf) for name, leaf in sorted(leaves, key=lambda named: named[0])})
    return content


def from_content(content: RecordDict) -> Message:
    """The message of the loop that a Flower message carries."""
    head: dict[str, Any] = {}
    for name, value in content[TICKET].items():
        if name.endswith(NESTED):
            head[name.removesuffix(NESTED)] = json.loads(str(value))
        else:
            head[name] = value
    return Message(head, _body(content.array_records[TREE]) if TREE in content.array_records else b"")


def _is_plain(value: Any) -> bool:
    return isinstance(value, bool | int | float | str)


def _array(leaf: dict[str, Any]) -> Array:
    array = Array(np.frombuffer(leaf["data"], dtype=_HELD[leaf["dtype"]]).reshape(leaf["shape"]))
    if leaf["dtype"] == "BF16":
        array.dtype = BFLOAT16
    return array


def _body(record: ArrayRecord) -> bytes:
    body = safetensors.numpy.save({name: array.numpy() for name, array in record.items()})
    renamed = [name for name, array in record.items() if array.dtype == BFLOAT16]
    return _as_bfloat16(body, renamed) if renamed else body


def _as_bfloat16(body: bytes, names: list[str]) -> bytes:
    """The same safetensors whose header calls these leaves' 16 bits bfloat16."""
    end = 8 + int.from_bytes(body[:8], "little")
    header = json.loads(body[8:end])
    for name in names:
        header[name]["dtype"] = "BF16"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body[end:]
