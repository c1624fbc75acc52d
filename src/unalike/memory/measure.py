"""Peak memory of a piece of work, measured: from the allocator's own account, and from the system's.

    profiled(work)   in this process: torch's profiler on a CPU, the allocator's peak on CUDA
    resident(name)   in a fresh process: the largest resident set beyond what imports and held tensors take (Linux)

A piece of work for a fresh process is named, as models are: "package.module:function(key=value)" or
"file.py:function(...)" is called there and returns the `Work`. Nothing but the name and a line of JSON goes between the
processes.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from .. import tree
from ..errors import InputError, RunError
from ..plugins import load_object, parse_call
from .predict import Peak, predict
from .work import Work, materialised, nothing

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Resident:
    """What the system gave a fresh process for a piece of work."""

    bytes: int
    """Peak: the work's held tensors, and by how much the resident set grew beyond them."""
    held: int
    """Bytes of the held tensors, a part of `bytes`."""
    before: int
    """Resident set before the work began: interpreter, libraries and held tensors."""
    seconds: float
    """Duration of the work."""


def profiled(work: Work, device: str = "cpu") -> int:
    """Peak bytes that torch's allocator had given out at once during the work, the held tensors included.

    It sees what kernels need within themselves, which a prediction does not. The work runs on real tensors.
    """
    _let_go(work, device)  # so that no skeleton holds weights of an earlier run, which would be let go during this one
    held = materialised(work, torch.device(device))
    return _on_cuda(work, held) if torch.device(device).type == "cuda" else tree.nbytes(held) + _growth(work, held)


def _let_go(work: Work, device: str) -> None:
    """Leave the skeletons that the work uses with fake tensors, and load what it needs."""
    with contextlib.suppress(InputError):
        predict(work, device)


def _growth(work: Work, held: tree.Tree) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        work.run(held, nothing)
    assert record.profiler is not None
    assert record.profiler.kineto_results is not None
    memory = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = most = 0
    for event in sorted(memory, key=lambda e: e.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most


def _on_cuda(work: Work, held: tree.Tree) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    others = torch.cuda.memory_allocated() - tree.nbytes(held)
    work.run(held, nothing)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - others


def load(name: str) -> Work:
    """The work that "module:function(key=value)" returns; `InputError` when it returns something else."""
    place, options = parse_call(name)
    work = load_object(place)(**options)
    if not isinstance(work, Work):
        raise InputError(f"{name} returned a {type(work).__name__}, not a unalike.memory.work.Work")
    return work


def require_proc() -> None:
    """Raise `InputError` where the system has no /proc with resettable peaks."""
    if not CLEAR.exists():
        raise InputError("the resident set's peak needs Linux's /proc: take the profiler's figure here")


def resident(name: str, threads: int = 1) -> Resident:
    """The named work's peak of the resident set, in a process of its own with `threads` torch threads.

    Every large tensor is mapped by itself there, so that memory given back is gone: the figure is what the work needs,
    not what the C library keeps. Raises `InputError` off Linux, `RunError` when the process fails.
    """
    require_proc()
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MALLOC_MMAP_THRESHOLD_": "65536",
        "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    }
    command = [sys.executable, "-m", "unalike.memory.measure", name, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1] if done.stderr.strip() else f"exit code {done.returncode}"
        raise RunError(f"measuring {name} failed in its process: {last}")
    return Resident(**json.loads(done.stdout.splitlines()[-1]))


def _resident_here(work: Work) -> Resident:
    _let_go(work, "cpu")
    held = materialised(work, torch.device("cpu"))
    gc.collect()
    _trim()
    before = _status("VmRSS")
    CLEAR.write_text("5")
    started = time.perf_counter()
    work.run(held, nothing)
    seconds = time.perf_counter() - started
    grown = _status("VmHWM") - before
    return Resident(tree.nbytes(held) + grown, tree.nbytes(held), before, seconds)


def _trim() -> None:
    """Give free memory back to the system, where the C library can, so that growing into it counts."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _status(field: str) -> int:
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


@dataclass(frozen=True, slots=True)
class Measured:
    """The three figures of one piece of work, in bytes."""

    predicted: Peak
    profiler: int
    resident: Resident | None
    """None where the system has no /proc."""

    def errors(self) -> dict[str, float]:
        """(predicted - measured) / measured for each measured figure."""
        found = {"profiler": self.profiler} | ({"resident": self.resident.bytes} if self.resident else {})
        return {name: self.predicted.bytes / bytes - 1 for name, bytes in found.items()}


def measure(name: str, threads: int = 1) -> Measured:
    """The named work predicted, profiled here, and run in a fresh process where the system allows it."""
    work = load(name)
    return Measured(predict(work), profiled(work), resident(name, threads) if CLEAR.exists() else None)


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))
    sys.stdout.write(json.dumps(asdict(_resident_here(load(sys.argv[1])))) + "\n")
