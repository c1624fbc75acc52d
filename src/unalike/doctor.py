"""What a run would meet on this machine."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from .data.sources import load
from .errors import InputError
from .runs import processor

FLOWER = ((1, 41), (1, 43))
"""The versions of flwr that are known to work: the first, and the first that is not."""
EXTRAS = {
    "llm": ("transformers", "peft", "gguf", "rouge_score"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
    "hub": ("datasets",),
    "pandas": ("pandas",),
}


def examine() -> list[dict[str, Any]]:
    """One record a check: {"check", "found", "status"}, where status is "ok", "absent" or a remedy."""
    folder = Path.cwd()
    free = shutil.disk_usage(folder).free / 2**30
    rows = [
        ("unalike", metadata.version("unalike"), "ok"),
        ("python", platform.python_version(), "ok"),
        ("torch", torch.__version__, "ok"),
        ("processor", f"{processor()}, {os.cpu_count()} cores", "ok"),
        ("cuda", *_cuda()),
        ("clock", *_clock(datetime.now(UTC))),
        ("free disk", f"{free:.1f} GiB in {folder}", "ok" if free > 1 else "client states are files: free some space"),
    ]
    rows += [(f"extra {name}", *_extra(name, modules)) for name, modules in EXTRAS.items()]
    rows += [("extra flower", *_flower())]
    rows += [(f"data {name}", *_data(name)) for name in ("digits", "fashion-mnist")]
    return [{"check": check, "found": found, "status": status} for check, found, status in rows]


def _cuda() -> tuple[str, str]:
    if not torch.cuda.is_available():
        return "none", "absent"
    return torch.cuda.get_device_name(0), "ok"


def _clock(now: datetime) -> tuple[str, str]:
    """Sites sign their messages with the time. Offline one thing is sure: it is later than the installation."""
    installed = datetime.fromtimestamp(Path(__file__).stat().st_mtime, UTC)
    behind = now < installed - timedelta(days=1)  # file times may be those of another time zone
    return f"{now:%Y-%m-%d %H:%M} UTC", "before unalike was installed: timedatectl set-ntp true" if behind else "ok"


def _flower() -> tuple[str, str]:
    remedy = "pip install 'unalike[flower]'"
    try:
        found = metadata.version("flwr")
    except metadata.PackageNotFoundError:
        return "without flwr", remedy
    first, beyond = FLOWER
    inside = first <= tuple(int(part) for part in found.split(".")[:2]) < beyond
    return (
        f"flwr {found}",
        "ok" if inside else f"{remedy}: {first[0]}.{first[1]} or later, before {beyond[0]}.{beyond[1]}",
    )


def _extra(name: str, modules: tuple[str, ...]) -> tuple[str, str]:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return (f"without {', '.join(missing)}", f"pip install 'unalike[{name}]'") if missing else ("installed", "ok")


def _data(name: str) -> tuple[str, str]:
    offline = os.environ.get("HF_HUB_OFFLINE")
    os.environ["HF_HUB_OFFLINE"] = "1"  # to look is not to download
    try:
        source = load(name)
    except InputError as error:
        return "not found", str(error)
    finally:
        if offline is None:
            del os.environ["HF_HUB_OFFLINE"]
    return f"{len(source.y)} rows, {len(source.classes)} classes", "ok"
