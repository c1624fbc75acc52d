"""What a site without a network needs, as the versions that are installed here."""

from __future__ import annotations

from importlib import metadata

from ..errors import InputError

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"


def wheels() -> str:
    """The lines of wheels.txt: `name==version` of each package that `unalike[flower]` needs, unalike left out.

    Raises:
        InputError: the extra `flower` is not installed.
    """
    pins = installed(["unalike[flower]", *_extra()])
    pins.pop("unalike", None)
    index = [f"--extra-index-url {CPU_WHEELS}"] if any(v.endswith("+cpu") for v in pins.values()) else []
    return "\n".join([*index, *(f"{name}=={pins[name]}" for name in sorted(pins))]) + "\n"


def installed(roots: list[str]) -> dict[str, str]:
    """Name to version of the installed packages among `roots` (as "name[extra]") and of all that these require here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    versions: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    queue = [Requirement(root) for root in roots]
    while queue:
        wanted = queue.pop()
        name, extras = canonicalize_name(wanted.name), frozenset({"", *wanted.extras})
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        versions[name] = found.version
        needs = [Requirement(text) for text in found.requires or ()]
        queue += [r for r in needs if r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras)]
    return versions


def _extra() -> list[str]:
    """The packages of the extra by name, so that they are found under an older installation of unalike as well."""
    names = ["flwr", "cryptography"]
    for name in names:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            raise InputError(f"{name} is not installed: pip install 'unalike[flower]'") from None
    return names
