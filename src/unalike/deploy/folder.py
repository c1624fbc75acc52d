"""What a deployment and a site write down: deployment.toml and site.toml, read, checked, and led to the site's data."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from .. import config
from ..config import Split
from ..data import Impute, Source
from ..data.federation import Federation, assemble
from ..data.partition import PARTS, Ints, Partition, draw
from ..data.schema import Schema
from ..data.sources import SOURCES, load
from ..errors import InputError
from ..memory.available import available
from ..plugins import absolute
from ..plugins import label as label_of
from ..rng import Key

DEPLOYMENT, SITE = "deployment.toml", "site.toml"
SERVER, SITES, APP = "server", "sites", "app"
"""Folders of a deployment: certificates and the server's unit; a folder for each site; the Flower app."""
NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,38}[a-z0-9])?")


def host_of(address: str) -> str:
    """The host of "host:port", an IPv6 address without its brackets."""
    return address.rpartition(":")[0].removeprefix("[").removesuffix("]")


def port_of(address: str) -> int:
    """The port of "host:port"."""
    return int(address.rpartition(":")[2])


def is_loopback(address: str) -> bool:
    """Whether "host:port" cannot be reached from another machine."""
    host = host_of(address)
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _address(value: str) -> str:
    host, _, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if not host_of(value) or (":" in host and not bracketed) or re.search(r"[\s/]", host):
        raise ValueError("host:port, such as fl.example.org:9092 or [::1]:9092")
    if not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("host:port with a port in 1..65535")
    return value


def _site_name(value: str) -> str:
    if not NAME.fullmatch(value):
        raise ValueError("a name of up to 40 small letters, digits and inner hyphens: it is also a folder's name")
    return value


Address = Annotated[str, AfterValidator(_address)]
SiteName = Annotated[str, AfterValidator(_site_name)]


class Stage(StrEnum):
    """How far a deployment has come."""

    LOCAL = "local"
    """Every site trains, and nothing is shared."""
    CANARY = "canary"
    """The sites listed as `canary` share."""
    SHARED = "shared"
    """All sites share."""


class _Written(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_toml(self) -> str:
        """As a file, with a line on each key above it; keys that are None are shown and left out."""
        lines = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            kept = config.to_toml({name: value}) if value is not None else f"# {name} =\n"
            lines.append(f"# {field.description}\n{kept}")
        return "".join(lines)


class Deployment(_Written):
    """deployment.toml: what the server knows of its sites."""

    name: SiteName = Field(description="of the deployment")
    address: Address = Field(description="host:port by which sites reach the server")
    sites: tuple[SiteName, ...] = Field(min_length=1, description="names of the sites, in the order of their clients")
    clients: int = Field(ge=1, description="number of clients; client k is at site k mod the number of sites")
    min_sites: int = Field(1, ge=1, description="a round starts when so many sites are there")
    stage: Stage = Field(
        Stage.SHARED, description="local: nothing is shared; canary: the sites below share; shared: all"
    )
    canary: tuple[SiteName, ...] = Field(
        (), validate_default=True, description="sites that share while the stage is canary"
    )
    insecure: bool = Field(False, description="true: no TLS; outside loopback --insecure must be given as well")

    @field_validator("sites")
    @classmethod
    def _check_sites(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a list of different names")
        return value

    @field_validator("min_sites")
    @classmethod
    def _check_least(cls, value: int, info: ValidationInfo) -> int:
        sites = info.data.get("sites", ())
        if sites and value > len(sites):
            raise ValueError(f"at most {len(sites)}, the number of sites")
        return value

    @field_validator("canary")
    @classmethod
    def _check_canary(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if not {*value} <= {*info.data.get("sites", value)}:
            raise ValueError(f"names among {', '.join(info.data['sites'])}")
        if not value and info.data.get("stage") is Stage.CANARY:
            raise ValueError("at least one site, as the stage is canary")
        return value

    def clients_of_sites(self) -> dict[str, tuple[int, ...]]:
        """The client numbers of each site: client k is at site k mod N."""
        return {site: tuple(range(k, self.clients, len(self.sites))) for k, site in enumerate(self.sites)}


class SiteConfig(_Written):
    """site.toml: what a site decides for itself. Paths are counted from the file's folder."""

    name: SiteName = Field(description="of this site")
    clients: tuple[Annotated[int, Field(ge=0)], ...] = Field(min_length=1, description="numbers of its clients")
    superlink: Address = Field(description="host:port of the server, to which this site connects")
    root_certificates: str = Field("ca.crt", description="the authority that signed the server's certificate")
    key: str = Field("node.key", description="the site's private key; the server knows node.pub")
    state: str = Field("state", description="folder for the states of its clients, which never leave it")

    data: str = Field("data", description="folder of the trial's share, or its own .csv, .npz or folder of images")
    data_path: str | None = Field(None, description="folder with the files of a named data set")
    label: str | None = Field(None, description="label column of a CSV file [label]")
    site_column: str | None = Field(None, description="column that names each row's client, where it has several")
    group_column: str | None = Field(None, description="column whose rows stay in one part [group, groups, slide]")
    impute: Impute | None = Field(None, description="how missing values are filled [as agreed]")
    image_size: int | None = Field(None, ge=4, le=1024, description="side in pixels of a folder's images")
    split: Split = Field((0.6, 0.2, 0.2), description="train/validation/test shares, 60/20/20")
    seed: int = Field(0, description="seeds the split of its rows")

    memory: ByteSize | None = Field(None, gt=0, description="memory for training, in bytes or as 2GB [not limited]")
    measure_memory: bool = Field(False, description="true: memory is what is free when the site starts")
    modalities: tuple[str, ...] = Field((), description="what its data are made of")
    device: str = Field("cpu", description="cpu, cuda, cuda:1")
    keep_alive: bool = Field(True, description="keep one client process between messages")
    methods: tuple[str, ...] = Field((), description="methods that the server may ask for [any of unalike's]")
    trust: tuple[str, ...] = Field((), description="code of this site's own that the server may name, file.py:Class")
    insecure: bool = Field(False, description="true: no TLS; outside loopback --insecure must be given as well")
    port: int = Field(0, ge=0, le=65535, description="loopback port of Flower's runtime API; 0 is a free one")

    @field_validator("clients")
    @classmethod
    def _check_clients(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) < len(value):
            raise ValueError("a list of different numbers")
        return value

    def located(self, folder: Path) -> SiteConfig:
        """The same site with its paths counted from `folder` and made absolute."""
        names = ["root_certificates", "key", "state"]
        names += [n for n in ("data", "data_path") if getattr(self, n) and getattr(self, n) not in SOURCES]
        found = {name: str((folder / Path(getattr(self, name)).expanduser()).resolve()) for name in names}
        return self.model_copy(update={**found, "trust": tuple(absolute(name, folder) for name in self.trust)})


Kept = TypeVar("Kept", bound=_Written)


def read_deployment(folder: Path, allow_insecure: bool = False) -> Deployment:
    """The deployment in a folder.

    Args:
        allow_insecure: whether `--insecure` was given.

    Raises:
        InputError: no such file, an unknown key, a wrong value, or plaintext outside loopback.
    """
    path = folder / DEPLOYMENT
    found = checked(Deployment, _keys(path, "deployment"), f"{path}: ")
    _require_tls(path, found.insecure, found.address, allow_insecure)
    return found


def read_site(folder: Path, allow_insecure: bool = False) -> SiteConfig:
    """The site in a folder, its paths absolute, its memory measured where it asks for that.

    Args:
        allow_insecure: whether `--insecure` was given.

    Raises:
        InputError: no such file, an unknown key, a wrong value, a missing certificate or key, a key that others can
            read, memory that cannot be measured, or plaintext outside loopback.
    """
    path = folder / SITE
    found = checked(SiteConfig, _keys(path, "site"), f"{path}: ").located(folder)
    _require_tls(path, found.insecure, found.superlink, allow_insecure)
    if not found.insecure:
        for file in (found.root_certificates, found.key):
            if not Path(file).is_file():
                raise InputError(f"{path}: there is no file {file}: copy it from the folder that deploy init wrote")
    if Path(found.key).is_file():
        require_private(Path(found.key))
    if found.measure_memory:
        if found.memory is not None:
            raise InputError(f"{path}: memory is given and measure_memory is true: remove one of them")
        return found.model_copy(update={"memory": available(found.device)})
    return found


def require_private(key: Path) -> None:
    """Raise `InputError` if other users than its owner can read or write a private key."""
    if key.stat().st_mode & 0o077:
        raise InputError(f"{key} can be read by other users: chmod 600 {key}")


def _keys(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise InputError(
            f"{path.parent} is no folder of a {what}: it has no {path.name}; unalike deploy init writes it"
        )
    return config.read_toml(path.resolve())


def checked(kind: type[Kept], keys: Mapping[str, Any], where: str = "") -> Kept:
    """The `kind` with these keys; `InputError`, begun with `where`, at one unknown, missing or wrong."""
    known = kind.model_fields
    for key in keys:
        if key not in known:
            raise config.unknown_key(key, known, f"the keys are {', '.join(known)}", where)
    for name, field in known.items():
        if field.is_required() and name not in keys:
            raise InputError(f"{where}{name} is missing: {field.description}")
    try:
        return kind(**keys)
    except ValidationError as error:
        raise InputError(f"{where}{config.first_line(error)}") from None


def _require_tls(path: Path, insecure: bool, address: str, allowed: bool) -> None:
    if insecure and not allowed and not is_loopback(address):
        raise InputError(
            f"{path}: insecure = true would send everything in plain text to {address}: remove it to use TLS, or "
            "spell out --insecure as well"
        )


def head(name: str) -> str:
    """The name of code without its arguments."""
    return name.partition("(")[0]


def at_home(name: str, trust: Sequence[str]) -> str:
    """What a site calls the code that the server names: its own copy of a file, if it trusts that.

    Names of the library stay. Files are compared by file name and object, so the site's own folder is what is used.

    Raises:
        InputError: the code is not among `trust`.
    """
    if ":" not in head(name):
        return name
    for own in trust:
        if label_of(own) == label_of(head(name)):
            return own + name.removeprefix(head(name))
    raise InputError(
        f"the server names {label_of(name)}, code that this site does not trust: read it, and add it to trust in {SITE}"
    )


def site_federation(site: SiteConfig, schema: Schema) -> Federation:
    """The federation as a site holds it: its own clients with their rows, all others without.

    Which models its clients have, the server says when a run begins.

    A folder that `Federation.save` wrote (the trial's share) is taken as it is. Other data are brought to the
    agreement and split with the site's seed; several clients divide them by `site_column`, or else at random.

    Args:
        site: with absolute paths, as `read_site` gives it.

    Raises:
        InputError: the data cannot be read, or do not fit the agreement or the clients.
    """
    saved = (Path(site.data) / "federation.json").is_file()
    found = _saved(site, schema) if saved else _own(site, schema)
    own: dict[str, Any] = {"memory": None if site.memory is None else int(site.memory), "modalities": site.modalities}
    own = {name: value for name, value in own.items() if value}
    infos = tuple(replace(info, **own) if info.id in site.clients else info for info in found.clients)
    return replace(found, clients=infos)


def _saved(site: SiteConfig, schema: Schema) -> Federation:
    found = Federation.load(Path(site.data))
    schema.require(found.source)
    for client in site.clients:
        if client >= len(found.clients) or not len(found.rows(client, "train")):
            raise InputError(f"{site.data} has no rows of client {client}: take the folder of site {site.name}")
    return found


def _own(site: SiteConfig, schema: Schema) -> Federation:
    named = site.data in SOURCES
    agreed = None if named or schema.kind == "image" else schema.impute
    source = load(
        site.data,
        path=Path(site.data_path) if site.data_path else None,
        label=site.label,
        site_column=site.site_column,
        group_column=site.group_column,
        impute=site.impute or agreed,
        image_size=site.image_size,
        whole=False,
    )
    source = schema.conform(source)
    return _placed(assemble(source, _divided(site, source), (), {}), site.clients)


def _divided(site: SiteConfig, source: Source) -> Partition:
    """The rows of a site's own data, dealt to its clients in their order and split."""
    n = len(site.clients)
    if len(source.y) < 3 * n:
        raise InputError(
            f"site {site.name} has {len(source.y)} rows: each of its {n} clients needs 3, to train, validate and test"
        )
    scheme = "iid" if n == 1 or source.sites is None else "site"
    return draw(source, scheme, clients=n, key=Key.root(site.seed) / "partition", split=site.split, min_per_client=0)


def _placed(own: Federation, numbers: Sequence[int]) -> Federation:
    """Clients 0, 1, ... as the clients of these numbers; below and between them are clients without rows."""
    none: Ints = np.zeros(0, np.int64)
    place = {number: k for k, number in enumerate(numbers)}
    known = range(max(numbers) + 1)
    train, validation, test = (tuple(own.rows(place[k], part) if k in place else none for k in known) for part in PARTS)
    stranger = replace(own.clients[0], n=0)
    infos = tuple(replace(own.clients[place[k]] if k in place else stranger, id=k) for k in known)
    return replace(own, partition=Partition(train, validation, test, "site"), clients=infos)
