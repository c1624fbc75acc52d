"""`unalike deploy ...`, `unalike site` and `unalike rehearse`. Flower is imported by what they call, not by this."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import StoppedError
from ..options import ExperimentCommand, Json, Out, Quiet, experiment, words
from ..plugins import require_extra
from ..telemetry.events import Listener

if TYPE_CHECKING:
    from ..personal import PersonalModel

deploy = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Run a federation on real sites, by Flower.")
Deployment = Annotated[Path, typer.Argument(metavar="FOLDER", help="a folder that deploy init wrote")]
Insecure = Annotated[bool, typer.Option("--insecure", help="allow plain text outside of this machine")]
Sites = Annotated[str, typer.Option("--sites", help="how many, or their names: 3 or berlin,paris,rome")]


def add_to(app: typer.Typer) -> None:
    """Put the commands on unalike's command line."""
    app.add_typer(deploy, name="deploy")
    app.command(name="site")(site)
    app.command(name="rehearse", cls=ExperimentCommand, options_metavar="EXPERIMENT.toml | METHOD [OPTIONS]")(rehearse)


def is_site(folder: Path) -> bool:
    """Whether a folder is that of a site."""
    return (folder / "site.toml").is_file()


def extract_at_site(folder: Path, client: int) -> PersonalModel:
    """A client's complete model from the site that has it, as it was at its last job."""
    from .site import extract

    require_extra("flower", "flwr", "cryptography")
    return extract(folder, client)


def names_of(sites: str) -> list[str]:
    """The sites' names: those given, or site-1, site-2, ... for a number."""
    return [f"site-{k + 1}" for k in range(int(sites))] if sites.isdecimal() else sites.split(",")


@deploy.command(cls=ExperimentCommand, options_metavar="FOLDER [EXPERIMENT.toml | METHOD] [OPTIONS]")
def init(
    ctx: typer.Context,
    sites: Sites = "3",
    address: Annotated[str, typer.Option("--address", help="host:port of the server")] = "127.0.0.1:9092",
    hosts: Annotated[str, typer.Option("--hosts", help="further names of the server, for its certificate")] = "",
    days: Annotated[int, typer.Option("--days", help="validity of the server's certificate", min=1)] = 365,
) -> None:
    """Write all that a server and its sites need: keys, certificates, configurations, units, a README.

    Nothing in it must be edited for a trial on this machine.
    """
    from ..errors import InputError
    from .init import init as write

    given, keys = words(ctx)
    if not given:
        raise InputError("say which folder to write: unalike deploy init FOLDER")
    require_extra("flower", "flwr", "cryptography")
    folder, *rest = given
    asked = experiment(rest or ["pfedafm"], keys) if rest or keys else None
    made = write(Path(folder), asked, names_of(sites), address, days=days, hosts=[h for h in hosts.split(",") if h])
    print(f"{folder}: {', '.join(made.sites)}; what to do next is in {Path(folder) / 'README.md'}")


@deploy.command()
def server(folder: Deployment, insecure: Insecure = False) -> None:
    """Run the server's SuperLink until interrupted."""
    from .operate import server as serve

    _ready()
    with _until_stopped():
        serve(folder, insecure)


@deploy.command()
def register(folder: Deployment, insecure: Insecure = False) -> None:
    """Let the running server know keys of sites that came after its start; it knows those of before by itself."""
    from .operate import register as tell

    _ready()
    new = tell(folder, insecure)
    print(f"registered: {', '.join(new)}" if new else "all sites were registered already")


@deploy.command(name="run")
def run_(folder: Deployment, insecure: Insecure = False, quiet: Quiet = False, as_json: Json = False) -> None:
    """Start the run on the running server, or follow it, or go on with it after an interruption."""
    from .. import runs
    from ..telemetry.progress import listeners
    from .operate import run as bring_to_its_end

    _ready()
    rounds = runs.open_run(folder).parameters["rounds"]
    try:
        out = bring_to_its_end(folder, insecure, listeners(folder.name, rounds, quiet))
    except KeyboardInterrupt:
        remedy = f"the run goes on without this; follow it again with: unalike deploy run {folder}"
        raise StoppedError(f"interrupted: {remedy}") from None
    if as_json:
        print((out / runs.SUMMARY).read_text().strip())
    elif not quiet:
        from ..report import sentence

        print(sentence(out))
        print(f"report: {out / 'report.html'}")


@deploy.command()
def status(folder: Deployment, insecure: Insecure = False, as_json: Json = False) -> None:
    """Certificates and how long they last, the stage, the run and its last round."""
    from .operate import status as look

    _ready()
    found = look(folder, insecure)
    if as_json:
        print(json.dumps(found))
        return
    for name, said in found.items():
        print(f"{name}: {'; '.join(map(str, said)) if isinstance(said, list) else said}")


@deploy.command()
def renew(
    folder: Deployment, days: Annotated[int, typer.Option("--days", help="validity in days", min=1)] = 365
) -> None:
    """Give the server a new certificate of the same authority; sites keep their files."""
    from .init import renew as anew

    _ready()
    anew(folder, days)
    print(f"restart unalike deploy server {folder}; it has a certificate for {days} more days")


def site(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a site's folder: it holds site.toml")],
    insecure: Insecure = False,
) -> None:
    """Take part as one site: keeps its data and private states, and answers the server."""
    from .site import run as serve

    _ready()
    with _until_stopped():
        serve(folder, insecure)


def rehearse(
    ctx: typer.Context,
    sites: Sites = "3",
    per_message: Annotated[bool, typer.Option("--per-message", help="a process per message, as Flower comes")] = False,
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Run the exact deployment on this machine, with TLS and keys, and hold it against the engine in process."""
    from ..api import free_folder
    from ..errors import RunError
    from ..telemetry.progress import listeners
    from .rehearse import rehearse as play

    _ready()
    given, keys = words(ctx)
    asked = experiment(given or ["pfedafm"], keys)
    watching: tuple[Listener, ...] = listeners("rehearsal", asked.parameters["rounds"], quiet)
    out = out or free_folder("rehearsal")
    try:
        done = play(asked, names_of(sites), out, watching, keep_alive=not per_message)
    except KeyboardInterrupt:
        raise StoppedError(f"interrupted: all parts are stopped; delete {out} and rehearse again") from None
    if as_json:
        print(json.dumps(done.as_json()))
    elif done.identical:
        print(f"identical: {done.deployed}, {done.seconds_per_round:.1f} s a round, {done.folder}")
    if not done.identical:
        raise RunError(f"the deployment ended in {done.deployed}, the engine in process in {done.in_process}")


@contextlib.contextmanager
def _until_stopped() -> Iterator[None]:
    """A service that its owner or the system stops has done what it was to do: exit code 0."""
    try:
        yield
    except KeyboardInterrupt:
        print("unalike: stopped", file=sys.stderr)


def _ready() -> None:
    """The extra is there; what the parts say goes to standard error; a signal to end us ends what we have started."""
    from .processes import interrupted_by_signals

    require_extra("flower", "flwr", "cryptography")
    interrupted_by_signals()
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.INFO)
    logging.getLogger("httpx").setLevel(logging.WARNING)
