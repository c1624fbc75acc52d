"""Which sites are there, and which client lies at which: told by the sites themselves."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...errors import RunError
from ...protocol import ClientInfo
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

    def __init__(self, expected: Mapping[str, Sequence[int]] | None = None) -> None:
        """`expected` says which sites may take part and which clients each may have; None lets all of them in."""
        self.expected = expected
        self.members: dict[int, Member] = {}
        self.refusals: dict[int, str] = {}
        """Node to why its site does not take part."""

    def admit(self, node: int, said: Mapping[str, Any], registered: str = "") -> bool:
        """Note what a site says of itself, and whether it takes part.

        Args:
            registered: the name under which the node's key was registered, where it has one.

        Raises:
            RunError: a client of its is at another site already.
        """
        if why := self._refusal(said, registered):
            if self.refusals.get(node) != why:
                _log.error("%s", why)
            self.refusals[node] = why
            return False
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
        return True

    def _refusal(self, said: Mapping[str, Any], registered: str) -> str:
        """Why a site does not take part; empty if it does."""
        if "error" in said:
            return str(said["error"])
        name, clients = said["name"], {int(client["id"]) for client in said["clients"]}
        if registered and registered != name:
            return f"a site calls itself {name}, but its key was registered for {registered}: it is refused"
        if self.expected is None:
            return ""
        if name not in self.expected:
            return f"site {name} does not take part now; those who do are {', '.join(self.expected)}"
        if foreign := clients - set(self.expected[name]):
            return f"site {name} says it has client {min(foreign)}, which is not its own: mend clients in its site.toml"
        return ""

    def node_of(self, client: int) -> int:
        """The node whose site has this client."""
        for member in self.members.values():
            if client in member.clients:
                return member.node
        raise RunError(f"client {client} is at no site that has introduced itself")

    def site_of(self, client: int) -> str:
        """The name of the site that has this client."""
        return self.members[self.node_of(client)].name

    def among(self, nodes: set[int]) -> list[Member]:
        """The sites whose nodes are among these."""
        return [member for member in self.members.values() if member.node in nodes]


def described(info: ClientInfo, said: Mapping[str, Any]) -> ClientInfo:
    """A client with what its site says of it."""
    return replace(info, n=said["n"], memory=said["memory"], modalities=tuple(said["modalities"]))
