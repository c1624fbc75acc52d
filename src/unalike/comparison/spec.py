"""What is compared: methods, seeds, what is tuned, and the settings all of it is repeated in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..algorithms import find
from ..config import GENERAL, located, parameters_of, read_toml, unknown_key
from ..errors import InputError
from ..files import with_tuples
from ..rng import Key
from .cells import folder_name
from .tuning import Point, field_name, points, read_axes

OWN_KEYS = ("title", "seeds", "reference", "rivals", "target", "tune", "trials", "light")
"""What a comparison may be given beside methods, the keys of an experiment, and [[regimes]] and [grid] in a file."""


@dataclass(frozen=True, kw_only=True)
class Regime:
    """One setting of the grid: keys that go before the common ones."""

    name: str
    keys: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison as it is written down; every value is one of JSON."""

    methods: Mapping[str, Mapping[str, Any]]
    """Label to "method" and the keys that are this one's alone."""
    common: Mapping[str, Any] = field(default_factory=dict)
    """Keys of an experiment, and parameters, for every method that has them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    reference: str = ""
    """The method that the differences are to; empty: the first one."""
    rivals: tuple[str, ...] = ()
    """Those the reference is judged against; empty: all the others."""
    target: float | None = None
    """Validation accuracy for "bytes until"; None: 95 % of what the reference reaches."""
    tune: Mapping[str, Any] = field(default_factory=dict)
    trials: int | None = None
    """Settings tried for each method; None: as many as the smallest grid has."""
    light: bool = False
    """Keep no models of finished runs: tables and pages stay, export does not work."""
    title: str = ""
    regimes: tuple[Regime, ...] = ()
    given: str = ""
    """The partition's hash of a federation made in Python, which these keys do not lead to."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("there is nothing to compare: name the methods, `unalike methods` lists them")
        try:
            json.dumps(self.to_json(), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"a comparison holds numbers, texts, lists and tables only: {error}") from None
        folders = [folder_name(label).casefold() for label in self.methods]
        for one in {name for name in folders if folders.count(name) > 1}:
            same = [label for label, name in zip(self.methods, folders, strict=True) if name == one]
            raise InputError(f"{', '.join(same)} would share the folder {one}-seed{self.seeds[0]}: rename one")
        whole = all(isinstance(seed, int) for seed in self.seeds)
        if not self.seeds or not whole or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"--seeds {','.join(map(str, self.seeds))} must be different whole numbers, such as 0,1,2")
        for role, named in (("reference", filter(None, [self.reference])), ("rival", self.rivals)):
            for label in named:
                if label not in self.methods:
                    raise InputError(f"the {role} {label} is not compared; compared are {', '.join(self.methods)}")
        if self.target is not None and not 0 < self.target <= 1:
            raise InputError(f"--target {self.target} is no accuracy: give a number in 0..1, such as 0.8")
        if self.trials is not None and (self.trials < 1 or not self.tune):
            raise InputError(f"--trials {self.trials}: give one or more, beside what is tuned (--tune lr=0.03|0.1)")
        names = [regime.name for regime in self.regimes]
        for name in {n for n in names if names.count(n) > 1}:
            raise InputError(f"two regimes are called {name!r}: give each a name of its own")
        self._require_known_keys()

    def _require_known_keys(self) -> None:
        known = {label: parameters_of(find(own["method"])) for label, own in self.methods.items()}
        everyones = {*GENERAL, "preset"}.union(*known.values()) - {"method", "seed"}
        for key in {**self.common, **{key: 0 for regime in self.regimes for key in regime.keys}}:
            if key == "seed":
                raise InputError("seed is one of --seeds 0,1,2 in a comparison")
            if key not in everyones:
                raise unknown_key(key, everyones, f"no method compared has it: {', '.join(self.methods)}")
        for label, own in self.methods.items():
            for key in own.keys() - {"method", "preset"} - known[label].keys():
                if key in GENERAL:
                    raise InputError(f"{label}: {key} is the same for all methods of a comparison: give it for all")
                raise InputError(f"{label}: unknown key {key!r}: it has {', '.join(known[label])}")

    @property
    def judged(self) -> str:
        """The method that the others are set against."""
        return self.reference or next(iter(self.methods))

    def keys(self, label: str, chosen: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """All keys of one method's runs but the seed.

        Forgetting is asked of the methods that have a global model, as a parameter is of those that have it.
        """
        own, whole = self.methods[label], {name for name, o in self.methods.items() if find(o["method"]).global_model}
        known = {*GENERAL, *parameters_of(find(own["method"])), "preset"}
        known -= {"forgetting"} if whole and label not in whole else set()
        common = {key: value for key, value in self.common.items() if key in known}
        return {**common, **own, **(chosen or {})}

    def points(self, key: Key) -> dict[str, list[Point]]:
        """What each method is tried with."""
        kinds = {label: find(own["method"]) for label, own in self.methods.items()}
        axes = read_axes(self.tune) if self.tune else {}
        found = points(kinds, axes, self.trials, key)
        for label, own in self.methods.items():
            for name in {*own, *(self.common.keys() & axes)} & set().union(*found[label]):
                raise InputError(f"{label}: {name} is both given and tuned: leave out one of them")
        return found

    def within(self, regime: Regime) -> Comparison:
        """The comparison in one of its settings."""
        return replace(self, common={**self.common, **regime.keys}, regimes=(), title=regime.name)

    def to_json(self) -> dict[str, Any]:
        """As it stands in comparison.json."""
        return asdict(self)

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> Comparison:
        """The inverse of `to_json`."""
        regimes = tuple(Regime(**regime) for regime in found["regimes"])
        return cls(**{**with_tuples(found), "regimes": regimes})


def compose(
    methods: Sequence[str] | Mapping[str, Mapping[str, Any]], keys: Mapping[str, Any], regimes: Sequence[Regime] = ()
) -> Comparison:
    """A comparison from what was typed, in a file, on the command line or in Python; paths become absolute.

    Args:
        methods: names, or label to the method's own keys.
        keys: everything else; "fedprox.mu" is a key of that method only.
        regimes: the settings that all of it is repeated in.
    """
    given = {field_name(key): value for key, value in keys.items()}
    named = methods if isinstance(methods, Mapping) else _labelled(methods)
    own = {label: {"method": label, **values} for label, values in named.items()}
    for key in [k for k in given if "." in k]:
        label, _, name = key.rpartition(".")
        if label not in own:
            raise InputError(f"--{key}: {label} is not compared; compared are {', '.join(own)}")
        if name == "method":
            raise InputError(f"--{key}: compare that method itself")
        own[label][name] = given.pop(key)
    special = {key: given.pop(key) for key in OWN_KEYS if key in given}
    here = Path.cwd()
    return Comparison(
        methods={label: located({**values, "method": str(values["method"])}, here) for label, values in own.items()},
        common=located(given, here),
        regimes=tuple(replace(regime, keys=located(regime.keys, here)) for regime in regimes),
        **_special(special),
    )


def _labelled(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for name in [names] if isinstance(names, str) else names:
        label = label_of(name)
        if label in found:
            raise InputError(f"two methods are called {label}: [methods.LABEL] in a file gives each a label of its own")
        found[label] = {"method": name}
    return found


def _special(given: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, plain in (("reference", str), ("title", str), ("light", bool)):
        if key in given:
            if not isinstance(given[key], plain):
                raise InputError(f"{key} = {given[key]!r} is refused: it should be {_KINDS[plain]}")
            found[key] = given[key]
    if "seeds" in given:
        found["seeds"] = tuple(_numbers("seeds", given["seeds"], int))
    for key, kind in (("trials", int), ("target", float)):
        if key in given:
            found[key], *more = _numbers(key, given[key], kind)
            if more:
                raise InputError(f"--{key} {given[key]} cannot be read: give one number")
    if "rivals" in given:
        rivals = given["rivals"]
        found["rivals"] = tuple(rivals.split(",") if isinstance(rivals, str) else _listed("rivals", rivals))
    if "tune" in given:
        axes = read_axes(given["tune"])  # read here for its errors; kept as given, which JSON can hold
        tune = given["tune"]
        found["tune"] = tune if isinstance(tune, Mapping) else {n: _as_text(a) for n, a in axes.items()}
    return found


def _as_text(axis: Any) -> Any:
    return list(axis) if isinstance(axis, tuple) else f"{axis.low}..{axis.high}"


_KINDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "whole numbers, such as 0,1,2",
    float: "in 0..1",
}


def _numbers(name: str, given: Any, kind: type) -> list[Any]:
    """One or more numbers of one kind."""
    parts = given.split(",") if isinstance(given, str) else given if isinstance(given, Sequence) else [given]
    try:
        found = [kind(part) for part in parts]
        if found and all(isinstance(p, str) or (p == f and p is not True) for p, f in zip(parts, found, strict=True)):
            return found
    except (TypeError, ValueError):
        pass
    raise InputError(f"--{name} {given} cannot be read: it should be {_KINDS[kind]}")


def label_of(name: str) -> str:
    """What a method is called in tables and folders: its name, or the name of the user's class."""
    return name.rpartition(":")[2].lower() if ":" in name else name


def from_toml(path: Path, overrides: Mapping[str, Any]) -> Comparison:
    """The comparison in a file, with some keys replaced.

    `methods` is a list, or a table of tables with each method's own keys; [[regimes]] lists settings by name, and
    [grid] multiplies every one of them by all combinations of its lists.
    """
    keys = {**read_toml(path), **overrides}
    named, listed, grid = keys.pop("methods", None), keys.pop("regimes", []), keys.pop("grid", {})
    try:
        if not named or not (_tables(named) or (isinstance(named, list) and all(isinstance(n, str) for n in named))):
            raise InputError('methods = ["pfedafm", "standalone"], or a table [methods.NAME] for each, is missing')
        if not (isinstance(listed, list) and all(isinstance(one, dict) for one in listed) and isinstance(grid, dict)):
            raise InputError("settings are tables: write [[regimes]] above each, and [grid] once")
        _require_effect(overrides, named, listed, grid)
        own = _labelled(named) if isinstance(named, list) else {n: {"method": n, **given} for n, given in named.items()}
        methods = {label: located(given, path.parent) for label, given in own.items()}
        regimes = [
            _regime(one, dict(zip(grid, values, strict=True)), path.parent)
            for one in listed or [{}]
            for values in _product(grid)
        ]
        return compose(methods, keys, regimes if listed or grid else ())
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _require_effect(overrides: Mapping[str, Any], named: Any, listed: Any, grid: Any) -> None:
    """Refuse an option that what stands in the file's tables would go before."""
    for key in map(field_name, overrides):
        if key in grid or any(key in one for one in listed):
            raise InputError(f"--{key} has no effect: the file's regimes say what it is")
        for label in [label for label, own in named.items() if key in own] if isinstance(named, dict) else []:
            raise InputError(f"--{key} has no effect on {label}, for which the file has its own: --{label}.{key}")


def _tables(found: Any) -> bool:
    return isinstance(found, dict) and all(isinstance(one, dict) for one in found.values())


def _product(grid: Mapping[str, Any]) -> Iterable[tuple[Any, ...]]:
    return itertools.product(*(_listed(name, values) for name, values in grid.items()))


def _listed(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list | tuple) or not values:
        raise InputError(f"{name} = {values!r} is refused: it should be a list of one or more")
    return list(values)


def _regime(listed: Mapping[str, Any], varied: Mapping[str, Any], folder: Path) -> Regime:
    """A setting by its name and what the grid adds, or by all of its keys; its paths count from `folder`."""
    keys = {**{k: v for k, v in listed.items() if k != "name"}, **varied}
    told = varied if "name" in listed else keys
    named = [str(listed["name"])] if "name" in listed else []
    return Regime(name=", ".join([*named, *(_told(*pair) for pair in told.items())]), keys=located(keys, folder))


def _told(name: str, value: Any) -> str:
    if name in ("data", "partition"):
        return str(value)
    return f"{value} {name}" if name in ("clients", "rows", "rounds") else f"{name} {value}"


def read(folder: Path, name: str) -> Comparison:
    """The comparison that was started in `folder`."""
    try:
        return Comparison.from_json(json.loads((folder / name).read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / name} is damaged: {error}") from None
