"""Options that commands share: every key of an experiment is one, and so are a method's own parameters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import click
import typer
from typer.core import TyperCommand

from .errors import InputError

if TYPE_CHECKING:
    from .config import Experiment

KEYS = "unalike.keys"
"""Where in click's context the experiment keys given as options are gathered."""

Folder = Annotated[Path, typer.Argument(metavar="RUN", help="a run folder")]
Json = Annotated[bool, typer.Option("--json", help="one JSON document on standard output")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no result table")]
Out = Annotated[Optional[Path], typer.Option("--out", "-o", help="folder to write; it must not exist yet")]  # noqa: UP045


class ExperimentCommand(TyperCommand):
    """A command that takes every key of an experiment as an option, and the method's own parameters beside them."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = {"allow_extra_args": True, "ignore_unknown_options": True}
        super().__init__(*args, **kwargs)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        return [*super().get_params(ctx), *_experiment_options()]


def _experiment_options() -> list[click.Parameter]:
    from .config import GENERAL, Experiment

    def gather(ctx: click.Context, param: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.meta.setdefault(KEYS, {})[param.name] = value

    return [
        click.Option(
            [f"--{name.replace('_', '-')}"],
            help=f"{field.description}{f' [{_shown(field.default)}]' if field.default not in (None, (), {}) else ''}",
            expose_value=False,
            callback=gather,
            metavar="VALUE",
        )
        for name in GENERAL
        if name != "method" and (field := Experiment.model_fields[name])
    ]


def _shown(default: Any) -> str:
    if not isinstance(default, tuple):
        return str(default)
    return "/".join(part if isinstance(part, str) else f"{100 * part:.0f}" for part in default)


def words(ctx: click.Context) -> tuple[list[str], dict[str, Any]]:
    """What is to be run, and its keys: general ones from click, the method's own from what click left over."""
    words, keys = [], dict(ctx.meta.get(KEYS, {}))
    left = list(ctx.args)
    while left:
        word = left.pop(0)
        if not word.startswith("-"):
            words.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        if not equals:
            if not left or left[0].startswith("--"):
                raise InputError(f"{word} needs a value: {word} VALUE")
            value = left.pop(0)
        keys[name.replace("-", "_") if "." not in name else name] = value
    return words, keys


def experiment(given: list[str], keys: dict[str, Any]) -> Experiment:
    """The experiment that a command's words and options ask for: a file or a method, with keys replaced."""
    from . import config

    name, *more = given
    if more:
        raise InputError(f"unexpected argument {more[0]!r} after {name}: options are --name value")
    return config.from_toml(Path(name), keys) if name.endswith(".toml") else config.resolve({**keys, "method": name})
