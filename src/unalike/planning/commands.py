"""`unalike plan`. What loads torch is imported when it is called."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError
from ..options import ExperimentCommand, Json, Out, words


def add_to(app: typer.Typer) -> None:
    """Put the command on unalike's command line."""
    app.command(cls=ExperimentCommand, options_metavar="METHOD... | EXPERIMENT.toml [OPTIONS]")(plan)


def plan(
    ctx: typer.Context,
    model: Annotated[str, typer.Option("--model", help="plan this model, without data [that of the data]")] = "",
    input: Annotated[str, typer.Option("--input", help="shape of a sample for --model")] = "3x32x32",
    classes: Annotated[int, typer.Option("--classes", help="number of classes for --model", min=2)] = 10,
    samples: Annotated[int, typer.Option("--samples", help="training rows of a client, for --model", min=1)] = 500,
    out: Out = None,
    as_json: Json = False,
) -> None:
    """Say who can train what within its memory, and what it costs; nothing is trained.

    --fleet takes uniform:0.12:1.07 as well: shares of what the whole model needs. --partition paper, auto or 0,3,5,7,9
    says where a chain is cut into blocks. The methods' own parameters are options too.
    """
    given, keys = words(ctx)
    if not given:
        raise InputError("say what to plan: unalike plan profl --model resnet18 --input 3x32x32")
    if out is not None and out.exists():
        raise InputError(f"{out} exists already: choose another --out")
    from .make import Bare, experiments, make

    bare = Bare(model, _shape(input), classes, samples) if model else None
    told = [make(experiment, bare).as_json() for experiment in experiments(given, keys, bare)]
    if out is not None:
        _write(out, told)
    if as_json:
        print(json.dumps(told[0] if len(told) == 1 else told))
        return
    from ..report.plan import show

    show(told)
    if out is not None:
        print(f"picture: {out / 'plan.svg'}")


def _shape(text: str) -> tuple[int, ...]:
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) for part in parts):
        raise InputError(f"--input {text} is no shape: write channels x height x width, as in 3x32x32")
    return tuple(map(int, parts))


def _write(folder: Path, told: Sequence[dict[str, Any]]) -> None:
    """plan.json, plan.svg, and the budgets as fleet.csv, which --fleet reads."""
    from ..data import fleet
    from ..files import write_atomically, write_json
    from ..report.plan import drawn

    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror or error}): choose another --out") from None
    write_json(folder / "plan.json", told[0] if len(told) == 1 else list(told))
    write_atomically(folder / "plan.svg", drawn(told).encode())
    budgets = [client["memory_bytes"] for client in told[0]["clients"]]
    if budgets:
        write_atomically(folder / "fleet.csv", fleet.to_csv(budgets).encode())
