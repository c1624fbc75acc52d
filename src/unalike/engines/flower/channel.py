"""Frames between processes of one site: over a Unix socket that only its owner can open, without torch.

Where there are no Unix sockets it is a loopback socket, and every connection begins with a secret that lies in a file
of its owner's.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from ...errors import RunError
from ..wire import read_frame, write_frame

_SECRET_BYTES, _SECRET_SECONDS = 32, 1.0
Answer = Callable[[bytes], bytes]
"""A frame in, a frame out."""


class Listener:
    """Answers frames until closed, one connection at a time. `address` is what `ask` needs."""

    def __init__(self, answer: Answer, unix: bool | None = None) -> None:
        """`unix`: whether to use a Unix socket; None where the system has them."""
        self.folder = Path(tempfile.mkdtemp(prefix="unalike-"))  # which is made for its owner alone
        unix = hasattr(socket, "AF_UNIX") if unix is None else unix
        self._secret = b"" if unix else secrets.token_bytes(_SECRET_BYTES)
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                outer._serve(self, answer)

        if unix:
            path = self.folder / "site.sock"
            self._server: Any = socketserver.UnixStreamServer(str(path), Handler)
            path.chmod(0o600)
            self.address = str(path)
        else:
            self._server = socketserver.TCPServer(("127.0.0.1", 0), Handler)
            path = self.folder / "secret"
            path.touch(mode=0o600)
            path.write_bytes(self._secret)
            self.address = f"{self._server.server_address[1]}@{path}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
        self._thread.start()

    def _serve(self, connection: socketserver.StreamRequestHandler, answer: Answer) -> None:
        if self._secret and not self._is_owner(connection):
            return
        with contextlib.suppress(BrokenPipeError, ConnectionResetError, RunError):  # whoever asked has gone
            frame = read_frame(cast(BinaryIO, connection.rfile))
            if frame is not None:
                write_frame(cast(BinaryIO, connection.wfile), answer(frame))

    def _is_owner(self, connection: socketserver.StreamRequestHandler) -> bool:
        """Whether a connection begins with the secret; it has a second for that, so that none keeps the others out."""
        connection.connection.settimeout(_SECRET_SECONDS)
        try:
            found = connection.rfile.read(_SECRET_BYTES)
        except OSError:
            return False
        connection.connection.settimeout(None)
        return hmac.compare_digest(found, self._secret)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for path in self.folder.iterdir():
            path.unlink()
        self.folder.rmdir()


def ask(address: str, frame: bytes) -> bytes:
    """The answer to a frame; `RunError` when nobody listens at `address`, or whoever did has died."""
    try:
        with _connected(address) as connection, connection.makefile("rwb") as stream:
            write_frame(cast(BinaryIO, stream), frame)
            answer = read_frame(cast(BinaryIO, stream))
    except OSError as error:
        raise RunError(f"the site's worker does not answer ({error.strerror or error}): start unalike site") from None
    if answer is None:
        raise RunError("the site's worker ended while it was asked: start unalike site again")
    return answer


def _connected(address: str) -> socket.socket:
    port, is_loopback, path = address.partition("@")
    secret = Path(path).read_bytes() if is_loopback else b""
    connection = socket.socket(socket.AF_INET if is_loopback else socket.AF_UNIX)
    try:
        connection.connect(("127.0.0.1", int(port)) if is_loopback else address)
        connection.sendall(secret)
    except OSError:
        connection.close()
        raise
    return connection
