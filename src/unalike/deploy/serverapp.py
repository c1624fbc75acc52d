"""The ServerApp: gathers the sites, then drives the loop of every other engine over Flower's Grid.

What it leaves is a run folder like any other, `runs/<stage>` of the deployment. Started again it goes on from the last
committed round, whatever had died.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from .. import api, config, runs
from ..algorithms import find
from ..config import Experiment
from ..data.federation import Federation
from ..data.schema import FILE as SCHEMA
from ..data.schema import Schema, empty_federation
from ..data.tiers import models_of
from ..engines.flower.engine import Flower, Patience
from ..engines.flower.roster import described
from ..errors import UnalikeError
from ..files import write_atomically, write_json
from ..models import DEFAULTS
from ..protocol import ClientInfo, Spec
from .folder import Deployment, Stage, read_deployment

RUNS, FAILED, RUN_ID = "runs", ".failed.json", ".run"

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the deployment whose folder the app's configuration names, looking for replies every `poll` seconds."""
    folder = Path(str(context.run_config["folder"]))
    patience = Patience(poll=float(str(context.run_config.get("poll", Patience.poll))))
    out = run_folder(folder)
    out.parent.mkdir(exist_ok=True)
    with runs.locked(out.parent):
        try:
            drive(grid, folder, patience)
        except Exception as error:
            said = str(error) if isinstance(error, UnalikeError) else f"{type(error).__name__}: {error}"
            write_json(failure_of(out), {"error": said, "trace": traceback.format_exc()})
            raise


def is_driven(folder: Path) -> bool:
    """Whether a ServerApp is at work for the deployment in `folder`."""
    if not (folder / RUNS).exists():
        return False
    try:
        with runs.locked(folder / RUNS):
            return False
    except runs.InUseError:
        return True


def run_folder(folder: Path) -> Path:
    """Where a deployment's run is kept at its present stage."""
    return folder / RUNS / read_deployment(folder, allow_insecure=True).stage


def failure_of(out: Path) -> Path:
    """The file that says why the last try at a run failed."""
    return out.with_suffix(FAILED)


def drive(grid: Grid, folder: Path, patience: Patience | None = None) -> None:
    """Train what the deployment's experiment says, from the last committed round on."""
    deployment, out = read_deployment(folder, allow_insecure=True), run_folder(folder)
    if (out / runs.SUMMARY).exists():
        return
    experiment = staged(config.from_toml(folder / runs.EXPERIMENT), deployment)
    wanted = taking_part(deployment)
    engine = Flower(grid, _run_id(out), min(deployment.min_sites, len(wanted)), wanted, patience)
    found = federation(folder, experiment, deployment, engine.gather())
    if (out / runs.EXPERIMENT).exists():
        prepared = runs.reopen(out, found)
    else:
        prepared = runs.prepare(experiment, found)
        runs.create(out, prepared)
    api.drive(out, prepared, engine, again=f"unalike deploy run {folder}")


def staged(experiment: Experiment, deployment: Deployment) -> Experiment:
    """What runs at the deployment's stage: at `local` every site trains its own model and no tensor leaves it."""
    if deployment.stage is not Stage.LOCAL:
        return experiment
    shared = config.parameters_of(find("standalone"))
    keys = {k: v for k, v in config.flat(experiment).items() if k not in experiment.parameters or k in shared}
    return config.resolve({**keys, "method": "standalone"})


def federation(
    folder: Path, experiment: Experiment, deployment: Deployment, said: Mapping[int, Mapping[str, Any]]
) -> Federation:
    """Who may take part, as far as a server knows: no row, and a client's size once its site has told it."""
    schema = Schema.from_json(folder / SCHEMA)
    names = experiment.models or DEFAULTS[schema.kind]
    like = Spec("", schema.shape, len(schema.classes), experiment.feature_width)
    tiers, models = models_of(deployment.clients, names, experiment.model_map, like)
    infos = [ClientInfo(k, tier, 0) for k, tier in enumerate(tiers)]
    clients = [described(info, said[info.id]) if info.id in said else info for info in infos]
    return empty_federation(schema, clients, models)


def taking_part(deployment: Deployment) -> dict[str, tuple[int, ...]]:
    """The sites that take part at the deployment's stage, with their clients."""
    everyone = deployment.clients_of_sites()
    return {s: c for s, c in everyone.items() if deployment.stage is not Stage.CANARY or s in deployment.canary}


def _run_id(out: Path) -> str:
    """The name of the run at the sites, drawn once: whoever does not know it cannot ask for its states."""
    file = out.with_suffix(RUN_ID)
    if not file.exists():
        write_atomically(file, secrets.token_hex(8).encode())
    return file.read_text()
