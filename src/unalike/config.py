"""An experiment as it is written down: one flat list of keys, the same in TOML, on the command line and in Python."""

from __future__ import annotations

import dataclasses
import difflib
import json
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model, field_validator

from .algorithms import find
from .data.federation import Scope
from .data.fleet import is_file
from .data.sources import located as located_data
from .errors import InputError
from .impressions import settings as impressions
from .impressions.wrapper import require_support
from .plugins import absolute
from .protocol import Algorithm

SET_LATER = ("models", "task")
"""Fields of a method that its federation fills in."""


def _read_split(value: Any) -> Any:
    parts = value.replace(",", "/").split("/") if isinstance(value, str) else value
    try:
        shares = [float(part) for part in parts]
    except (TypeError, ValueError):
        shares = []
    if len(shares) != 3 or not all(0 < share < math.inf for share in shares):
        raise ValueError("three positive shares such as 60/20/20")
    return tuple(share / sum(shares) for share in shares) if abs(sum(shares) - 1) > 1e-9 else tuple(shares)


Split = Annotated[tuple[float, float, float], BeforeValidator(_read_split)]
"""Shares of training, validation and test rows that add up to 1; read from 60/20/20 as well."""


def _read_scopes(value: Any) -> Any:
    parts = [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not parts or not {*parts} <= {*get_args(Scope)}:
        raise ValueError(f"one or more of {', '.join(get_args(Scope))}, separated by commas")
    return tuple(dict.fromkeys(parts))


Scopes = Annotated[tuple[Scope, ...], BeforeValidator(_read_scopes)]
"""Which test rows models are scored on; read from own,all as well. Their own ones always are."""


class Experiment(BaseModel):
    """Everything but the method's own parameters, which stand in `parameters`."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    method: str = Field("pfedafm", description="a name of `unalike methods`, file.py:Class or package.module:Class")
    seed: int = Field(0, description="seeds the partition, the initial models and every draw")

    data: str = Field("digits", description="a name of `unalike data`, .npz, .csv, folder of images; several: A+B")
    data_path: str | None = Field(None, description="folder with the files of a named data set")
    label: str | None = Field(None, description="label column of a CSV file [label]")
    site_column: str | None = Field(None, description="column that names each row's site")
    group_column: str | None = Field(None, description="column whose rows stay in one part [group, groups, slide]")
    impute: Literal["mean", "median", "zero"] | None = Field(None, description="how missing values are filled")
    image_size: int | None = Field(None, ge=4, le=1024, description="side in pixels of a folder's images")
    rows: int | None = Field(None, ge=2, description="draw so many rows, beside an official test set [all]")

    clients: int | None = Field(None, ge=1, description="number of clients [10]")
    partition: str = Field(
        "dirichlet:0.5",
        description="iid, dirichlet:ALPHA, pathological:K, quantity:ALPHA, site, site:iid, file:PATH",
    )
    split: Split = Field((0.6, 0.2, 0.2), description="train/validation/test shares, 60/20/20")
    min_per_client: int = Field(10, ge=0, description="least number of rows of a client")
    unseen: int = Field(0, ge=0, description="so many clients, the last ones, take no part: for --evaluate unseen")

    shift: str | None = Field(
        None, description="simulated domain shift of images, stain:0.8,blur:0.5 or mixed:0.7 [none]"
    )

    models: tuple[str, ...] = Field((), description="models that clients take in turn [five sizes for the data]")
    model_map: dict[int, str] = Field({}, description="client to model where it is not its turn's, 0=cnn-1,3=cnn-5")
    feature_width: int | None = Field(None, ge=1, description="pool all features to this width")
    fleet: str | None = Field(
        None, description="memory budgets: 2GiB, uniform:20MiB:180MiB, a .csv or .toml file of clients [none]"
    )
    modalities: str | None = Field(
        None, description="what clients have of images and questions, 3:text,4:image; others have both [both]"
    )
    check_memory: bool = Field(True, description="stop at a client that exceeds its budget")

    engine: Literal["serial", "processes", "flower"] | None = Field(
        None, description="serial, processes, or flower's messages in one process [processes where there are two cores]"
    )
    workers: int | None = Field(None, ge=1, le=256, description="processes of the engine [one a core, at most 8]")
    device: str = Field("cpu", description="cpu, cuda, cuda:1")
    eval_every: int = Field(1, ge=1, description="rounds between evaluations")
    eval_clients: int | None = Field(None, ge=1, description="evaluate a fixed sample of so many clients [all]")
    evaluate: Scopes = Field(
        ("own",),
        description="whose test rows each model is scored on: own, others, all (own and others), unseen; no-image, "
        "no-text: its own without them",
    )
    forgetting: bool = Field(
        False, description="measure what each client's training costs the global model on all others' rows"
    )
    store_budget: int = Field(512, ge=0, description="MiB of client states kept in memory")

    parameters: dict[str, Any] = Field({}, description="the method's own")

    @property
    def elsewhere(self) -> tuple[Scope, ...]:
        """The scopes of `evaluate` in which other rows are predicted than a client's own as they are."""
        return tuple(scope for scope in self.evaluate if scope != "own")

    @field_validator("models", mode="before")
    @classmethod
    def _read_models(cls, value: Any) -> Any:
        return tuple(split_outside_brackets(value)) if isinstance(value, str) else value

    @field_validator("fleet", mode="before")
    @classmethod
    def _read_fleet(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("model_map", mode="before")
    @classmethod
    def _read_map(cls, value: Any) -> Any:
        return read_pairs(value) if isinstance(value, str) else value


GENERAL = tuple(name for name in Experiment.model_fields if name != "parameters")


def split_outside_brackets(text: str) -> list[str]:
    """Parts of a comma-separated list; commas within parentheses do not separate."""
    parts, depth = [""], 0
    for letter in text:
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]


def read_pairs(text: str) -> dict[str, str]:
    """Client to model of "0=cnn-1,3=cnn-5"."""
    pairs = [part.partition("=") for part in split_outside_brackets(text)]
    return {client.strip(): model.strip() for client, _, model in pairs}


def resolve(keys: Mapping[str, Any], where: str = "") -> Experiment:
    """The experiment that `keys` describe, general keys and the method's parameters mixed.

    Args:
        keys: values as Python or as text; a path may be a `Path`.
        where: what the keys come from, for the error message.

    Raises:
        InputError: an unknown key, or a value out of its range.
    """
    method = keys.get("method", "pfedafm")
    if not isinstance(method, str):
        raise InputError(f"{where}method = {method!r} is no name: give a name of `unalike methods` or file.py:Class")
    kind = find(method)
    known = parameters_of(kind)
    keys = {**_preset(kind, method, keys.get("preset"), where), **{k: v for k, v in keys.items() if k != "preset"}}
    own = {k: v for k, v in keys.items() if k in known}
    general = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in keys.items() if k in GENERAL}
    for key in keys:
        if key not in own and key not in general:
            raise unknown_key(key, [*known, *GENERAL], f"{method} has {', '.join(known)}", where)
    try:
        parameters = _parameters_model(kind)(**own).model_dump()
        parameters["impressions"] = _impressions(kind, method, parameters["impressions"])
        return Experiment(**{**general, "method": absolute(method)}, parameters=parameters)
    except ValidationError as error:
        raise InputError(f"{where}{first_line(error)}") from None


def _impressions(kind: type[Algorithm[Any, Any, Any]], method: str, text: str) -> str:
    """The settings of impressions as they are written down: those that are given, as the values that they stand for."""
    if not text:
        return ""
    require_support(kind, method)
    start, given = impressions.options(text)
    found = _parameters_model(impressions.Impressions)(**given).model_dump()
    return impressions.written(start, {name: found[name] for name in given})


def unknown_key(key: str, known: Iterable[str], otherwise: str, where: str = "") -> InputError:
    """The error that names the known key nearest to `key`, or says what there is `otherwise`."""
    close = difflib.get_close_matches(key, list(known), n=1)
    return InputError(f"{where}unknown key {key!r}: {f'did you mean {close[0]}?' if close else otherwise}")


def _preset(kind: type[Algorithm[Any, Any, Any]], method: str, name: Any, where: str) -> Mapping[str, Any]:
    if name is None:
        return {}
    if name not in kind.presets:
        raise InputError(f"{where}{method} has no preset {name!r}; it has {', '.join(kind.presets) or 'none'}")
    return kind.presets[name]


def first_line(error: ValidationError) -> str:
    """What is wrong first, as `key = value: what would be right`."""
    found = error.errors()[0]
    key = ".".join(str(part) for part in found["loc"])
    if found["type"] == "missing":
        return f"{key} is missing: the method has no default for it"
    message = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    return f"{key} = {found['input']!r} is refused: it should be {message}"


def parameters_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """A method's own parameters by name, in the order in which they are declared."""
    return {f.name: f for f in dataclasses.fields(kind) if f.name not in SET_LATER}


def parameter_types(kind: type) -> dict[str, Any]:
    """Name to annotated type of a method's parameters."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in parameters_of(kind)}


def _parameters_model(kind: type) -> type[BaseModel]:
    types = parameter_types(kind)
    fields: dict[str, Any] = {
        name: (types[name], Field(default_factory=f.default_factory))
        if f.default_factory is not dataclasses.MISSING
        else (types[name], ... if f.default is dataclasses.MISSING else f.default)
        for name, f in parameters_of(kind).items()
    }
    model: type[BaseModel] = create_model(
        kind.__name__, __config__=ConfigDict(extra="forbid", allow_inf_nan=False, protected_namespaces=()), **fields
    )
    return model


def flat(experiment: Experiment) -> dict[str, Any]:
    """All keys in one mapping, as `resolve` takes them; what is None is left out."""
    general = experiment.model_dump(exclude={"parameters"})
    return {k: v for k, v in (general | experiment.parameters).items() if v is not None}


def to_toml(keys: Mapping[str, Any]) -> str:
    """A flat mapping as TOML."""
    return "".join(f"{key} = {_toml(value)}\n" for key, value in keys.items())


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(k))} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # which JSON leaves as it is
    return repr(value)


def read_toml(path: Path) -> dict[str, Any]:
    """The keys of an experiment file; relative paths in it count from its folder."""
    try:
        keys = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise InputError(f"there is no experiment file {path}") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not an experiment file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not TOML: {error}") from None
    return located(keys, path.parent)


def located(keys: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The keys with relative paths counted from `folder`."""
    found = dict(keys)
    if "data" in found:
        found["data"] = located_data(str(found["data"]), folder)
    if "data_path" in found and (folder / str(found["data_path"])).exists():
        found["data_path"] = str(folder / str(found["data_path"]))
    if str(found.get("partition", "")).startswith("file:"):
        found["partition"] = f"file:{folder / found['partition'].removeprefix('file:')}"
    if is_file(str(found.get("fleet", ""))):
        found["fleet"] = str(folder / found["fleet"])
    for key in ("method", "shared_model", "encoder"):
        if isinstance(found.get(key), str):
            found[key] = absolute(found[key], folder)
    if isinstance(found.get("models"), str):
        found["models"] = split_outside_brackets(found["models"])
    if isinstance(found.get("models"), list):
        found["models"] = [absolute(str(name), folder) for name in found["models"]]
    if isinstance(found.get("model_map"), str):
        found["model_map"] = read_pairs(found["model_map"])
    if isinstance(found.get("model_map"), dict):
        found["model_map"] = {client: absolute(str(name), folder) for client, name in found["model_map"].items()}
    return found


def from_toml(path: Path, overrides: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment in a file, with some keys replaced."""
    return resolve({**read_toml(path), **(overrides or {})}, f"{path}: ")


def describe_parameters(kind: type) -> Iterable[tuple[str, str, Any, str]]:
    """(name, type, default, what it is) of each of a method's parameters; texts are the docstrings below the fields."""
    types, texts = parameter_types(kind), _field_docstrings(kind)
    for name, f in parameters_of(kind).items():
        default = f.default if f.default is not dataclasses.MISSING else None
        yield name, _type_name(types[name]), default, texts.get(name, "")


def _type_name(hint: Any) -> str:
    base = getattr(hint, "__origin__", hint)
    if base is Literal:
        return " | ".join(map(str, hint.__args__))
    bounds = " ".join(_bound(m) for m in getattr(hint, "__metadata__", ()))
    return f"{getattr(base, '__name__', str(base))} {bounds}".strip()


def _bound(mark: Any) -> str:
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return " ".join(f"{sign} {getattr(mark, name)}" for name, sign in signs.items() if hasattr(mark, name))


def _field_docstrings(kind: type) -> dict[str, str]:
    """Text that follows a field in the source of the class and of its bases, as Sphinx and pydantic read it."""
    import ast
    import inspect
    import textwrap

    texts: dict[str, str] = {}
    for cls in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(cls):
            continue
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        except (OSError, SyntaxError):
            continue
        assert isinstance(body, ast.ClassDef)
        for node, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
                texts[node.target.id] = str(getattr(after.value, "value", "")).strip().split("\n")[0]
    return texts
