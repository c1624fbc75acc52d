"""FedProto, FML and FedKD of HtFLlib and of unalike, on the same clients.

    python benchmarks/htfllib.py --htfllib PATH --seeds 0,1,2,3,4 --out LINES.jsonl [--page PAGE.md]

PATH is a checkout of https://github.com/TsingZ0/HtFLlib, which is imported in a process of its own and not changed.
Each seed draws its own partition; both libraries get the same training and test rows. Every finished run is a line of
LINES.jsonl and is not repeated. The table of what was found is printed; `--page` writes it into a page, below what
stands there before the first heading of the second level.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

import unalike
from unalike.local import means_by_label
from unalike.models.cnn import FEATURES, cnn
from unalike.rng import Key
from unalike.runs import commit, processor
from unalike.summary import half_width

ROUNDS, CLIENTS, BATCH, LR = 15, 10, 32, 0.05
DATA = {"data": "fashion-mnist", "rows": 4000, "clients": CLIENTS, "partition": "dirichlet:0.3", "min_per_client": 60}
MODELS, SHARED = ("cnn-1", "cnn-2", "cnn-3", "cnn-4", "cnn-5"), "cnn-5"
"""What the clients hold in turn, and what all of them share in FML and FedKD."""

THEIRS: dict[str, dict[str, Any]] = {
    "FedProto": {"lamda": 1.0},
    "FML": {"alpha": 0.5, "beta": 0.5},
    "FedKD": {"mentee_learning_rate": LR, "T_start": 0.95, "T_end": 0.98},
}
"""Their methods and what their options are set to."""

OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "fedproto": ("fedproto", {"lam": 1.0, "clip": 1e9}),
    "fml": ("fml", {"alpha": 0.5 / 0.55, "beta": 0.5 / 0.55, "lr": 0.55 * LR, "clip": 10 / 0.55}),
    "fml, numbers as theirs": ("fml", {"alpha": 0.5, "beta": 0.5, "clip": 10.0}),
    "fedkd": ("fedkd", {"energy_start": 0.95, "energy_end": 0.98, "clip": 10.0}),
    "fedkd, joint": ("fedkd", {"energy_start": 0.95, "energy_end": 0.98, "clip": 10.0, "losses": "joint"}),
}
"""Name of a run to our method and what its parameters are set to.

Their KL divergence is the mean over rows and over the ten classes: a tenth of ours. With α = β = 1/2 their FML
minimises CE/2 + KL/20 = 0.55 (10/11 CE + 1/11 KL), which is ours at α = β = 10/11, 0.55 η and 1/0.55 of the largest
norm. Their FedKD minimises the loss of its authors' code, which is ours at losses = "joint".
"""

CHANGED = ("shuffled", "prototypes afterwards")
"""What of theirs can be changed, to see what a difference comes from: "FedProto, shuffled, prototypes afterwards" is a
run with both. Shuffled: rows are dealt to batches anew each epoch. Prototypes afterwards: means of what the trained
model makes of the training rows, not of the features that training has passed through."""

PAIRS = [
    ("fedproto", "FedProto"),
    ("fml", "FML"),
    ("fedkd", "FedKD"),
    ("fml, numbers as theirs", "FML"),
    ("fedkd, joint", "FedKD"),
    ("fedproto", "FedProto, shuffled"),
    ("fedproto", "FedProto, shuffled, prototypes afterwards"),
    ("fml", "FML, shuffled"),
    ("fedkd, joint", "FedKD, shuffled"),
]
"""A run of ours and the one of theirs that it is held against. The first three are the comparison as it was planned."""


def federation(seed: int) -> unalike.Federation:
    return unalike.federation(**DATA, models=MODELS, seed=seed)


# Theirs


def write_clients(clients: unalike.Federation, folder: Path, seed: int) -> None:
    """The clients in HtFLlib's layout. Their training rows are not shuffled later, so they are shuffled here, once."""
    for client, part in [(info.id, part) for info in clients.clients for part in ("train", "test")]:
        data = clients.data(client, part)
        order = (Key.root(seed) / "order" / client).numpy().permutation(len(data["y"]))
        (folder / part).mkdir(parents=True, exist_ok=True)
        arrays = {name: rows.numpy()[order] for name, rows in data.items()}
        with (folder / part / f"{client}.npz").open("wb") as file:
            np.savez(file, data=np.array(arrays, dtype=object))


def run_theirs(name: str, seed: int, htfllib: Path) -> list[float]:
    """Test accuracy of each client after the last round, as their library prints it."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch) / "system"  # they read ../dataset and write ../results
        work.mkdir()
        write_clients(federation(seed), Path(scratch) / "dataset" / "clients", seed)
        paths = [str(htfllib / "system"), *filter(None, [os.environ.get("PYTHONPATH")])]
        # they load whole pickled models, which torch refuses since 2.6 unless it is told otherwise
        environment = {"PYTHONPATH": os.pathsep.join(paths), "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD": "1"}
        command = [sys.executable, str(Path(__file__).resolve()), "--drive", name, "--seeds", str(seed)]
        done = subprocess.run(command, cwd=work, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{name} of HtFLlib failed: {done.stderr}")
    last = done.stdout.partition(f"Round number: {ROUNDS}-")[2]
    found = {int(client): float(score) for client, score in re.findall(r"Client (\d+): Acc: ([\d.e-]+)", last)}
    return [found[client] for client in range(CLIENTS)]


class Network(nn.Module):
    """One of our networks with its last layer where their `BaseHeadSplit` looks for it."""

    def __init__(self, number: int) -> None:
        super().__init__()
        whole = cnn(number, (1, 28, 28), 10)
        self.extractor, self.fc = whole.extractor, whole.header

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.fc(self.extractor(x))
        return outputs


def change_theirs(changes: Sequence[str]) -> None:
    """Replace what is named of `CHANGED` in their classes, in this process."""
    base = importlib.import_module("flcore.clients.clientbase")
    proto = importlib.import_module("flcore.clients.clientproto").clientProto
    fixed, train = base.Client.load_train_data, proto.train

    def shuffled(client: Any, batch_size: int | None = None) -> DataLoader[Any]:
        loader = fixed(client, batch_size)
        return DataLoader(loader.dataset, loader.batch_size, shuffle=True, drop_last=loader.drop_last)

    def train_and_average(client: Any) -> None:
        train(client)
        model = base.load_item(client.role, "model", client.save_folder_name).eval()
        x, y = next(iter(DataLoader(fixed(client).dataset, client.train_samples)))
        with torch.no_grad():
            found = means_by_label(model.base, {"x": x, "y": y}, client.num_classes)
        prototypes = {int(label): mean for label, mean in found.items()}
        base.save_item(prototypes, client.role, "protos", client.save_folder_name)

    if "shuffled" in changes:
        base.Client.load_train_data = shuffled
    if "prototypes afterwards" in changes:
        proto.train = train_and_average


def drive(run: str, seed: int) -> None:
    """Their server and clients, in a process whose working folder has the clients beside it.

    Modules that their files import and these methods do not need are replaced where they are not installed.
    """
    for module in ("torchvision", "h5py"):
        if importlib.util.find_spec(module) is None:
            sys.modules[module] = MagicMock()
    name, *changes = run.split(", ")
    change_theirs(changes)
    theirs = {"FedProto": "proto", "FML": "fml", "FedKD": "kd"}[name]
    built = importlib.import_module("flcore.trainmodel.models")
    built.Network = Network  # type: ignore[attr-defined]
    torch.manual_seed(0)  # as their main.py does
    random.seed(seed)
    np.random.seed(seed)
    general = {"algorithm": name, "dataset": "clients", "device": "cpu", "num_classes": 10, "goal": "test"}
    training = {"global_rounds": ROUNDS, "local_epochs": 1, "batch_size": BATCH, "local_learning_rate": LR}
    everyone = {"num_clients": CLIENTS, "join_ratio": 1.0, "random_join_ratio": False, "few_shot": 0}
    off = dict.fromkeys(("client_drop_rate", "train_slow_rate", "send_slow_rate"), 0.0)
    off |= {"eval_gap": ROUNDS, "time_select": False, "time_threthold": 10000, "top_cnt": 100, "auto_break": False}
    folders = {"save_folder_name": "temp", "models_folder_name": ""}
    nets = {"models": [f"Network({m[-1]})" for m in MODELS], "global_model": f"Network({SHARED[-1]})"}
    args = SimpleNamespace(
        **general, **training, **everyone, **off, **folders, **nets, **THEIRS[name], feature_dim=FEATURES
    )
    getattr(importlib.import_module(f"flcore.servers.server{theirs}"), name)(args, 0).train()


# Ours


def run_ours(name: str, seed: int) -> list[float]:
    """Test accuracy of each client after the last round."""
    method, own = OURS[name]
    training = {"rounds": ROUNDS, "local_epochs": 1, "batch_size": BATCH, "drop_last": True, "lr": LR}
    plain = {"momentum": 0.0, "weight_decay": 0.0, "shared_model": SHARED, "eval_every": ROUNDS, "engine": "serial"}
    with tempfile.TemporaryDirectory() as scratch:
        keys = {**training, **plain, **own, "seed": seed}
        result = unalike.run(method, federation(seed), out=Path(scratch) / "run", report=False, **keys)
        found = result.summary["last"]["accuracy"]["per_client"]
    return [found[str(client)] for client in range(CLIENTS)]


# Both


def is_theirs(name: str) -> bool:
    """Whether a run is one of HtFLlib: our names begin small."""
    return name.split(", ")[0] in THEIRS


def measure(name: str, seed: int, htfllib: Path) -> dict[str, Any]:
    started, theirs = time.perf_counter(), is_theirs(name)
    accuracies = run_theirs(name, seed, htfllib) if theirs else run_ours(name, seed)
    asked = ["git", "-C", str(htfllib), "rev-parse", "HEAD"]
    return {
        "run": name,
        "seed": seed,
        "mean": sum(accuracies) / len(accuracies),
        "per_client": accuracies,
        "seconds": time.perf_counter() - started,
        "settings": THEIRS[name.split(", ")[0]] if theirs else OURS[name][1],
        "commit": commit(),
        "htfllib": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() if theirs else None,
        "machine": f"{processor()}, {os.cpu_count()} cores, torch {torch.__version__}",
    }


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half of Student's 95 % interval; no number for a single value."""
    width = half_width(values)
    return sum(values) / len(values), math.nan if width is None else width


def table(lines: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Markdown: a row for each pair that was run with all seeds."""
    head = "| ours | theirs | ours, mean | theirs, mean | ours − theirs, points, paired | ours in their interval |"
    rows = [f"{head} intervals overlap |", "|---|---|--:|--:|--:|---|---|"]
    found = {(line["run"], line["seed"]): line["mean"] for line in lines}
    for ours, theirs in PAIRS:
        both = [[found.get((name, seed)) for seed in seeds] for name in (ours, theirs)]
        if None in both[0] + both[1]:
            continue
        (a, w), (b, v) = (interval(values) for values in both)
        d, u = interval([100 * (x - y) for x, y in zip(*both, strict=True)])
        reach = (v, v + w)
        answers = ("–" if math.isnan(r) else "yes" if abs(a - b) <= r else "**no**" for r in reach)
        figures = f"{a:.3f} ± {w:.3f} | {b:.3f} ± {v:.3f} | {d:+.1f} ± {u:.1f}"
        rows.append(f"| {ours} | {theirs} | {figures} | {' | '.join(answers)} |")
    return "\n".join(rows)


def by_seed(lines: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Markdown: each run's mean over clients, seed by seed."""
    rows = [f"| run | {' | '.join(map(str, seeds))} |", "|---|" + "--:|" * len(seeds)]
    found = {(line["run"], line["seed"]): line["mean"] for line in lines}
    for name in dict.fromkeys([theirs for _, theirs in PAIRS] + [ours for ours, _ in PAIRS]):
        if all((name, seed) in found for seed in seeds):
            rows.append(f"| {name} | {' | '.join(f'{found[name, seed]:.3f}' for seed in seeds)} |")
    return "\n".join(rows)


def page(lines: Sequence[Mapping[str, Any]], seeds: Sequence[int], intro: str) -> str:
    used = [line for line in lines if line["seed"] in seeds]
    commits, theirs, machines = (
        sorted({line[k] for line in used if line[k]}) for k in ("commit", "htfllib", "machine")
    )
    origin = f"Commit {', '.join(commits)}; HtFLlib {', '.join(theirs)}; {', '.join(machines)}."
    parts = [intro.rstrip(), f"## The table\n\n{table(lines, seeds)}", f"## By seed\n\n{by_seed(lines, seeds)}", origin]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--htfllib", type=Path, help="a checkout of HtFLlib; not needed for runs of ours")
    parser.add_argument("--seeds", default="0,1,2,3,4")
    parser.add_argument("--out", type=Path, default=Path("htfllib.jsonl"))
    parser.add_argument("--runs", default=";".join([*THEIRS, *OURS]), help="separated by semicolons")
    parser.add_argument("--page", type=Path, help="Markdown file whose part from the first ## on is written anew")
    parser.add_argument("--drive", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    if arguments.drive:
        drive(arguments.drive, seeds[0])
        return
    lines = [json.loads(line) for line in arguments.out.read_text().splitlines()] if arguments.out.exists() else []
    done = {(line["run"], line["seed"]) for line in lines}
    for seed, name in [(seed, name) for seed in seeds for name in filter(None, arguments.runs.split(";"))]:
        if (name, seed) in done:
            continue
        if is_theirs(name) and not arguments.htfllib:
            parser.error(f"{name} is theirs: give --htfllib PATH")
        lines.append(measure(name, seed, arguments.htfllib and arguments.htfllib.resolve()))
        with arguments.out.open("a") as file:
            file.write(json.dumps(lines[-1]) + "\n")
        print(name, seed, round(lines[-1]["mean"], 3), f"{lines[-1]['seconds']:.0f} s", flush=True)
    print(table(lines, seeds))
    if arguments.page:
        intro = arguments.page.read_text().partition("\n## ")[0] if arguments.page.exists() else "# HtFLlib and unalike"
        arguments.page.write_text(page(lines, seeds, intro))


if __name__ == "__main__":
    main()
