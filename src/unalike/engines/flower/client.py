"""The ClientApp: passes each message on to the site's warm worker and its answer back. It imports no torch.

Flower starts a process for it per message, so it does nothing else: data, models and private states stay in the worker.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from ..wire import Message as Frame
from . import channel
from .records import from_content, to_content

SOCKET = "socket"
"""Key of the SuperNode's configuration that says where the worker listens."""
ACTION = "query"
"""The type of all our messages; what they are is said in their ticket."""


def client_app(answer: channel.Answer | None = None) -> ClientApp:
    """A ClientApp whose messages `answer` answers; None asks the worker that the SuperNode's configuration names."""
    made = ClientApp()

    @made.query()
    def pass_on(message: Message, context: Context) -> Message:
        frame = from_content(message.content).encode()
        found = answer(frame) if answer else channel.ask(str(context.node_config[SOCKET]), frame)
        return Message(to_content(Frame.decode(found)), reply_to=message)

    return made


app = client_app()
