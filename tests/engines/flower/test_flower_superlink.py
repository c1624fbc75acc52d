"""The SuperLink's port: other machines may ask for what sites need, and for nothing else."""

from __future__ import annotations

import asyncio

import httpx
import pytest

pytest.importorskip("flwr")

from flwr.superlink import main as service

from unalike.engines.flower import superlink

ELSEWHERE, HERE = "192.0.2.7", "127.0.0.1"


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """What `superlink.main` has uvicorn serve."""
    made = []
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    monkeypatch.setattr(service, "create_app", service.create_app)
    monkeypatch.setattr("flwr.superlink.cli.flower_superlink", lambda: made.append(service.create_app()))
    superlink.main()
    return made[0]


def status(app, path: str, client: str) -> int:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 4711), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as browser:
            return await browser.post(path)

    return asyncio.run(ask()).status_code


def paths(app) -> list[str]:
    return sorted(app.openapi()["paths"])


def test_another_machine_reaches_only_what_sites_need(app) -> None:
    allowed = [path for path in paths(app) if status(app, path, ELSEWHERE) != 403]
    assert allowed == [path for path in paths(app) if path.startswith("/v1/fleet/") or path == "/health"]
    assert len(paths(app)) - len(allowed) > 40
    assert status(app, "/v1/fleet/../control/start-run", ELSEWHERE) in (403, 404)
    assert status(app, "/docs", ELSEWHERE) == 403


def test_this_machine_reaches_everything(app) -> None:
    for client in (HERE, "::1", "::ffff:127.0.0.1"):
        assert status(app, "/v1/control/list-nodes", client) not in (403, 404)
        assert status(app, "/v1/runtime/pull-messages", client) != 403


def test_a_peer_without_an_address_is_refused(app) -> None:
    async def closed() -> list[object]:
        told: list[object] = []

        async def send(message: object) -> None:
            told.append(message)

        await superlink.OnlySites(app)({"type": "websocket", "path": "/v1/control/x", "client": None}, None, send)
        await superlink.OnlySites(app)({"type": "websocket", "path": "/x", "client": ("nowhere", 1)}, None, send)
        return told

    assert asyncio.run(closed()) == [{"type": "websocket.close", "code": 1008}] * 2
