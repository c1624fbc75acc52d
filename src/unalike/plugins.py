"""Code that may be there: users' own by name ("package.module:object", "path/to/file.py:object"), and extras."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from .errors import InputError

LANGUAGE = "lm:"
"""What the name of a language model begins with; a folder, a file or an id of the hub follows."""
VISION_LANGUAGE = "vl:"
"""What the name of a model of images and questions begins with; a folder or an id of the hub follows."""
FOUNDATIONS = (LANGUAGE, VISION_LANGUAGE)
"""What names of models begin with that others have trained."""


def load_object(name: str) -> Any:
    """The object that `name` names; `InputError` when module, file or attribute is missing or fails to import."""
    place, _, attribute = name.rpartition(":")
    module = _load_file(Path(place)) if place.endswith(".py") else _load_module(place)
    try:
        return getattr(module, attribute)
    except AttributeError:
        public = ", ".join(sorted(n for n in vars(module) if not n.startswith("_"))[:8])
        raise InputError(f"{place} has no {attribute!r}; it has {public}") from None


def require_extra(extra: str, *modules: str) -> None:
    """Raise `InputError` that says how to install an extra of unalike, unless all its modules are there."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise InputError(f"{module} is not installed: pip install 'unalike[{extra}]'")


def absolute(name: str, folder: Path = Path()) -> str:
    """The same name with the path of a file or of a language model's folder, counted from `folder`, made absolute."""
    head, bracket, arguments = name.partition("(")
    if head.startswith(FOUNDATIONS):
        mark, _, model = head.partition(":")
        path = folder / Path(model).expanduser()
        return f"{mark}:{path.resolve()}{bracket}{arguments}" if path.exists() else name
    place, _, attribute = head.rpartition(":")
    return f"{(folder / place).resolve()}:{attribute}{bracket}{arguments}" if place.endswith(".py") else name


def label(name: str) -> str:
    """The name without the folder of its file: the same on every machine."""
    head, bracket, arguments = name.partition("(")
    mark, _, model = head.partition(":")
    if head.startswith(FOUNDATIONS) and Path(model).is_absolute():
        return f"{mark}:{Path(model).name}{bracket}{arguments}"
    place, _, attribute = head.rpartition(":")
    return f"{Path(place).name}:{attribute}{bracket}{arguments}" if place.endswith(".py") else name


def fingerprint(name: str) -> str | None:
    """sha256 of the user's file that a name stands for, None for what comes from an installed package."""
    place = Path(name.partition("(")[0].rpartition(":")[0])
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.suffix == ".py" and place.is_file() else None


def parse_call(text: str) -> tuple[str, dict[str, Any]]:
    """Split `module:function(key=value, ...)` into the name and its literal arguments; the parentheses are optional."""
    name, bracket, rest = text.partition("(")
    if not bracket:
        return text, {}
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
        if not isinstance(call, ast.Call) or call.args:
            raise ValueError
        return name.strip(), {k.arg or "": ast.literal_eval(k.value) for k in call.keywords}
    except (SyntaxError, ValueError):
        raise InputError(f"cannot read the arguments of {text!r}: write {name}(key=value, ...)") from None


def _load_file(path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise InputError(f"there is no file {path}")
    alias = f"unalike_user_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if alias in sys.modules:
        return sys.modules[alias]
    spec = importlib.util.spec_from_file_location(alias, path)
    if spec is None or spec.loader is None:
        raise InputError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[alias]
        raise InputError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    return module


def _load_module(name: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise InputError(f"module {name!r} cannot be imported: {type(error).__name__}: {error}") from error
