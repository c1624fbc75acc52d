"""The client process that stays: what goes wrong with one message, or with Flower, does not end the site."""

from __future__ import annotations

import http.server
import logging
import threading
from collections.abc import Iterator

import pytest
from flwr.clientapp import ClientApp
from flwr.supercore.interceptors import RuntimeTokenHttpInterceptor

from unalike.deploy.processes import free_port
from unalike.engines.flower import warm


@pytest.fixture
def refusing() -> Iterator[str]:
    """A SuperNode that refuses every token, as one that was just restarted does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(401)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_a_refused_token_fails_one_message_and_ends_nothing(refusing: str, caplog: pytest.LogCaptureFixture) -> None:
    """Flower's own client sends its process SIGINT here, which would be a KeyboardInterrupt in this test."""
    with caplog.at_level(logging.WARNING, "unalike.site"):
        warm._answer(ClientApp(), refusing, "token")
    assert "a message could not be answered: Client error '401 Unauthorized'" in caplog.text


def test_a_refused_sign_of_life_ends_nothing(refusing: str) -> None:
    client = warm._client(refusing, RuntimeTokenHttpInterceptor("token"), "flwr-clientapp")
    assert warm._beat(client) is False
    client.close()


def test_it_waits_for_a_supernode_that_is_being_restarted(caplog: pytest.LogCaptureFixture) -> None:
    stop, said = threading.Event(), threading.Event()

    class Heard(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.set()
            stop.set()

    log, heard = logging.getLogger("unalike.site"), Heard()
    log.addHandler(heard)
    words = (ClientApp(), f"127.0.0.1:{free_port()}", b"s" * 32, 0.01, stop)
    thread = threading.Thread(target=warm.serve, args=words, daemon=True)
    with caplog.at_level(logging.DEBUG, "unalike.site"):
        thread.start()
        thread.join(20)
    log.removeHandler(heard)
    assert said.is_set()
    assert not thread.is_alive()
    assert "the SuperNode does not answer" in caplog.text
