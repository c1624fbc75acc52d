"""Which sites are there, and which client lies at which: told by the sites themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import RunError
from .host import versions

_log = logging.getLogger("unalike.flower")


@dataclass(frozen=True)
class Member:
    """A site as it has described itself."""

    node: int
    name: str
    clients: Mapping[int, Mapping[str, Any]]
    """Client to what the server may know of it: "n", "memory", "modalities"."""


class Roster:
    """The sites that have introduced themselves, by the node of Flower's that speaks for them."""

    def __init__(self) -> None:
        self.members: dict[int, Member] = {}
        self.refusals: dict[int, str] = {}
        """Node to why its site does not take part."""

    def admit(self, node: int, said: Mapping[str, Any]) -> None:
        """Note what a site says of itself; `RunError` when a client of its is at another site already."""
        if "error" in said:
            if self.refusals.get(node) != said["error"]:
                _log.error("%s", said["error"])
            self.refusals[node] = said["error"]
            return
        member = Member(node, said["name"], {int(client["id"]): client for client in said["clients"]})
        for other in self.members.values():
            if other.node != node and (twice := other.clients.keys() & member.clients.keys()):
                where = f"site {other.name} and site {member.name}"
                raise RunError(f"client {min(twice)} is at {where}: give each its own number in site.toml")
        for name, version in versions().items():
            if (found := said["versions"][name]) != version:
                _log.warning("site %s has %s %s, the server %s: bits may differ", member.name, name, found, version)
        self.refusals.pop(node, None)
        self.members[node] = member

    def node_of(self, client: int) -> int:
        """The node whose site has this client."""
        for member in self.members.values():
            if client in member.clients:
                return member.node
        raise RunError(f"client {client} is at no site that has introduced itself")

    def site_of(self, client: int) -> str:
        """The name of the site that has this client."""
        return self.members[self.node_of(client)].name

    def among(self, nodes: set[int]) -> dict[int, Mapping[str, Any]]:
        """Client to what its site says of it, for the sites whose nodes are among these."""
        here = [member for member in self.members.values() if member.node in nodes]
        return {client: said for member in here for client, said in member.clients.items()}
