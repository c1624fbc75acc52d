"""A ClientApp whose process stays: it takes tasks from the SuperNode as Flower's SuperExec does, and answers them.

The SuperNode runs with `--isolation process`, so it starts no process per message; and nothing of the app that the
server sends along is ever installed or run. Interfaces of flwr 1.41 and 1.42 that are not public are used here and in
`supernode`, nowhere else.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import httpx
from flwr.clientapp import ClientApp
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.retry import RetryInvoker, constant
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

_log = logging.getLogger("unalike.site")
_ACQUIRE = frozenset({"/flwr.proto.Runtime/AcquireTask"})


def serve(app: ClientApp, address: str, secret: bytes, poll: float, stop: threading.Event) -> None:
    """Answer the tasks of the SuperNode at `address` (its Runtime API on loopback) with `app` until `stop` is set.

    Each has a thread of its own: one whose message never arrives whole, as when its run has ended meanwhile, waits for
    it long, and keeps no other one waiting. `secret` is what the SuperNode was started with, so that no one else of
    this machine takes its tasks.
    """
    proofs = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=_ACQUIRE)
    client = _client(address, proofs, "SuperExec")
    wanted = AcquireTaskRequest(supported_task_types=[TaskType.CLIENT_APP])
    while not stop.is_set():
        try:
            found = client.AcquireTask(wanted)
            if found.HasField("task") and found.token:
                threading.Thread(target=_answer, args=(app, address, found.token), daemon=True).start()
        except httpx.HTTPError as error:  # the SuperNode is being restarted
            _log.debug("the SuperNode does not answer: %s", error)
            time.sleep(1.0)
        time.sleep(poll)
    client.close()


def _client(address: str, proof: Any, component: str) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(
        server_address=address,
        insecure=True,
        root_certificates=None,
        interceptors=[RuntimeVersionHttpInterceptor(component_name=component), proof],
        retry_invoker=RetryInvoker(lambda: constant(0.2), httpx.TransportError, max_tries=10, max_time=None),
    )


def _answer(app: ClientApp, address: str, token: str) -> None:
    client = _client(address, RuntimeTokenHttpInterceptor(token), "flwr-clientapp")
    heart = HeartbeatSender(lambda: _beat(client))
    heart.start()
    try:
        message, context, _, _ = pull_task_input(client)
        push_message(client, app(message=message, context=context), context)
        push_task_output(client, context, SubStatus.COMPLETED, "")
    except Exception as error:  # of one message; the next ones are answered
        _log.warning("a message could not be answered: %s", error)
    finally:
        heart.stop()
        client.close()


def _beat(client: RuntimeHttpClient) -> bool:
    """Say that a task is being worked on. Flower's own way ends the process when the task is gone; ours is the site."""
    try:
        client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
    except httpx.HTTPError:
        return False
    return True
