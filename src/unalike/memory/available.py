"""Memory that is free now, for a machine that is to say its own budget."""

from __future__ import annotations

from pathlib import Path

import torch

from ..errors import InputError

MEMINFO, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def available(device: str = "cpu") -> int:
    """Bytes that a process can still take on `device`: of a CPU's main memory within the limit of its container.

    Raises `InputError` where the system does not tell: for a CPU that is Linux only.
    """
    if torch.device(device).type == "cuda" and torch.cuda.is_available():
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        fields = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
        free = 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        raise InputError(f"free memory of {device} cannot be measured here: give it in bytes") from None
    return min(free, _within_container(free))


def _within_container(otherwise: int) -> int:
    """What a control group (version 2) leaves; `otherwise` where there is none, or none with a limit."""
    try:
        most, now = ((CGROUP / f"memory.{name}").read_text().strip() for name in ("max", "current"))
    except OSError:
        return otherwise
    return otherwise if most == "max" else max(0, int(most) - int(now))
