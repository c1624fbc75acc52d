"""A Grid in this process: the real messages, ServerApp side and ClientApp side, without Flower's servers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.task_identity import TaskIdentity

Recorder = Callable[[Message], Any]


class LocalGrid(Grid):
    """Nodes 1, 2, ... are ClientApps, asked one after the other when their replies are pulled.

    Every message is taken apart into Flower's objects and put together again on either way, as a SuperLink and a
    SuperNode do. `record` is called with all that passes.
    """

    def __init__(self, apps: Sequence[ClientApp], record: Recorder | None = None) -> None:
        self._apps = dict(enumerate(apps, start=1))
        self._contexts = {node: Context(1, node, {}, RecordDict(), {}) for node in self._apps}
        self._asked: dict[str, Message] = {}
        self._record = record or (lambda message: None)
        _identify(node=1)

    def set_run(self, run: Any) -> None:
        """There is one run only."""

    @property
    def run(self) -> Any:
        raise NotImplementedError("a Grid in process has no run of Flower's")

    def create_message(self, *_: Any, **__: Any) -> Message:
        raise NotImplementedError("make a flwr.app.Message instead")

    def get_node_ids(self) -> Iterable[int]:
        return list(self._apps)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = message.object_id
            ids.append(message.object_id)
            self._record(message)
            self._asked[message.object_id] = _carried(message)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._answer(self._asked.pop(id)) for id in message_ids if id in self._asked]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        _identify(node)
        reply = self._apps[node](message, self._contexts[node])
        reply.metadata.__dict__["_message_id"] = reply.object_id
        self._record(reply)
        _identify(node=1)
        return _carried(reply)


def _identify(node: int) -> None:
    """Flower wants to know as whom this process makes messages."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, node


def _carried(message: Message) -> Message:
    """The message as it comes out at the other end of a wire."""
    contents = {id: part.deflate() for id, part in get_all_nested_objects(message).items()}
    arrived = inflate_object_from_contents(message.object_id, contents)
    assert isinstance(arrived, Message)
    arrived.metadata.__dict__["_message_id"] = message.object_id
    return arrived
