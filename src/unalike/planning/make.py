"""Plans of experiments: their models and clients, or a bare model without data."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import config, models, runs
from ..algorithms import ALGORITHMS, find
from ..config import Experiment
from ..data import fleet
from ..data.federation import with_shared
from ..errors import InputError
from ..memory import needs
from ..memory.plan import Plan, Planned, Visits
from ..plugins import absolute, label
from ..protocol import ClientInfo, Spec
from ..rng import Key
from ..tasks import Classification

WITHOUT_DATA = ("method", "seed", "clients", "fleet")
"""The general keys that a plan of a bare model takes."""


@dataclass(frozen=True)
class Bare:
    """A model to be planned without data."""

    model: str
    input: tuple[int, ...]
    classes: int
    samples: int
    """Training rows of each client."""


def experiments(given: Sequence[str], keys: Mapping[str, Any], bare: Bare | None) -> list[Experiment]:
    """The experiment of each method, or that of a file; of several methods each gets the keys that it has.

    Raises:
        InputError: a key that none of them has, or one of data beside a bare model.
    """
    keys = _with_cuts(keys)
    for key in keys if bare else ():
        if key in config.GENERAL and key not in WITHOUT_DATA:
            raise InputError(f"--{key.replace('_', '-')} is of data, and --model plans without: leave one of them out")
    if given[0].endswith(".toml"):
        if len(given) > 1:
            raise InputError(f"unexpected argument {given[1]!r} after {given[0]}: plan one file, or methods")
        return [config.from_toml(Path(given[0]), keys)]
    known = {name: {*config.parameters_of(find(name)), *config.GENERAL, "preset"} for name in given}
    for key in keys:
        if not any(key in names for names in known.values()):
            if key == "cuts":
                raise InputError(f"{', '.join(given)}: nothing is cut into blocks here, leave --partition out")
            raise config.unknown_key(key, set().union(*known.values()), f"{', '.join(given)} have no such key")
    return [
        config.resolve({**{key: value for key, value in keys.items() if key in names}, "method": name})
        for name, names in known.items()
    ]


def _with_cuts(keys: Mapping[str, Any]) -> dict[str, Any]:
    """`partition` as "cuts" where it is one of a chain, and none of rows among clients."""
    found, said = dict(keys), str(keys.get("partition", ""))
    if said in ("paper", "auto") or said.replace(",", "").isdecimal():
        found["cuts"] = found.pop("partition")
    return found


def make(experiment: Experiment, bare: Bare | None = None) -> Plan:
    """The plan of an experiment, with its data's models and clients, or with those of a bare model.

    Raises:
        InputError: a method that does not describe itself, or what `run` would refuse, budgets too small excepted.
    """
    kind: Any = find(experiment.method)
    if not issubclass(kind, Planned):
        able = ", ".join(name for name, other in ALGORITHMS.items() if issubclass(other, Planned)) or "none"
        raise InputError(f"{experiment.method} does not say what its clients need; those that do: {able}")
    specs, shared, clients = _of_data(experiment) if bare is None else _of_bare(experiment, bare)
    task = Classification(specs[shared].classes)
    method = kind(**{**experiment.parameters, "shared_model": shared}, models=specs, task=task)
    full = needs.whole_peak(method.shared, task, method.optimiser(), method.batch_size)
    said = experiment.fleet and fleet.of_shares(experiment.fleet, needs.with_headroom(full))
    if said:
        budgets = fleet.budgets(said, len(clients), Key.root(experiment.seed) / "fleet")
        clients = [dataclasses.replace(info, memory=memory) for info, memory in zip(clients, budgets, strict=True)]
    settled = method.settle(clients)
    return Plan(
        method=label(experiment.method),
        spec=method.shared,
        parameters={name: getattr(settled, name) for name in config.parameters_of(kind)},
        full=full,
        stages=tuple(settled.plan()),
        fleet=said,
        budgets={info.id: info.memory for info in clients} if said else {},
        visits=Visits(
            batch_size=settled.batch_size,
            rounds=settled.rounds,
            fraction=settled.fraction,
            clients=len(clients),
            rows=sum(info.n for info in clients) / len(clients),
            epochs=settled.local_epochs,
        ),
    )


def _of_bare(experiment: Experiment, bare: Bare) -> tuple[Mapping[str, Spec], str, Sequence[ClientInfo]]:
    spec = Spec(absolute(bare.model), bare.input, bare.classes)
    models.check(spec)
    tier, n = label(spec.name), experiment.clients
    if n is None and experiment.fleet and fleet.is_file(experiment.fleet):
        n = len(fleet.read(Path(experiment.fleet)))
    return {tier: spec}, tier, [ClientInfo(k, tier, bare.samples) for k in range(n or 10)]


def _of_data(experiment: Experiment) -> tuple[Mapping[str, Spec], str, Sequence[ClientInfo]]:
    found = runs.load_federation(experiment.model_copy(update={"fleet": None}))
    runs.require_alike([experiment], found)
    own = {info.tier: found.models[info.tier] for info in found.clients}
    found, shared = with_shared(found, experiment.parameters["shared_model"] or models.smallest(own))
    return found.models, shared, found.clients
