"""The engine that serves clients in a pool of warm worker processes of this machine.

A worker is `python -m unalike.engines.worker`. Through its pipes go the messages of `wire`, nothing else: data and
states are files that the workers map themselves. Workers outlive a run, so that several runs share one start-up.
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue
import subprocess
import sys
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import BinaryIO, cast

from ..data.federation import Federation
from ..errors import RunError
from .site import Setup
from .wire import Message, read_frame, write_frame


class Worker:
    """A process that answers one request at a time."""

    def __init__(self) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "unalike.engines.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        self._requests = cast(BinaryIO, self.process.stdin)
        self._replies = cast(BinaryIO, self.process.stdout)

    def ask(self, frame: bytes) -> bytes:
        """Send a frame and wait for its answer; `RunError` when the process has died."""
        try:
            write_frame(self._requests, frame)
            answer = read_frame(self._replies)
        except (BrokenPipeError, RunError):
            answer = None
        if answer is None:
            code = self.process.wait()
            cause = ", as the system does when memory runs out" if code == -9 else ""
            raise RunError(f"a worker process ended with code {code}{cause}: use fewer --workers or smaller batches")
        return answer

    def close(self) -> None:
        """End the process, also in the middle of a request: a state is a whole file or none."""
        self.process.terminate()
        self.process.wait()
        for stream in (self._requests, self._replies):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Processes:
    """An ordered map over a pool of workers; at most two requests a worker are in flight."""

    name = "processes"

    def __init__(self, workers: int = 2) -> None:
        self.workers = workers
        self._pool: list[Worker] = []
        self._idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="unalike")

    def open(self, setup: Setup, federation: Federation) -> None:
        """Start the workers unless they run, and set each up for this run."""
        federation.save(Path(setup.federation))
        if any(worker.process.poll() is not None for worker in self._pool):
            self._end_pool()
        if not self._pool:
            self._pool = [Worker() for _ in range(self.workers)]
            for worker in self._pool:
                self._idle.put(worker)
        share = replace(setup, budget=setup.budget // self.workers)
        frame = Message({"kind": "open", "setup": asdict(share)}).encode()
        for answer in self._threads.map(lambda worker: worker.ask(frame), self._pool):
            if error := Message.decode(answer).head.get("error"):
                raise RunError(f"a worker process cannot serve this run: {error}")

    def map(self, requests: Iterable[bytes]) -> Generator[bytes, None, None]:
        flying: collections.deque[Future[bytes]] = collections.deque()
        try:
            for request in requests:
                flying.append(self._threads.submit(self._answer, request))
                if len(flying) >= 2 * self.workers:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
        finally:
            if flying:  # the loop has given up: whatever still runs must not answer the next run's requests
                self._end_pool()

    def _end_pool(self) -> None:
        """End all workers, also in the middle of a request; the next `open` starts new ones."""
        for worker in self._pool:
            worker.process.terminate()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._pool:
            worker.close()
        self._pool, self._idle = [], queue.SimpleQueue()
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="unalike")

    def _answer(self, request: bytes) -> bytes:
        worker = self._idle.get()
        try:
            return worker.ask(request)
        finally:
            self._idle.put(worker)

    def close(self) -> None:
        self._end_pool()
        self._threads.shutdown()

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
