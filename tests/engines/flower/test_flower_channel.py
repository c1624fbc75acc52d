"""Frames between processes of a site, and what may be imported where."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict
from flwr.app import Message as Sent

from unalike.engines.flower.channel import Listener, ask
from unalike.engines.flower.client import SOCKET, client_app
from unalike.engines.flower.grid import LocalGrid, _identify
from unalike.engines.flower.records import from_content, to_content
from unalike.engines.wire import Message, read_frame
from unalike.errors import RunError

ENDS = "import os, sys; from unalike.engines.flower.channel import Listener; import time\n" + (
    "listener = Listener(lambda frame: os._exit(9))\nprint(listener.address, flush=True)\ntime.sleep(60)"
)


def turned(frame: bytes) -> bytes:
    """Answers a message with its body turned around."""
    message = Message.decode(frame)
    return Message({"length": len(message.body)}, message.body[::-1]).encode()


@pytest.fixture(params=[True, False], ids=["unix", "loopback"])
def listener(request: pytest.FixtureRequest) -> Iterator[Listener]:
    made = Listener(turned, request.param)
    yield made
    made.close()


def test_many_frames_of_any_size(listener: Listener) -> None:
    for size in [*range(50), 100_000, 3_000_000]:
        body = os.urandom(size)
        said = Message.decode(ask(listener.address, Message({"n": size}, body).encode()))
        assert (said.head, said.body) == ({"length": size}, body[::-1])


def test_frames_from_several_at_once(listener: Listener) -> None:
    found = dict[int, bytes]()

    def asking(n: int) -> None:
        found[n] = Message.decode(ask(listener.address, Message({}, bytes([n, 0] * 5000)).encode())).body

    threads = [threading.Thread(target=asking, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: bytes([0, n] * 5000) for n in range(8)}


def test_one_who_leaves_in_the_middle_does_not_end_it() -> None:
    made = Listener(turned, unix=True)
    try:
        for sent in (b"", b"\x01", Message({}, b"x" * 100).encode()[:-3]):
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(made.address)
                one.sendall(sent)
        assert Message.decode(ask(made.address, Message({}, b"ab").encode())).body == b"ba"
    finally:
        made.close()


def test_only_its_owner_can_open_it(listener: Listener) -> None:
    """Folder and what lies in it: the socket, or the secret of the loopback one."""
    before = os.umask(0)
    try:
        made = Listener(turned, "@" not in listener.address)
    finally:
        os.umask(before)
    try:
        for one in (listener, made):
            (path,) = one.folder.iterdir()
            assert one.folder.stat().st_mode & 0o777 == 0o700
            assert path.stat().st_mode & 0o777 == 0o600
            assert str(path) in one.address
    finally:
        made.close()


def test_nothing_is_left_of_it() -> None:
    for unix in (True, False):
        made = Listener(turned, unix)
        made.close()
        assert not made.folder.exists()
        with pytest.raises(RunError, match=r"the site's worker does not answer .*: start unalike site"):
            ask(made.address, b"")


@pytest.mark.parametrize("secret", [b"", b"x" * 32, b"x" * 64], ids=["none", "wrong", "long"])
def test_the_loopback_socket_answers_no_one_without_the_secret(secret: bytes) -> None:
    asked = list[bytes]()
    made = Listener(lambda frame: asked.append(frame) or turned(frame), unix=False)  # type: ignore[func-returns-value]
    try:
        with socket.create_connection(("127.0.0.1", int(made.address.partition("@")[0]))) as one:
            one.sendall(secret + Message({}, b"steal").encode())
            one.shutdown(socket.SHUT_WR)
            one.settimeout(10)
            try:
                said = one.recv(100)
            except ConnectionResetError:
                said = b""
        assert said == b""
        assert asked == []
        assert Message.decode(ask(made.address, Message({}, b"ab").encode())).body == b"ba"
        assert len(asked) == 1
    finally:
        made.close()


def test_one_who_says_nothing_does_not_keep_the_others_out() -> None:
    """On the loopback socket, to which any process of the machine can connect."""
    made = Listener(turned, unix=False)
    try:
        with socket.create_connection(("127.0.0.1", int(made.address.partition("@")[0]))):
            assert Message.decode(ask(made.address, Message({}, b"ab").encode())).body == b"ba"
    finally:
        made.close()


def test_the_secret_is_another_every_time_and_not_in_the_address() -> None:
    one, other = Listener(turned, unix=False), Listener(turned, unix=False)
    try:
        assert one._secret != other._secret
        assert len(one._secret) == 32
        assert one._secret.hex() not in one.address
        assert (one.folder / "secret").read_bytes() == one._secret
    finally:
        one.close()
        other.close()


def test_a_worker_that_dies_while_it_is_asked_is_one_line_with_a_remedy() -> None:
    with subprocess.Popen([sys.executable, "-c", ENDS], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout
        address = worker.stdout.readline().strip()
        with pytest.raises(
            RunError, match=r"the site's worker (ended while it was asked|does not answer).*start unalike"
        ):
            ask(address, Message({}, b"x").encode())
        assert worker.wait(30) == 9
        with pytest.raises(RunError, match=r"the site's worker does not answer .*: start unalike site"):
            ask(address, Message({}, b"x").encode())
    folder = Path(address).parent
    Path(address).unlink()
    folder.rmdir()


def test_an_answer_that_breaks_off_is_no_answer() -> None:
    """Half a frame is refused, so that half a tree is never taken for one."""
    frame = Message({"a": 1}, b"body").encode()
    read, write = os.pipe()
    os.write(write, frame[:-1])
    os.close(write)
    with os.fdopen(read, "rb") as stream, pytest.raises(RunError, match="cut off in the middle"):
        read_frame(stream)


def test_the_client_app_passes_messages_on_to_the_socket_that_its_node_names() -> None:
    LocalGrid([])
    made = Listener(turned)
    try:
        _identify(node=1)
        sent = Sent(to_content(Message({"n": 1}, b"")), 2, "query")
        sent.metadata.__dict__["_message_id"] = sent.object_id
        _identify(node=2)
        reply = client_app()(sent, Context(1, 2, {SOCKET: made.address}, RecordDict(), {}))
        assert from_content(reply.content).head == {"length": 0}
    finally:
        made.close()


@pytest.mark.parametrize("module", ["client", "channel", "records", "supernode", "warm"])
def test_what_flower_starts_per_message_imports_no_torch(module: str) -> None:
    imports(f"unalike.engines.flower.{module}", {"torch"})


@pytest.mark.parametrize("modules", ["unalike, unalike.cli", "unalike.api, unalike.check, unalike.engines.loop"])
def test_without_its_engine_nothing_of_flower_is_imported(modules: str) -> None:
    imports(modules, {"flwr", "grpc"})


def imports(modules: str, unwanted: set[str]) -> None:
    code = f"import sys, {modules}; sys.exit(', '.join({unwanted!r} & {{*sys.modules}}) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["methods", "--json"]], ids=" ".join)
def test_the_command_line_imports_nothing_of_flower(arguments: list[str]) -> None:
    code = (
        "import sys, atexit, os\n"
        "atexit.register(lambda: os._exit(3) if 'flwr' in sys.modules else None)\n"
        f"sys.argv = ['unalike', *{arguments!r}]\nfrom unalike.cli import main\nmain()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout
