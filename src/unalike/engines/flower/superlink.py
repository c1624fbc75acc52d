"""Flower's SuperLink, closed to other machines but for what sites need: `python -m unalike.engines.flower.superlink`.

A SuperLink serves three interfaces at one port, and only that of the sites asks for their keys. By the others whoever
reaches the port could list the sites, register keys, and have the server run programs. Here they answer this machine
only: `unalike deploy register` and `run`, and the ServerApp, which all run beside it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable, MutableMapping
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


def main() -> None:
    from flwr.superlink import main as service
    from flwr.superlink.cli import flower_superlink

    create = service.create_app

    def closed(*arguments: Any, **more: Any) -> Any:
        app = create(*arguments, **more)
        app.add_middleware(OnlySites)
        return app

    service.create_app = closed
    flower_superlink()


if __name__ == "__main__":
    main()
