"""Flower's SuperLink, told its sites and closed to all else: `python -m unalike.engines.flower.superlink`.

    --site NAME=FILE    a site's name and public key, as often as there are sites; all else is Flower's

A SuperLink serves three interfaces at one port, and only that of the sites asks for their keys. By the others whoever
reaches the port could list the sites, register keys, and have the server run programs. Here they answer this machine
only: `unalike deploy register` and `run`, and the ServerApp, which all run beside it.

It keeps nothing on disk, for Flower's database takes most of a round's time: what it must know at the start it is told,
and what goes on is in the run's checkpoint. A site has the same number after each start, which follows from its key, so
sites that were connected before a crash are so again with their next sign of life.
"""

from __future__ import annotations

import argparse
import hashlib
import ipaddress
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

OPEN = ("/v1/fleet/", "/health")
"""Beginnings of the paths that other machines may ask for."""

Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Any, Send], Awaitable[None]]


class OnlySites:
    """ASGI middleware that refuses another machine's requests (403) unless their path is open."""

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(OPEN) or _is_here(scope.get("client")):
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
            await send({"type": "http.response.body", "body": b"this is open to the server's own machine only\n"})
        else:
            await send({"type": "websocket.close", "code": 1008})


def _is_here(client: tuple[str, int] | None) -> bool:
    """Whether a peer is a process of this machine, as far as its address tells."""
    if client is None:
        return False
    try:
        found = ipaddress.ip_address(client[0])
    except ValueError:
        return False
    return (getattr(found, "ipv4_mapped", None) or found).is_loopback


def number_of(key: bytes) -> int:
    """The number of the node with this public key, from 1 to 2⁶³ - 1."""
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") % (2**63 - 1) + 1


def register(state: Any, sites: Iterable[tuple[str, Path]]) -> None:
    """Let a state that lies in memory know the sites' public keys, as `flwr supernode register` does one by one.

    Raises `SystemExit` in one line for a file that holds no such key, or one that another site has.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key
    from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
    from flwr.server.superlink.linkstate import in_memory_linkstate
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes

    memory: Any = in_memory_linkstate
    draw = memory.generate_rand_int_from_bytes
    for name, file in sites:
        try:
            key = public_key_to_bytes(load_ssh_public_key(file.read_bytes()))  # type: ignore[arg-type]
            memory.generate_rand_int_from_bytes = lambda *_, key=key, **__: number_of(key)
            if not state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, heartbeat_interval=30, name=name):
                raise ValueError("another site has the same one")
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise SystemExit(f"the key of site {name} in {file} is refused: {error}") from None
        finally:
            memory.generate_rand_int_from_bytes = draw


def one_run_at_a_time(state: Any) -> None:
    """Let each run that is begun on a state in memory stop those before it.

    One whose ServerApp was killed counts as running for a minute, and sites wait for what it had begun to send.
    """
    create_run = state.create_run

    def alone(*arguments: Any, **more: Any) -> Any:
        for run in state.get_run_info():
            if run.status.status != "finished":
                state.stop_run(run.run_id)
        return create_run(*arguments, **more)

    state.create_run = alone


def main() -> None:
    from flwr.superlink import main as service
    from flwr.superlink.cli import flower_superlink

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--site", action="append", default=[])
    own, flowers = parser.parse_known_args()
    sites = [(name, Path(file)) for name, _, file in (said.partition("=") for said in own.site)]
    sys.argv[1:] = flowers
    create = service.create_app

    def closed(*arguments: Any, **more: Any) -> Any:
        app = create(*arguments, **more)
        state = app.state.linkstate_factory.state()
        register(state, sites)
        one_run_at_a_time(state)
        app.add_middleware(OnlySites)
        return app

    service.create_app = closed
    flower_superlink()


if __name__ == "__main__":
    main()
