"""A worker process: reads requests from its standard input and writes replies to its standard output, until the end.

Whatever else prints goes to standard error. When the parent dies, however it dies, the pipe ends and so does this.
"""

from __future__ import annotations

import os
import signal
import sys

from .wire import Message, read_frame, write_frame


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the pipe
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    import torch

    from .site import Setup, Site

    site: Site | None = None
    while (frame := read_frame(requests)) is not None:
        message = Message.decode(frame)
        if site is not None and message.head["kind"] != "open":
            write_frame(replies, site.reply(message).encode())
            continue
        try:
            setup = Setup(**message.head["setup"])
            torch.set_num_threads(setup.threads)
            site = Site(setup)
            write_frame(replies, Message({}).encode())
        except Exception as error:
            write_frame(replies, Message({"error": f"{type(error).__name__}: {error}"}).encode())


if __name__ == "__main__":
    try:
        main()
    except (BrokenPipeError, KeyboardInterrupt):
        os._exit(1)
