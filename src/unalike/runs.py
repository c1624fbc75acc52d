"""Run folders: made before a run, filled by it, read after it."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from . import config, models, multimodal, pretrained
from .algorithms import ALGORITHMS, build, find, parameters_of
from .config import Experiment
from .data import fleet
from .data.federation import WITHOUT, Federation, federation, with_shared
from .data.partition import Partition
from .data.sources import located
from .engines.checkpoint import Checkpoints
from .engines.loop import Plan
from .errors import InputError
from .files import write_atomically, write_json
from .plugins import absolute, fingerprint, label, require_extra
from .protocol import Algorithm
from .summary import summarise
from .telemetry import events

FEDERATION_KEYS = tuple(inspect.signature(federation).parameters)
"""The keys of an experiment that say who takes part; all others are the method's and the engine's."""
EXPERIMENT, MANIFEST, SUMMARY, EVENTS = "experiment.toml", "manifest.json", "summary.json", "events.jsonl"
LIBRARIES = ("unalike", "torch", "numpy", "scikit-learn")
"""Those whose versions a run is written down with."""
BESIDE = {"text": ("transformers", "peft", "tokenizers", "rouge-score"), "vqa": ("transformers", "tokenizers")}
"""Kind of data to those that runs on them need as well."""
FLEET = "fleet.csv"
"""The budgets of a federation made by hand."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """An experiment whose every input has been checked: data read, models built, parameters resolved."""

    experiment: Experiment
    federation: Federation
    algorithm: Algorithm[Any, Any, Any]
    by_hand: bool = False
    """Whether the federation was given in Python, so that the experiment's keys do not lead to it."""

    @property
    def parameters(self) -> dict[str, Any]:
        """The method's own parameters as it has them."""
        return parameters_of(self.algorithm, self.experiment.parameters)

    @property
    def simulated(self) -> dict[str, str]:
        """Which shift of the clients' images is simulated, as run folders name it; a server without rows was told."""
        asked = self.experiment.shift
        return self.federation.simulated or ({"simulated_shift": asked} if asked else {})

    def plan(self, folder: Path, listeners: tuple[events.Listener, ...] = ()) -> Plan:
        e = self.experiment
        return Plan(
            algorithm=self.algorithm,
            method=e.method,
            parameters=self.parameters,
            federation=self.federation,
            folder=folder,
            seed=e.seed,
            eval_every=e.eval_every,
            eval_clients=e.eval_clients,
            forgetting=e.forgetting,
            scopes=e.elsewhere,
            device=e.device,
            store_budget=e.store_budget * 2**20,
            check_memory=e.check_memory,
            listeners=listeners,
        )


def prepare(experiment: Experiment, given: Federation | None = None, by_hand: bool = True) -> Prepared:
    """Check everything that can be wrong before anything is written or started, and fill in what was left open.

    Args:
        given: the federation; None loads the one that the experiment's keys describe.
        by_hand: whether `given` was made in Python; False says that it is what the experiment's keys lead to.

    Raises:
        InputError: data, partition, model, device or method do not fit.
    """
    check_device(experiment.device)
    found = given or load_federation(experiment)
    require_alike([experiment], found)
    require_speech(experiment, found)
    own = {info.tier: found.models[info.tier] for info in found.clients}
    found, shared = with_shared(found, experiment.parameters["shared_model"] or models.smallest(own))
    parameters = {**experiment.parameters, "shared_model": shared}
    asked = build(experiment.method, parameters, models=found.models, task=found.task)
    algorithm = asked.settle(found.clients)
    algorithm.require(found.clients)
    require_measurable(experiment, found)
    settled = {n: v for n, v in parameters_of(algorithm, parameters).items() if v != parameters[n]}
    cores = os.cpu_count() or 1
    if experiment.engine == "flower":
        require_extra("flower", "flwr")
    engine = experiment.engine or ("processes" if cores > 1 and experiment.device == "cpu" else "serial")
    workers = experiment.workers or min(cores, 8, len(found.clients))
    drawn = found.partition.scheme != "site" and not found.partition.scheme.startswith("file:")
    update = {
        "clients": len(found.partition) if drawn else None,
        "models": tuple(map(absolute, experiment.models)) or models.DEFAULTS.get(found.source.kind, ()),
        "model_map": {client: absolute(model) for client, model in experiment.model_map.items()},
        **(_as_given(found) if given and by_hand else {}),
        "engine": engine,
        "workers": workers if engine == "processes" else 1,
        "parameters": {**experiment.parameters, "shared_model": found.models[shared].name, **settled},
    }
    return Prepared(experiment.model_copy(update=update), found, algorithm, by_hand=given is not None and by_hand)


def require_alike(experiments: Sequence[Experiment], found: Federation) -> None:
    """Raise `InputError` naming methods and clients where methods of one architecture meet clients of several.

    A method is content when `shared_model` says which architecture all clients are to train.
    """
    tiers = dict.fromkeys(info.tier for info in found.clients)
    needy = [e.method for e in experiments if find(e.method).equal_architectures and not e.parameters["shared_model"]]
    if len(tiers) < 2 or not needy:
        return
    who = [f"{tier} (client {first_and_more([c.id for c in found.clients if c.tier == tier])})" for tier in tiers]
    raise InputError(
        f"{', '.join(dict.fromkeys(needy))}: {'these methods need' if len(set(needy)) > 1 else 'this method needs'} "
        f"equal architectures, but the clients have {', '.join(who)}: give --shared-model {next(reversed(tiers))} for "
        f"all clients to train that one, or --models {next(reversed(tiers))}"
    )


def require_speech(experiment: Experiment, found: Federation) -> None:
    """Raise `InputError` where texts, or questions about images, meet a method for other data, or it meets others."""
    method, kind = find(experiment.method), found.source.kind
    asked = {"text": ("speaks", "texts"), "vqa": ("sees", "questions about images")}.get(kind)
    if asked and not getattr(method, asked[0], False):
        able = ", ".join(name for name, other in ALGORITHMS.items() if getattr(other, asked[0], False))
        raise InputError(
            f"{label(experiment.method)} trains networks on rows of numbers, and {found.source.name} holds {asked[1]}: "
            f"take {able}"
        )
    if kind != "vqa" and getattr(method, "sees", False):
        raise InputError(
            f"{label(experiment.method)} answers questions about images; {found.source.name} holds {kind}s"
        )


def require_measurable(experiment: Experiment, found: Federation) -> None:
    """Raise `InputError` where forgetting, or scores on others' rows, are to be measured and cannot be."""
    _require_scopes(experiment, found)
    if not experiment.forgetting:
        return
    if not find(experiment.method).global_model:
        raise InputError(
            f"forgetting = true: {label(experiment.method)} has no global model that is whole, only clients' own, so "
            "there is none that could forget: leave it out, or take a method such as fedavg"
        )
    if experiment.engine == "flower":
        raise InputError(
            "forgetting = true: over Flower's network it is not measured, as it takes counts that stay at the sites: "
            "take --engine serial or processes"
        )
    if len(found.clients) < 2:
        raise InputError("forgetting = true: a single client has no others whose rows could be forgotten")


def _require_scopes(experiment: Experiment, found: Federation) -> None:
    elsewhere, asked = experiment.elsewhere, f"--evaluate {','.join(experiment.evaluate)}"
    if elsewhere and experiment.engine == "flower":
        raise InputError(f"{asked}: a site has its own rows only: over Flower's network evaluate own")
    if "unseen" in elsewhere and not found.unseen:
        raise InputError(f"{asked}: all clients take part, none is unseen: keep some out with --unseen 2")
    if {*WITHOUT} & {*elsewhere} and found.source.kind != "vqa":
        raise InputError(f"{asked}: {found.source.name} is a {found.source.kind}, and has neither images nor questions")
    if {"others", "all"} & {*elsewhere} and len(found.clients) < 2:
        raise InputError(f"{asked}: a single client has no others: give --clients 2 or more")


def first_and_more(ids: Sequence[int]) -> str:
    """The first four numbers of a list, and that there are more."""
    return ", ".join(map(str, ids[:4])) + (", ..." if len(ids) > 4 else "")


def _as_given(found: Federation) -> dict[str, Any]:
    """What an experiment must say of a federation made by hand, so that reopening builds the same one."""
    return {
        "data": found.source.name,
        "rows": None,
        "unseen": len(found.unseen),
        **found.keys,
        "partition": found.partition.scheme,
        "models": tuple(found.models[info.tier].name for info in found.clients),
        "model_map": {},
        "feature_width": found.models[found.clients[0].tier].features,
        "fleet": None,
        "modalities": ",".join(f"{c.id}:{'+'.join(c.modalities)}" for c in found.clients if c.modalities) or None,
    }


def load_federation(experiment: Experiment, partition: Partition | None = None) -> Federation:
    """The federation an experiment asks for, or the same data and models with a partition already drawn."""
    asked = {key: getattr(experiment, key) for key in FEDERATION_KEYS if key != "partition"}
    if partition:
        asked |= {"rows": None, "shift": None}  # which the partition has
    return federation(**asked, partition=partition or experiment.partition)


def check_device(name: str) -> None:
    """Raise `InputError` unless torch can compute on the device."""
    try:
        torch.zeros(1, device=name)
    except Exception as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"--device {name} cannot be used here: {reason}") from None


def create(folder: Path, prepared: Prepared) -> None:
    """Make a run folder that says what will be run; an existing one is refused and left as it is."""
    require_free(folder)
    try:
        _fill(folder, prepared)
    except FileExistsError:
        raise InputError(f"{folder} has just been made by another run: choose another --out") from None
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from error


def require_free(folder: Path) -> None:
    """Raise `InputError` unless `folder` is still to be made, or empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder} exists already: choose another --out, or continue it with: unalike resume {folder}")


def _fill(folder: Path, prepared: Prepared) -> None:
    folder.mkdir(parents=True, exist_ok=folder.exists())  # of two runs that start at once only one makes the folder
    experiment, found = prepared.experiment, prepared.federation
    found.partition.save(folder / "partition.npz")
    write_json(folder / "partition.json", found.describe())
    write_json(folder / MANIFEST, manifest(prepared))
    beside = {"partition": "file:partition.npz"} if prepared.by_hand else {}
    if prepared.by_hand and fleet.digest(found.budgets):
        write_atomically(folder / FLEET, fleet.to_csv(found.budgets).encode())
        beside["fleet"] = FLEET
    text = "# The resolved experiment. Repeat it with: unalike run experiment.toml\n" + config.to_toml(
        absolute_paths(config.flat(experiment)) | beside
    )
    write_atomically(folder / EXPERIMENT, text.encode())


def absolute_paths(keys: dict[str, Any]) -> dict[str, Any]:
    """The same keys with the paths of existing files made absolute, so that they hold from any folder."""
    found = dict(keys)
    if "data" in found:
        found["data"] = located(found["data"], Path.cwd())
    if "data_path" in found and Path(found["data_path"]).exists():
        found["data_path"] = str(Path(found["data_path"]).resolve())
    if str(found.get("partition", "")).startswith("file:"):
        found["partition"] = f"file:{Path(found['partition'][5:]).resolve()}"
    if fleet.is_file(found.get("fleet", "")):
        found["fleet"] = str(Path(found["fleet"]).resolve())
    return found


def manifest(prepared: Prepared) -> dict[str, Any]:
    """Where a run comes from: versions, seed, data, partition, machine, commit."""
    found = prepared.federation
    return {
        "versions": {name: metadata.version(name) for name in (*LIBRARIES, *BESIDE.get(found.source.kind, ()))}
        | {"python": platform.python_version()},
        "seed": prepared.experiment.seed,
        "data": {"name": found.source.name, "fingerprint": found.source.fingerprint, "rows": len(found.source.y)},
        "partition_hash": found.partition.hash,
        **prepared.simulated,
        **({"fleet_hash": budgets} if (budgets := fleet.digest(found.budgets)) else {}),
        "code_sha256": code_fingerprints(prepared),
        "machine": {
            "system": platform.system(),
            "processor": processor(),
            "cores": os.cpu_count(),
            "device": prepared.experiment.device,
        },
        "commit": commit(),
    }


def processor() -> str:
    """The processor's name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The commit of the checkout this package runs from, None when it is installed elsewhere."""
    here = Path(__file__).resolve().parent
    try:
        asked = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if (here.parents[1] / ".git").exists() else None


def open_run(folder: Path) -> Experiment:
    """The experiment of an existing run folder; `InputError` when it is none."""
    if not (folder / EXPERIMENT).is_file():
        raise InputError(f"{folder} is no run folder: it has no {EXPERIMENT}")
    return config.from_toml(folder / EXPERIMENT)


def reopen(folder: Path, given: Federation | None = None) -> Prepared:
    """An existing run with its data, or with the federation it was `given`.

    Raises:
        InputError: data, partition or the user's code are no longer what they were when the run was started.
    """
    experiment = open_run(folder)
    found = given or load_federation(experiment, Partition.load(folder / "partition.npz"))
    prepared = prepare(experiment, found, by_hand=given is not None)
    try:
        known = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST} is missing or damaged: {error}") from None
    if found.source.fingerprint != known["data"]["fingerprint"]:
        raise InputError(f"{folder} was run on other data: {experiment.data} has changed since then")
    if found.partition.hash != known["partition_hash"]:
        raise InputError(f"the partition is not the one that {folder} was started with")
    if given is None and fleet.digest(found.budgets) != known.get("fleet_hash", ""):
        raise InputError(f"the budgets are not those that {folder} was started with: {experiment.fleet} has changed")
    for name, digest in code_fingerprints(prepared).items():
        if known["code_sha256"].get(name) != digest:
            raise InputError(f"{name} has changed since {folder} was started: run it anew")
    return prepared


def code_fingerprints(prepared: Prepared) -> dict[str, str]:
    """sha256 of each file of the user's, and of each model of others, that the run is made with, by its name."""
    experiment, specs = prepared.experiment, prepared.federation.models.values()
    names = [experiment.method, *(spec.name for spec in specs), experiment.parameters.get("encoder", "")]
    known = (fingerprint, pretrained.fingerprint, multimodal.fingerprint)
    found = {label(name): next(filter(None, (of(name) for of in known)), None) for name in names}
    return {name: digest for name, digest in found.items() if digest}


def finish(folder: Path, prepared: Prepared) -> dict[str, Any]:
    """Write summary.json from the events and the last checkpoint, and return it."""
    index = Checkpoints(folder / "checkpoint").read()
    experiment = prepared.experiment
    summary = {
        "algorithm": experiment.method,
        "paper": find(experiment.method).paper,
        "data": experiment.data,
        "seed": experiment.seed,
        "clients": len(prepared.federation.clients),
        "partition": prepared.federation.partition.scheme,
        "partition_hash": prepared.federation.partition.hash,
        **prepared.simulated,
        **summarise(events.read(folder / EVENTS), index.best_round),
        "state_sha256": index.state_sha256(),
        "parameters": experiment.parameters,
    }
    write_json(folder / SUMMARY, summary)
    return summary


class InUseError(InputError):
    """Another process is writing the folder."""


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a run folder for this process; `InUseError` when another one is writing it."""
    if sys.platform == "win32":
        yield
        return
    import fcntl

    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InUseError(f"{folder} is being written by another process") from None
        yield
