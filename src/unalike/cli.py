"""The command line. Results go to standard output, everything else to standard error; one line says what is wrong."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import click
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from .deploy import commands
from .errors import InputError, UnalikeError
from .options import ExperimentCommand, Folder, Json, Out, Quiet, experiment, words
from .planning import commands as planning

if TYPE_CHECKING:
    from .config import Experiment
    from .personal import PersonalModel

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Federated learning among clients that do not match: different models, memories, modalities and data.",
    epilog="--debug anywhere shows the traceback of an error.",
)
Client = Annotated[int, typer.Option("--client", help="whose model", min=0)]


@app.command(cls=ExperimentCommand, options_metavar="[EXPERIMENT.toml | METHOD | file.py:Class] [OPTIONS]")
def run(
    ctx: typer.Context,
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train one method. With no argument: three methods on the embedded digits, compared.

    The method's own parameters are options too: `unalike methods METHOD` lists them.
    """
    from . import api

    given, keys = words(ctx)
    if not given:
        return _demonstration(keys, out, quiet, as_json)
    prepared = api.prepare(experiment(given, keys))
    _tell(api.run(prepared, out=out, listeners=_listeners(prepared.experiment, quiet)), quiet, as_json)
    return None


def _demonstration(keys: Mapping[str, Any], out: Path | None, quiet: bool, as_json: bool) -> None:
    from . import api, comparison, demo

    methods = {name: {k: keys.get(k, v) for k, v in own.items()} for name, own in demo.METHODS.items()}
    asked = comparison.compose(methods, {**demo.COMMON, "reference": "pfedafm", **_one_seed(keys)})
    folder = out or api.free_folder("demo")
    _compared(folder, comparison.start(asked, folder, listeners_of=_announced(quiet)), quiet, as_json)


def _one_seed(keys: Mapping[str, Any]) -> dict[str, Any]:
    """A run's keys as a comparison of one seed takes them."""
    return {"seeds": str(keys.get("seed", 0)), **{key: value for key, value in keys.items() if key != "seed"}}


def _announced(quiet: bool) -> Any:
    from .telemetry.progress import listeners

    return lambda title, prepared: listeners(title, prepared.experiment.parameters["rounds"], quiet)


@app.command(cls=ExperimentCommand, options_metavar="METHOD... | COMPARISON.toml [OPTIONS]")
def compare(
    ctx: typer.Context,
    seeds: Annotated[str, typer.Option("--seeds", help="one run of each method for each", metavar="0,1,2")] = "",
    reference: Annotated[str, typer.Option("--reference", help="what differences are to [the first method]")] = "",
    target: Annotated[str, typer.Option("--target", help="validation accuracy that bytes are counted until")] = "",
    tune: Annotated[str, typer.Option("--tune", help='tried on validation, "lr=0.03|0.1,mu=0.01..1"')] = "",
    trials: Annotated[str, typer.Option("--trials", help="settings tried, equally many for each method")] = "",
    light: Annotated[bool, typer.Option("--light", help="keep no models: tables and curves only")] = False,
    out: Out = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare methods on the same clients: chosen on validation, reported on test, over seeds.

    Parameters of the methods are options too: --lr for all that have it, --fedprox.mu for one.
    """
    from . import api, comparison

    given, keys = words(ctx)
    asked_for = {"seeds": seeds, "reference": reference, "target": target, "tune": tune, "trials": trials}
    default = click.core.ParameterSource.DEFAULT
    keys |= {name: value for name, value in asked_for.items() if ctx.get_parameter_source(name) is not default}
    keys |= {"light": True} if light else {}
    if len(given) == 1 and given[0].endswith(".toml"):
        asked = comparison.from_toml(Path(given[0]), keys)
    else:
        asked = comparison.compose(given, keys)
    folder = out or api.free_folder("compare")
    _compared(folder, comparison.start(asked, folder, listeners_of=_announced(quiet)), quiet, as_json)


def _compared(folder: Path, lines: Sequence[Mapping[str, Any]], quiet: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(lines))
    elif not quiet:
        from .report import console, sentence

        for regime in dict.fromkeys(line.get("regime", "") for line in lines):
            console.show([line for line in lines if line.get("regime", "") == regime], regime)
        print(sentence(folder))
        print(f"report: {folder / 'report.html'}")
    if any(line["status"] == "failed" for line in lines):
        raise typer.Exit(1)


def _listeners(experiment: Experiment, quiet: bool) -> tuple[Any, ...]:
    from .telemetry.progress import listeners

    return listeners(experiment.method.rpartition(":")[2], experiment.parameters["rounds"], quiet)


def _tell(result: Any, quiet: bool, as_json: bool) -> None:
    if as_json:
        print(json.dumps(result.summary))
    elif not quiet:
        from .report import sentence

        print(sentence(result.folder))
        print(f"report: {result.folder / 'report.html'}")


@app.command()
def resume(folder: Folder, quiet: Quiet = False, as_json: Json = False) -> None:
    """Continue an interrupted run or comparison; it ends in the same bits as an undisturbed one."""
    from . import api, comparison, runs

    if comparison.is_comparison(folder):
        return _compared(folder, comparison.resume(folder, listeners_of=_announced(quiet)), quiet, as_json)
    _tell(api.resume(folder, listeners=_listeners(runs.open_run(folder), quiet)), quiet, as_json)
    return None


@app.command()
def report(
    folder: Folder,
    against: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--against", help="a run of standalone, local-lora or local-adapter with the same partition"),
    ] = None,
    page: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option("--page", help="Markdown page whose part from the first ## on a comparison or a grid writes anew"),
    ] = None,
) -> None:
    """Write report.html, one page that opens offline, and a comparison's tables."""
    from .report import write

    print(write(folder, against=against, page=page))


@app.command()
def audit(folder: Folder, as_json: Json = False) -> None:
    """Compare a simulated run's impressions with all clients' images: are there copies among them?

    It needs the data of all clients in one place. At a site the gate compares, with its own images only.
    """
    from . import report
    from .audit import audit, verdict

    found = audit(folder)
    print(json.dumps(found) if as_json else verdict(found))
    if (folder / "report.html").is_file():
        report.write(folder)


@app.command()
def export(
    folder: Folder,
    client: Client,
    out: Out = None,
    form: Annotated[str, typer.Option("--format", help="safetensors or onnx")] = "safetensors",
    last: Annotated[bool, typer.Option("--last", help="of the last round, not the one best on validation")] = False,
) -> None:
    """Write a client's complete personal model as one file: of a run, or of a site as it was at its last job."""
    suffixes = {"safetensors": ".safetensors", "onnx": ".onnx"}
    if form not in suffixes:
        raise InputError(f"--format {form} is unknown: safetensors or onnx")
    path = out or folder / f"client-{client}{suffixes[form]}"
    if path.exists():
        raise InputError(f"{path} exists already: choose another --out")
    if not path.parent.is_dir():
        raise InputError(f"there is no folder {path.parent} for {path.name}: make it, or choose another --out")
    extract = commands.extract_at_site if commands.is_site(folder) else functools.partial(_extract, last=last)
    model = extract(folder, client)
    print(model.save(path) if form == "safetensors" else model.save_onnx(path))


def _extract(folder: Path, client: int, last: bool) -> PersonalModel:
    from .personal import extract

    return extract(folder, client, last)


@app.command()
def predict(
    source: Annotated[Path, typer.Argument(metavar="RUN", help="a run folder, or a file written by export")],
    data: Annotated[
        Path, typer.Option("--input", "-i", help="rows: .npz with x, .csv, image, folder of images, .txt or .jsonl")
    ],
    client: Annotated[Optional[int], typer.Option("--client", help="whose model, for a run folder", min=0)] = None,  # noqa: UP045
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1")] = "cpu",
    trust_code: Annotated[bool, typer.Option("--trust-code", help="import the user code that a file names")] = False,
    as_json: Json = False,
) -> None:
    """Predict new rows with a client's model: a line for each row with its class and probability."""
    from .data.inputs import read_rows
    from .personal import load
    from .runs import check_device

    check_device(device)
    model = load(source, client, trust_code=trust_code)
    if model.preprocess.kind in ("text", "vqa"):
        rows = model.answered(data, device)
        print(json.dumps(rows) if as_json else "\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
        return
    probabilities = model.predict(read_rows(data, model.preprocess), device)
    best = probabilities.argmax(1)
    if as_json:
        rows = [
            {"row": i, "class": model.classes[b], "probabilities": dict(zip(model.classes, p.tolist(), strict=True))}
            for i, (b, p) in enumerate(zip(best, probabilities, strict=True))
        ]
        print(json.dumps(rows))
        return
    print("row,class,probability")
    for i, b in enumerate(best):
        print(f"{i},{model.classes[b]},{probabilities[i, b]:.4f}")


@app.command()
def explain(
    folder: Folder,
    client: Client,
    instruction: Annotated[Optional[str], typer.Option("--input", "-i", help="instruction, of a run on texts")] = None,  # noqa: UP045
    rows: Annotated[int, typer.Option("--rows", help="so many test rows, of a run on images", min=1)] = 8,
    out: Annotated[Optional[Path], typer.Option("--out", "-o", help="page to write, of a run on images")] = None,  # noqa: UP045
    last: Annotated[bool, typer.Option("--last", help="of the last round, not the one best on validation")] = False,
    as_json: Json = False,
) -> None:
    """Say what a client's model answers: to an instruction, and how its adapters are blended; or to its test rows."""
    from .examples import Examples, examples
    from .explain import explain
    from .files import write_atomically

    found = examples(folder, client, rows, last) if instruction is None else explain(folder, client, instruction, last)
    if out and isinstance(found, Examples):
        write_atomically(out, found.html().encode())
    print(json.dumps(found.describe()) if as_json else "\n".join(found.lines()))


@app.command()
def methods(
    method: Annotated[Optional[str], typer.Argument(help="show this method's parameters")] = None,  # noqa: UP045
    as_json: Json = False,
) -> None:
    """List the methods, or the parameters of one."""
    from .algorithms import ALGORITHMS, find
    from .config import describe_parameters

    if method is not None:
        rows = [
            {"name": name, "type": kind, "default": default, "about": about}
            for name, kind, default, about in describe_parameters(find(method))
        ]
    else:
        rows = [
            {"name": name, "paper": kind.paper, "needs": kind.needs, "summary": (kind.__doc__ or "").split("\n")[0]}
            for name, kind in ALGORITHMS.items()
        ]
    _list(rows, as_json)


@app.command()
def data(as_json: Json = False) -> None:
    """List the data sets that have a name; a path to your own file or folder serves as well."""
    from .data.sources import SOURCES

    _list([{"name": name, "summary": s.summary, "licence": s.licence} for name, s in SOURCES.items()], as_json)


@app.command()
def doctor(
    log: Annotated[
        str, typer.Option("--log", metavar="FILE", help="output of Flower to explain, - for standard input")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check this machine: versions, cores, devices, optional parts, data at hand. With --log: what went wrong."""
    if log:
        return _explain(log, as_json)
    from .doctor import examine

    return _list(examine(), as_json)


def _explain(log: str, as_json: bool) -> None:
    from .deploy.diagnose import diagnose

    if log != "-" and not Path(log).is_file():
        raise InputError(f"there is no file {log}: --log FILE, or --log - for standard input")
    found = diagnose(sys.stdin.read() if log == "-" else Path(log).read_text(errors="replace"))
    if as_json:
        print(json.dumps([vars(finding) for finding in found]))
    else:
        print("\n".join(f"{f.cause} -> {f.remedy}" for f in found) or "nothing known was found")


planning.add_to(app)
commands.add_to(app)


def _list(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print(json.dumps(rows))
        return
    table = Table(*rows[0], box=None, header_style="bold")
    for row in rows:
        table.add_row(*(escape(str(value)) for value in row.values()))
    Console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unalike`. Exits 0 done, 1 failed, 2 bad input, 130 interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    sys.exit(_guarded([a for a in given if a != "--debug"], debug))


def _guarded(arguments: list[str], debug: bool) -> int:
    try:
        code = app(arguments, prog_name="unalike", standalone_mode=False)
        if code == 130:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.ctx.get_help() if error.ctx else "")
        return 2
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        return _fail("interrupted: continue a run from its last committed round with: unalike resume RUN", 130)
    except click.ClickException as error:
        if debug:
            raise
        return _fail(error.format_message(), 2)
    except UnalikeError as error:
        if debug:
            raise
        return _fail(str(error), error.exit_code)
    except BrokenPipeError:
        return 1
    except OSError as error:
        if debug:
            raise
        return _fail(f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}", 1)
    except Exception as error:
        if debug:
            raise
        return _fail(f"internal error, {type(error).__name__}: {error} (--debug shows where)", 1)


def _fail(message: str, code: int) -> int:
    print("unalike: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    main()
