"""Messages of the loop over Flower's Grid: pushed, pulled and counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import Message as Sent
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from ...errors import RunError
from ..wire import Message
from .client import ACTION
from .records import from_content, to_content


class Post:
    """A Grid as the loop sees it. Bytes are those of Flower's objects, as they go over the wire."""

    def __init__(self, grid: Grid, run: str) -> None:
        self.grid, self.run = grid, run
        self.sent = self.received = 0

    def nodes(self) -> dict[int, str]:
        """The nodes that are there and the names their keys were registered for ("" where they have none).

        As far as Flower knows: one that has just died still counts for a minute.
        """
        return {info.node_id: info.name for info in self.grid.get_nodes()}

    def push(self, letters: Sequence[tuple[int, Message]]) -> list[str]:
        """Send each message to its node; the identities by which replies name them."""
        messages = [
            Sent(to_content(message), node, ACTION, group_id=str(message.head.get("round", message.head["kind"])))
            for node, message in letters
        ]
        ids = list(self.grid.push_messages(messages))
        if len(ids) != len(messages) or not all(ids):
            raise RunError(
                "Flower has not taken a message: it is too large for the SuperLink, or its site is registered no more"
            )
        self.sent += sum(map(_size, messages))
        return ids

    def pull(self, ids: Iterable[str]) -> Iterator[tuple[str, Message]]:
        """The replies that are there by now: to which message, and what. An error of Flower's is {"flower": text}."""
        for reply in self.grid.pull_messages(list(ids)):
            to = reply.metadata.reply_to_message_id
            if reply.has_error():
                yield to, Message({"flower": f"{reply.error.reason} (code {reply.error.code})"})
            else:
                self.received += _size(reply)
                yield to, from_content(reply.content)


def _size(message: Sent) -> int:
    return sum(len(part.deflate()) for part in get_all_nested_objects(message).values())
