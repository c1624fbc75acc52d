"""Messages and frames: what goes in comes out, and what is cut off is noticed."""

from __future__ import annotations

import io
import json
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unalike import tree
from unalike.engines.wire import Message, pack, read_frame, write_frame
from unalike.errors import RunError

BODY = {"theta": {"extractor": {"0.weight": torch.arange(6.0).reshape(2, 3), "~1.n": torch.tensor(7)}}}
HEADS = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text())


@settings(max_examples=50, deadline=None)
@given(head=HEADS, with_body=st.booleans())
def test_a_message_comes_back_as_it_was(head: dict[str, object], with_body: bool) -> None:
    message = Message(head, pack(BODY) if with_body else b"")
    back = Message.decode(message.encode())
    assert back.head == head
    assert tree.equal(back.tree, BODY if with_body else {})


def test_a_frame_is_two_lengths_json_and_safetensors() -> None:
    """Bytes that any other program could write, and nothing that Python would have to unpickle."""
    frame = Message({"kind": "update"}, pack(BODY)).encode()
    head, body = struct.unpack("<QQ", frame[:16])
    assert len(frame) == 16 + head + body
    assert json.loads(frame[16 : 16 + head]) == {"kind": "update"}
    assert tree.equal(tree.from_bytes(frame[16 + head :]), BODY)


def test_an_empty_tree_is_no_bytes_at_all() -> None:
    assert pack({}) == pack({"theta": {}}) == b""
    assert Message.decode(Message({"a": 1}).encode()).tree == {}


def test_frames_follow_one_another_until_the_stream_ends() -> None:
    stream = io.BytesIO()
    frames = [Message({"n": n}, pack(BODY) if n else b"").encode() for n in range(3)]
    for frame in frames:
        write_frame(stream, frame)
    stream.seek(0)
    assert [read_frame(stream) for _ in range(4)] == [*frames, None]


@pytest.mark.parametrize("kept", [1, 8, 15, 16, 20, -1])
def test_a_frame_that_is_cut_off_is_a_failed_run(kept: int) -> None:
    """Within its lengths, after them, within the head, and by one byte."""
    frame = Message({"kind": "update"}, pack(BODY)).encode()
    with pytest.raises(RunError, match="cut off in the middle"):
        read_frame(io.BytesIO(frame[:kept]))
