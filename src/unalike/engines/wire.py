"""Messages between the loop and the sites: a JSON head and a tree as safetensors. Bytes, never objects.

Importing this does not import torch: what only passes messages on, as Flower's processes do, starts in no time.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO

from ..errors import RunError

if TYPE_CHECKING:
    from ..tree import Tree

_LENGTHS = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class Message:
    """`head` is JSON; `body` a tree in bytes, encoded once even when many clients get it."""

    head: Mapping[str, Any]
    body: bytes = b""

    @property
    def tree(self) -> dict[str, Any]:
        from .. import tree

        return tree.from_bytes(self.body) if self.body else {}

    def encode(self) -> bytes:
        head = json.dumps(self.head).encode()
        return b"".join((_LENGTHS.pack(len(head), len(self.body)), head, self.body))

    @classmethod
    def decode(cls, frame: bytes) -> Message:
        view = memoryview(frame)
        head, body = _LENGTHS.unpack(view[: _LENGTHS.size])
        middle = _LENGTHS.size + head
        return cls(json.loads(bytes(view[_LENGTHS.size : middle])), bytes(view[middle : middle + body]))


def answered(frame: bytes) -> Message:
    """The reply in a frame; one that tells of an error raises it."""
    message = Message.decode(frame)
    if "error" in message.head:
        error = RunError(message.head["error"])
        if "trace" in message.head:  # a site that lies elsewhere keeps it
            error.add_note(message.head["trace"])
        raise error
    return message


def pack(value: Tree) -> bytes:
    """A tree as a message body; an empty tree is no bytes at all."""
    from .. import tree

    return tree.to_bytes(value) if tree.flatten(value) else b""


def write_frame(stream: BinaryIO, frame: bytes) -> None:
    """One frame on a pipe."""
    stream.write(frame)
    stream.flush()


def read_frame(stream: BinaryIO) -> bytes | None:
    """The next frame of a pipe, None at its end."""
    lengths = stream.read(_LENGTHS.size)
    if not lengths:
        return None
    if len(lengths) == _LENGTHS.size:
        frame = lengths + stream.read(sum(_LENGTHS.unpack(lengths)))
        if len(frame) == _LENGTHS.size + sum(_LENGTHS.unpack(lengths)):
            return frame
    raise RunError("a message was cut off in the middle: the process at the other end has died")
