"""`unalike deploy init`: the folder of a deployment, written as a whole or not at all."""

from __future__ import annotations

import contextlib
import getpass
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata, resources
from pathlib import Path
from string import Template
from typing import Any

from .. import config, runs
from ..config import Experiment
from ..data.schema import FILE as SCHEMA
from ..data.schema import Schema
from ..errors import InputError
from ..files import sync_folder, write_atomically
from ..runs import Prepared
from .folder import APP, DEPLOYMENT, NAME, SERVER, SITE, SITES, Deployment, SiteConfig, checked, head, host_of, port_of
from .wheels import wheels

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CODE = "code"
"""Folder of a site with copies of the user's own files."""


def init(
    folder: Path,
    experiment: Experiment | None,
    names: Sequence[str],
    address: str = "127.0.0.1:9092",
    *,
    days: int = 365,
    hosts: Sequence[str] = (),
    **more: Any,
) -> Deployment:
    """Write all that a server and its sites need; nothing in it must be edited for a trial on loopback.

    Args:
        folder: to be made.
        experiment: what is trained; None is pFedAFM on the digits, one client a site. Where it does not say a seed, one
            is drawn at random: who can guess it can derive the keys of all clients' draws.
        names: of the sites; client k of the experiment goes to site k mod N.
        address: "host:port" by which sites reach the server.
        days: for which the server's certificate is valid.
        hosts: further DNS names and IP addresses of the server, beside that of `address` and those of loopback.
        more: further keys of deployment.toml (name, min_sites, stage, canary, insecure).

    Raises:
        InputError: the folder exists, a name or the experiment is wrong, or the extra `flower` is missing. Nothing
            was written.
    """
    folder = folder.resolve()
    if folder.exists():
        raise InputError(f"{folder} exists already: choose another folder, or move it away")
    name = folder.name if NAME.fullmatch(folder.name) else "unalike"
    keys = {"name": name, "min_sites": len(names), **more, "address": address, "sites": tuple(names)}
    checked(Deployment, {**keys, "clients": len(names)})
    pins = wheels()
    prepared = runs.prepare(_seeded(experiment or _default(len(names))))
    if prepared.experiment.forgetting:
        raise InputError("forgetting = true: sites do not tell the counts that it is measured with: leave it out")
    if prepared.experiment.elsewhere:
        raise InputError("--evaluate: a site has its own rows only: in a deployment evaluate own")
    clients = len(prepared.federation.clients)
    if clients < len(names):
        raise InputError(
            f"{clients} clients cannot be divided among {len(names)} sites: ask for --clients {len(names)}"
        )
    deployment = checked(Deployment, {**keys, "clients": clients})
    with _whole(folder) as aside:
        _fill(aside, folder, deployment, prepared)
        _write_server(aside / SERVER, folder, deployment, [host_of(address), *LOOPBACK, *hosts], days)
        _write_sites(aside, deployment, prepared)
        _write(aside / "wheels.txt", pins)
        _write(aside / "README.md", _readme(deployment, aside / SERVER))
    return deployment


def renew(folder: Path, days: int = 365) -> None:
    """A new certificate and key for the server of a deployment, for the same hosts; sites keep their files.

    Raises:
        InputError: the folder is no deployment, or its authority is missing or expired.
    """
    from . import certificates

    server = folder / SERVER
    certificates.make_server(server, certificates.hosts(server / f"{certificates.SERVER}.crt"), days)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A folder aside to be filled, which becomes `folder` at the end of the block, or nothing if that fails."""
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        aside.mkdir(parents=True)
        yield aside
        aside.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another folder") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _default(sites: int) -> Experiment:
    return config.resolve({"method": "pfedafm", "data": "digits", "clients": sites})


def _seeded(experiment: Experiment) -> Experiment:
    if "seed" in experiment.model_fields_set:
        return experiment
    return experiment.model_copy(update={"seed": secrets.randbits(48)})


def _fill(aside: Path, folder: Path, deployment: Deployment, prepared: Prepared) -> None:
    keys = runs.absolute_paths(config.flat(prepared.experiment))
    _write(aside / runs.EXPERIMENT, config.to_toml(keys))
    _write(aside / DEPLOYMENT, deployment.to_toml())
    Schema.of(prepared.federation.source).to_json(aside / SCHEMA)
    version = metadata.version("unalike")
    package = aside / APP / "unalike_app"
    package.mkdir(parents=True)
    _write(aside / APP / "pyproject.toml", _text("pyproject.toml", version=version, config=_toml_folder(folder)))
    _write(package / "__init__.py", '"""A Flower app around unalike."""\n')
    for side, module in (("server", "unalike.deploy.serverapp"), ("client", "unalike.engines.flower.client")):
        _write(package / f"{side}.py", _text("component.py", side=side, module=module))
    _write(aside / "Dockerfile", _text("Dockerfile", name=deployment.name, version=version))
    _write(aside / ".dockerignore", _text("dockerignore"))


def _toml_folder(folder: Path) -> str:
    return config.to_toml({"folder": str(folder)}).rstrip()


def _write_server(server: Path, folder: Path, deployment: Deployment, hosts: Sequence[str], days: int) -> None:
    from . import certificates

    server.mkdir(mode=0o700)
    certificates.make_authority(server, max(days, certificates.AUTHORITY_DAYS))
    certificates.make_server(server, hosts, days)
    program = str(Path(sys.executable).parent / "unalike")
    unit = _text(
        "unalike-server.service",
        name=deployment.name,
        user=_user(),
        command=" ".join(_quoted(word).replace("$", "$$") for word in (program, "deploy", "server", str(folder))),
        folder=_quoted(str(folder)),
        hardening=_text("hardening").rstrip(),
    )
    _write(server / "unalike-server.service", unit)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have a number only
        return str(os.getuid())


def _quoted(word: str) -> str:
    """A word in a systemd unit."""
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%") + '"'


def _write_sites(aside: Path, deployment: Deployment, prepared: Prepared) -> None:
    from . import certificates

    code = _own_code(prepared)
    for name, clients in deployment.clients_of_sites().items():
        site = aside / SITES / name
        site.mkdir(mode=0o700, parents=True)
        (site / "state").mkdir(mode=0o700)
        _write(site / SITE, site_config(name, clients, deployment, prepared).to_toml())
        shutil.copy(aside / SERVER / f"{certificates.AUTHORITY}.crt", site)
        shutil.copy(aside / SCHEMA, site)
        certificates.make_node_key(site)
        unit = _text("unalike-site.service", site=name, hardening=_text("hardening").rstrip())
        _write(site / "unalike-site.service", unit)
        prepared.federation.only(clients).save(site / "data")
        for file in code:
            (site / CODE).mkdir(exist_ok=True)
            shutil.copy(file, site / CODE)


def site_config(name: str, clients: Sequence[int], deployment: Deployment, prepared: Prepared) -> SiteConfig:
    """What `init` writes into a site's site.toml; the user's own files are named as they lie in the site's folder."""
    keys = {
        "name": name,
        "clients": tuple(clients),
        "superlink": deployment.address,
        "device": prepared.experiment.device,
        "methods": tuple(dict.fromkeys((*_own_method(prepared), "standalone"))),
        "trust": tuple(dict.fromkeys(head(_beside(text)) for text in _code_names(prepared) if ":" in head(text))),
        "insecure": deployment.insecure,
    }
    return checked(SiteConfig, keys)


def _own_method(prepared: Prepared) -> tuple[str, ...]:
    """The experiment's method, if it is one of unalike's: for other code there is `trust`."""
    return () if ":" in head(prepared.experiment.method) else (prepared.experiment.method,)


def _code_names(prepared: Prepared) -> list[str]:
    """The names that lead to code: the method's and the models'."""
    return [prepared.experiment.method, *(spec.name for spec in prepared.federation.models.values())]


def _beside(name: str) -> str:
    """A name whose file, if it has one, is the site's copy."""
    file = _file_of(name)
    return name.replace(str(file), f"{CODE}/{file.name}", 1) if file else name


def _file_of(name: str) -> Path | None:
    place = head(name).rpartition(":")[0]
    return Path(place) if place.endswith(".py") else None


def _own_code(prepared: Prepared) -> list[Path]:
    """The user's files that a site needs a copy of."""
    files = list(dict.fromkeys(file for name in _code_names(prepared) if (file := _file_of(name))))
    for file in files:
        for other in files:
            if file != other and file.name == other.name:
                raise InputError(f"{file} and {other} would be one file at a site: rename one")
    return files


def _readme(deployment: Deployment, server: Path) -> str:
    from . import certificates

    n = len(deployment.sites)
    return _text(
        "README.md",
        name=deployment.name,
        address=deployment.address,
        port=str(port_of(deployment.address)),
        n=str(n),
        count=f"{n} site{'s' * (n > 1)}",
        sites=", ".join(deployment.sites),
        starts="\n".join(f"    unalike site {SITES}/{name}" for name in deployment.sites),
        version=metadata.version("unalike"),
        expiry=f"{certificates.expiry(server / f'{certificates.SERVER}.crt'):%Y-%m-%d}",
    )


def _text(template: str, **values: str) -> str:
    """A template of this package with its `$names` filled in; a name too few or a value too many is an error."""
    found = Template((resources.files(__package__) / "templates" / f"{template}.template").read_text("utf-8"))
    assert {*found.get_identifiers()} == {*values}
    return found.substitute(values)


def _write(path: Path, text: str) -> None:
    write_atomically(path, text.encode())
