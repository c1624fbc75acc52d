"""Flower's SuperNode, looking for messages more often: `python -m unalike.engines.flower.supernode [its arguments]`.

A SuperNode that finds no message waits three seconds before it looks again, so that a round would take at least that.
The wait is a constant of its module; here it is at most that of the environment's UNALIKE_POLL, in seconds. It ends when
the process that started it does, however that ends.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

POLL = "UNALIKE_POLL"


class _Clock:
    """The module `time` with a shorter sleep."""

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, self._longest))


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)  # whoever started this was killed: nobody is there to answer what it would receive


def main() -> None:
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli import flower_supernode

    start_client_internal.time = _Clock(float(os.environ.get(POLL, "0.2")))  # type: ignore[assignment]
    flower_supernode()


if __name__ == "__main__":
    main()
