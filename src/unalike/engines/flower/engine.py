"""The ordered map over Flower's Grid: each frame to the site that holds its client, replies in order."""

from __future__ import annotations

import logging
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from ... import tree
from ...data.federation import Federation
from ...errors import RunError
from ...protocol import ClientInfo
from ..site import Setup
from ..wire import Message
from .host import describe
from .post import Post
from .roster import Member, Roster, described

_log = logging.getLogger("unalike.flower")
ECHOED = ("run", "kind", "round", "client")
"""What a reply repeats of the message it answers."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """How long to wait for what, in seconds."""

    poll: float = 0.05
    """Between looks for replies."""
    ping: float = 10.0
    """Until a site that has not answered is asked whether it still has the job."""
    again: float = 2.0
    """Before a message is sent again that a site could not answer, as when its worker is being restarted."""
    join: float = 600.0
    """For enough sites to be there."""
    gone: float = 600.0
    """For a site that fails or is away in the middle of a round."""


@dataclass
class _Flight:
    """A job on its way, and what asks after it."""

    position: int
    node: int
    message: Message
    well: float
    """When all was well with it last."""
    due: float
    """When to do something about it next."""
    id: str = ""
    pings: list[str] = field(default_factory=list)
    failed: str = ""
    """Why it is to be sent again."""
    repeated: bool = False

    @property
    def what(self) -> str:
        return f"round {self.message.head['round']}, client {self.message.head['client']}"


class Flower:
    """A `RemoteEngine` on a Grid of Flower's.

    A job is sent again when its site answers a later ping without having answered it: messages to a site are answered
    in order, so it was restarted and knows nothing of it. A reply is taken once, and for what was asked only.
    """

    name = "flower"

    def __init__(
        self,
        grid: Grid,
        run: str,
        at_least: int = 1,
        expected: Mapping[str, Sequence[int]] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """
        Args:
            run: the name of the run at the sites.
            at_least: so many sites must be there for a round to begin.
            expected: the sites that may take part, with the clients of each; None lets all of them in.
        """
        self.post, self.at_least, self.patience = Post(grid, run), at_least, patience or Patience()
        self.roster = Roster(expected)
        self._asked: dict[str, Any] = {}
        self._joined = set[int]()
        self._next_try: dict[int, float] = {}
        self._body, self._base = b"", tree.sha256({})

    @property
    def sent(self) -> int:
        return self.post.sent

    @property
    def received(self) -> int:
        return self.post.received

    @property
    def workers(self) -> int:
        """Sites that work at the same time."""
        return max(1, len(self.roster.members))

    def open(self, setup: Setup, federation: Federation) -> None:
        """Say what the run is; a site is told when it is next looked for."""
        self._asked, self._joined, self._next_try = describe(setup, federation), set(), {}

    def present(self, clients: Sequence[ClientInfo]) -> Sequence[ClientInfo]:
        """Those of `clients` whose sites are there, as they describe themselves; waits until they are enough."""
        found = self.gather()
        return [described(info, found[info.id]) for info in clients if info.id in found]

    def gather(self) -> dict[int, Mapping[str, Any]]:
        """Client to what its site says of it, once enough sites are there; `RunError` when they are not in time."""
        end = time.monotonic() + self.patience.join
        while len(here := self._look()) < self.at_least:
            if time.monotonic() > end:
                refused = "".join(f"; {said}" for said in self.roster.refusals.values())
                raise RunError(
                    f"{len(here)} of {self.at_least} sites are there after {self.patience.join:g} s: start unalike "
                    f"site at the others, then go on with unalike deploy run{refused}"
                )
            time.sleep(self.patience.poll)
        return {client: said for member in here for client, said in member.clients.items()}

    def _look(self) -> list[Member]:
        """The sites that are there now; one that is new, or does not know the run, is told first."""
        registered = self.post.nodes()
        known = self._joined if self._asked else self.roster.members.keys()
        kind = "open" if self._asked else "hello"
        now = time.monotonic()
        new = [n for n in sorted(registered) if n not in known and now >= self._next_try.get(n, 0.0)]
        self._next_try |= dict.fromkeys(new, now + self.patience.ping)
        greetings = [(node, Message({"kind": kind, "run": self.post.run, **self._asked})) for node in new]
        ids = dict(zip(self.post.push(greetings), new, strict=True)) if new else {}
        while ids and time.monotonic() < now + self.patience.ping:
            for to, reply in self.post.pull(ids):
                node = ids.pop(to)
                said = {"error": reply.head["flower"]} if "flower" in reply.head else reply.head
                if self.roster.admit(node, said, registered[node]) and self._asked:
                    self._joined.add(node)
            time.sleep(self.patience.poll if ids else 0)
        return self.roster.among(registered.keys() & (self._joined if self._asked else registered.keys()))

    def map(self, requests: Iterable[bytes]) -> Generator[bytes, None, None]:
        """Replies in the order of requests; at most two requests a site are on their way."""
        waiting = enumerate(requests)
        flying, landed, next_out, more = dict[str, _Flight](), dict[int, bytes](), 0, True
        while more or flying or landed:
            while more and len(flying) + len(landed) < 2 * self.workers:
                position, frame = next(waiting, (-1, b""))
                more = position >= 0
                if more:
                    flight = self._take_off(position, Message.decode(frame))
                    flying[flight.id] = flight
            while next_out in landed:
                yield landed.pop(next_out)
                next_out += 1
            if flying:
                landed |= self._landed(flying)
                self._look_after(flying)

    def _take_off(self, position: int, message: Message) -> _Flight:
        if message.body != self._body:
            self._body, self._base = message.body, tree.sha256(message.tree)
        head = {**message.head, "run": self.post.run, "base": self._base}
        now = time.monotonic()
        node = self.roster.node_of(head["client"])
        flight = _Flight(position, node, Message(head, message.body), now, now + self.patience.ping)
        (flight.id,) = self.post.push([(flight.node, flight.message)])
        return flight

    def _landed(self, flying: dict[str, _Flight]) -> dict[int, bytes]:
        """The replies that are there, by position; jobs that got lost or failed at their site are marked."""
        pings = {ping: flight for flight in flying.values() for ping in flight.pings}
        found, pinged = dict[int, bytes](), list[_Flight]()
        for to, reply in self.post.pull([*flying, *pings]):
            if to in pings:
                pings[to].pings.remove(to)
                pinged.append(pings.pop(to))
            elif to not in flying:
                continue  # its reply has been taken
            elif "flower" in reply.head:
                if not flying[to].failed:  # Flower tells it again at every look
                    flying[to].failed, flying[to].due = reply.head["flower"], time.monotonic() + self.patience.again
            else:
                flight = flying.pop(to)
                found[flight.position] = self._admitted(flight, reply)
        for flight in pinged:
            if flight.id in flying and not flight.failed:
                flight.failed, flight.due = "the site was restarted", 0.0
        if not found:
            time.sleep(self.patience.poll)
        return found

    def _admitted(self, flight: _Flight, reply: Message) -> bytes:
        asked = {name: flight.message.head[name] for name in ECHOED}
        answered = {name: reply.head.get(name) for name in ECHOED}
        if "error" not in reply.head and answered != asked:
            site = self.roster.site_of(flight.message.head["client"])
            raise RunError(f"site {site} answered {answered} when asked {asked}: its reply is refused")
        head = {name: value for name, value in reply.head.items() if name not in ("run", "kind")}
        return Message(head, reply.body).encode()

    def _look_after(self, flying: dict[str, _Flight]) -> None:
        """Ask after jobs that take long, and send again those that failed; give up when that does not help."""
        now = time.monotonic()
        late = [flight for flight in flying.values() if now > flight.due]
        nodes = self.post.nodes() if late else {}
        for flight in late:
            site = self.roster.site_of(flight.message.head["client"])
            here = flight.node in nodes
            if here and not flight.failed and not flight.repeated:
                flight.well = now
            elif now - flight.well > self.patience.gone and (flight.failed or not here):
                raise RunError(
                    f"{flight.what}: site {site} has not answered for {self.patience.gone:g} s "
                    f"({flight.failed or 'it is away'}): start it again, then go on with unalike deploy run"
                )
            flight.due = now + self.patience.ping
            if not flight.failed:
                if here:  # else they would wait for it, all to be answered when it comes back
                    flight.pings += self.post.push([(flight.node, Message({"kind": "ping", "run": self.post.run}))])
                continue
            _log.warning("%s: sent again to site %s: %s", flight.what, site, flight.failed)
            del flying[flight.id]
            flight.pings, flight.failed, flight.repeated = [], "", True
            (flight.id,) = self.post.push([(flight.node, flight.message)])
            flying[flight.id] = flight

    def close(self) -> None:
        """The Grid is its owner's to close."""
