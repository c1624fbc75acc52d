"""Flower's SuperNode, looking for messages more often: `python -m unalike.engines.flower.supernode [its arguments]`.

A SuperNode that finds no message waits three seconds before it asks again, and half a second before it looks into its
own memory again for an answer, so that a round would take at least that. The waits are constants of its module; here
the first is at most that of the environment's UNALIKE_POLL, in seconds, and the second a fiftieth of a second. So is
the time between its signs of life, after the last of which a site that was killed cannot come back for a minute.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

POLL = "UNALIKE_POLL"
HEARTBEAT = 10
"""Seconds between signs of life, Flower's least: when two are missed, the key is free for the next SuperNode."""


LOOK = 0.02
"""Seconds between looks into its own memory."""


class _Clock:
    """The module `time` with a shorter sleep."""

    def __init__(self, longest: float) -> None:
        self._longest = longest

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, self._longest if seconds > 1 else LOOK))


def main() -> None:
    from flwr.supercore import heartbeat
    from flwr.supernode import fleet_http_connection, start_client_internal
    from flwr.supernode.cli import flower_supernode

    for module in (heartbeat, fleet_http_connection):
        module.HEARTBEAT_DEFAULT_INTERVAL = HEARTBEAT  # type: ignore[attr-defined]
    start_client_internal.time = _Clock(float(os.environ.get(POLL, "0.2")))  # type: ignore[assignment, attr-defined]
    flower_supernode()
    # It comes back only after an error in its connection, which it has told. Its other threads would keep the process
    # alive, deaf, where a new one would connect again.
    sys.stdout.flush()
    os._exit(1)


if __name__ == "__main__":
    main()
