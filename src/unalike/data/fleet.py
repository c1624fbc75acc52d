"""Memory budgets of clients, in bytes: one size for all, drawn from a range, or read from a file of clients.

    2GiB, 600 MB, 1073741824     one size for every client
    uniform:20MiB:180MiB         drawn for each client by a key of its own
    devices.csv                  header client,memory; a line for each client
    devices.toml                 [[client]] with memory, and id (default: the next number), count (default: 1)

What is unlimited may say so in a file.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import ByteSize, TypeAdapter, ValidationError

from ..errors import InputError
from ..rng import Key

Budgets: TypeAlias = tuple[int | None, ...]
"""Training memory of each client in bytes; None is unlimited."""

FILES = (".csv", ".toml")
UNLIMITED = "unlimited"
_BYTES, _SHAPE = TypeAdapter(ByteSize), re.compile(r"\d+|\d*\.?\d+\s*[kmgt]?i?b", re.IGNORECASE)
_SHARE = re.compile(r"\d{1,2}|\d{0,2}\.\d+")
"""A number below 100 without a unit: nobody has so few bytes."""


def is_file(fleet: str) -> bool:
    """Whether a fleet is written as the name of a file."""
    return Path(fleet).suffix in FILES


def size(text: Any, where: str) -> int:
    """Bytes of "2GiB", "600 MB" or a plain number; `InputError`, begun with `where`, unless it is one above 0."""
    said = str(text).strip()
    try:
        found = int(_BYTES.validate_python(said)) if _SHAPE.fullmatch(said) else -1
    except ValidationError:
        found = -1
    if found < 0:
        raise InputError(f"{where}{text!r} is no size of memory: write 2GiB, 600MB or a number of bytes")
    if found < 1:
        raise InputError(f"{where}a budget of {text} is no memory at all: give bytes above 0, or leave the fleet out")
    return found


def budgets(fleet: str, clients: int, key: Key) -> Budgets:
    """The budget of each of so many clients.

    Args:
        key: client k's draw is that of `key / k`, so it does not depend on how many there are.

    Raises:
        InputError: a size, a range or a file that cannot be read, or a file that has other clients than 0, 1, ...
    """
    if is_file(fleet):
        return _of_clients(read(Path(fleet)), clients, fleet)
    if fleet.startswith("uniform:"):
        low, high = bounds(fleet)
        return tuple(round(low + (high - low) * share) for share in shares(clients, key))
    return (size(fleet, "--fleet "),) * clients


def shares(clients: int, key: Key) -> list[float]:
    """A number in [0, 1) for each client, from a key of its own."""
    return [float((key / k).numpy().random()) for k in range(clients)]


def bounds(fleet: str) -> tuple[int, int]:
    """LOW and HIGH of "uniform:LOW:HIGH" in bytes."""
    parts = fleet.split(":")[1:]
    if len(parts) != 2:
        raise InputError(f"--fleet {fleet} has no range: write uniform:20MiB:180MiB")
    low, high = (size(part, f"--fleet {fleet}: ") for part in parts)
    if low > high:
        raise InputError(f"--fleet {fleet} begins above its end: write uniform:{parts[1]}:{parts[0]}")
    return low, high


def of_shares(fleet: str, need: int) -> str:
    """ "uniform:0.12:1.07", shares of a need in bytes, as the range of bytes that it is; any other fleet as it is."""
    parts = fleet.removeprefix("uniform:").split(":")
    if not fleet.startswith("uniform:") or len(parts) != 2 or not all(_SHARE.fullmatch(part) for part in parts):
        return fleet
    return ":".join(["uniform", *(str(round(float(part) * need)) for part in parts)])


def read(path: Path) -> dict[int, int | None]:
    """Client to budget of a .csv or .toml file, in its order."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise InputError(f"--fleet {path} cannot be read: {reason}") from None
    found: dict[int, int | None] = {}
    for where, client, memory in (_csv if path.suffix == ".csv" else _toml)(text, path):
        if client in found:
            raise InputError(f"{where}client {client} has a budget already: give each client one")
        found[client] = None if memory == UNLIMITED else size(memory, where)
    if not found:
        raise InputError(f"{path} has no clients: give each a line with its number and its memory")
    return found


def _csv(text: str, path: Path) -> Iterator[tuple[str, int, Any]]:
    rows = csv.DictReader(io.StringIO(text), skipinitialspace=True)
    if missing := {"client", "memory"} - {*(rows.fieldnames or ())}:
        raise InputError(f"{path} has no column {min(missing)}: its first line must be client,memory")
    for row in rows:
        where = f"{path}, line {rows.line_num}: "
        yield where, _number(row["client"], "client", where), row["memory"]


def _toml(text: str, path: Path) -> Iterator[tuple[str, int, Any]]:
    try:
        keys = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    entries = keys.get("client")
    if not isinstance(entries, list) or keys.keys() - {"client"}:
        raise InputError(f"{path} must be a list of clients: [[client]] with memory, and id or count")
    after = 0
    for place, entry in enumerate(entries, start=1):
        where = f"{path}, client {place} of the list: "
        if not isinstance(entry, Mapping) or "memory" not in entry or (entry.keys() - {"id", "memory", "count"}):
            raise InputError(f"{where}its keys must be memory, and id or count, not {', '.join(entry) or 'none'}")
        first, count = _number(entry.get("id", after), "id", where), _number(entry.get("count", 1), "count", where)
        after = first + count
        for client in range(first, after):
            yield where, client, entry["memory"]


def _number(value: Any, name: str, where: str) -> int:
    try:
        found = int(value)
    except (TypeError, ValueError):
        found = -1
    if found < 0 or isinstance(value, bool | float):
        raise InputError(f"{where}{name} = {value!r} is no number of a client: write 0, 1, 2, ...")
    return found


def _of_clients(found: Mapping[int, int | None], clients: int, fleet: str) -> Budgets:
    absent = [k for k in range(clients) if k not in found]
    if absent:
        raise InputError(f"{fleet} has no client {absent[0]}: it must have each of the clients 0 to {clients - 1}")
    if more := [k for k in found if k >= clients]:
        raise InputError(f"{fleet} has client {more[0]}, but the clients are 0 to {clients - 1}: give more --clients")
    return tuple(found[k] for k in range(clients))


def to_csv(budgets: Sequence[int | None]) -> str:
    """The budgets as a file that `read` reads."""
    lines = (f"{k},{UNLIMITED if memory is None else memory}\n" for k, memory in enumerate(budgets))
    return "client,memory\n" + "".join(lines)


def digest(budgets: Sequence[int | None]) -> str:
    """SHA-256 (hex) of the budgets; empty where nobody has one."""
    limited = any(memory is not None for memory in budgets)
    return hashlib.sha256(to_csv(budgets).encode()).hexdigest() if limited else ""
