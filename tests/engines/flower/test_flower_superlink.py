"""The SuperLink's port: other machines may ask for what sites need, and for nothing else."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.common.constant import NOOP_FLWR_AID
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.superlink import main as service

from unalike.deploy import certificates
from unalike.engines.flower import superlink

ELSEWHERE, HERE = "192.0.2.7", "127.0.0.1"
CREATE = service.create_app


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Any:
    return started(monkeypatch)


def status(app: Any, path: str, client: str) -> int:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(app, client=(client, 4711), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as browser:
            return await browser.post(path)

    return asyncio.run(ask()).status_code


def paths(app: Any) -> list[str]:
    return sorted(app.openapi()["paths"])


def test_another_machine_reaches_only_what_sites_need(app: Any) -> None:
    allowed = [path for path in paths(app) if status(app, path, ELSEWHERE) != 403]
    assert allowed == [path for path in paths(app) if path.startswith("/v1/fleet/") or path == "/health"]
    assert len(paths(app)) - len(allowed) > 40
    assert status(app, "/v1/fleet/../control/start-run", ELSEWHERE) in (403, 404)
    assert status(app, "/docs", ELSEWHERE) == 403


def test_this_machine_reaches_everything(app: Any) -> None:
    for client in (HERE, "::1", "::ffff:127.0.0.1"):
        assert status(app, "/v1/control/list-nodes", client) not in (403, 404)
        assert status(app, "/v1/runtime/pull-messages", client) != 403


def test_a_peer_without_an_address_is_refused(app: Any) -> None:
    async def closed() -> list[object]:
        told: list[object] = []

        async def send(message: object) -> None:
            told.append(message)

        await superlink.OnlySites(app)({"type": "websocket", "path": "/v1/control/x", "client": None}, None, send)
        await superlink.OnlySites(app)({"type": "websocket", "path": "/x", "client": ("nowhere", 1)}, None, send)
        return told

    assert asyncio.run(closed()) == [{"type": "websocket.close", "code": 1008}] * 2


@pytest.fixture
def key(tmp_path: Path) -> Path:
    certificates.make_node_key(tmp_path)
    return tmp_path / "node.pub"


def started(monkeypatch: pytest.MonkeyPatch, *words: str) -> Any:
    """What a SuperLink serves when it is started with these words; those it leaves to Flower are in `sys.argv`."""
    made: list[Any] = []
    monkeypatch.setattr("sys.argv", ["superlink", *words])
    monkeypatch.setattr(service, "create_app", CREATE)
    monkeypatch.setattr("flwr.superlink.cli.flower_superlink", lambda: made.append(service.create_app()))
    superlink.main()
    return made[0]


def nodes(app: Any) -> dict[str, int]:
    """Names and numbers of the sites that it knows."""
    return {info.name: info.node_id for info in app.state.linkstate_factory.state().get_node_info()}


def test_it_knows_its_sites_by_the_same_numbers_after_each_start(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = nodes(started(monkeypatch, "--site", f"lyon={key}", "--port", "1"))
    assert sys.argv[1:] == ["--port", "1"]
    assert found == {"lyon": superlink.number_of(public_key_to_bytes(load_ssh_public_key(key.read_bytes())))}
    assert nodes(started(monkeypatch, "--site", f"lyon={key}")) == found
    assert nodes(started(monkeypatch)) == {}


def test_a_site_that_was_connected_is_so_again_with_its_next_sign_of_life(
    key: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = started(monkeypatch, "--site", f"lyon={key}").state.linkstate_factory.state()
    (info,) = state.get_node_info()
    assert info.status == "registered"
    assert state.acknowledge_node_heartbeat(info.node_id, 10)
    assert state.get_node_info()[0].status == "online"


def test_a_wrong_key_or_one_that_two_sites_have_is_named(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = key.with_name("wrong.pub")
    wrong.write_text("no key")
    with pytest.raises(SystemExit, match=r"the key of site oslo in .*wrong.pub is refused"):
        started(monkeypatch, "--site", f"oslo={wrong}")
    with pytest.raises(SystemExit, match=r"the key of site oslo in .* is refused: another site has the same one"):
        started(monkeypatch, "--site", f"lyon={key}", "--site", f"oslo={key}")


def test_a_run_that_begins_stops_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose ServerApp was killed would count as running for a minute, with sites waiting for what it began to send."""
    state = started(monkeypatch).state.linkstate_factory.state()
    about = {
        "fab_id": "a/b",
        "fab_version": "1",
        "fab_hash": "0" * 64,
        "override_config": {},
        "federation_config": None,
    }
    about |= {"federation_id": NOOP_FEDERATION_ID, "flwr_aid": NOOP_FLWR_AID, "primary_task_type": TaskType.SERVER_APP}
    first, second = state.create_run(**about), state.create_run(**about)
    found = {run.run_id: (run.status.status, run.status.sub_status) for run in state.get_run_info()}
    assert found == {first: ("finished", "stopped"), second: ("pending", "")}
