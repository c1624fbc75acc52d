"""What an auditor would try: foreign code, damaged states, other data, models that are not what they seem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

import unalike
from unalike import api, local, models, runs
from unalike.cli import main
from unalike.data.federation import Federation, federation
from unalike.engines.processes import Processes
from unalike.errors import InputError, RunError
from unalike.protocol import Spec
from unalike.rng import Key
from unalike.tasks import Classification

NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, features, classes, after=False):
        super().__init__()
        self.after, self.body, self.spare = after, nn.Linear(features, 16), nn.Linear(3, 3)
        self.last = nn.Linear(16, classes)
        self.body.requires_grad_(not features % 2)

    def forward(self, x):
        out = self.last(torch.relu(self.body(x)))
        return torch.log_softmax(out, 1) if self.after else out

def net(input, classes, after=False):
    return Net(input[0], classes, after)
"""


@pytest.fixture(scope="module")
def table() -> Federation:
    return federation("wine", clients=2, models=["mlp-5"], min_per_client=20)


@pytest.fixture(scope="module")
def finished(table: Federation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return api.run(
        "standalone", table, out=tmp_path_factory.mktemp("trust") / "run", rounds=2, engine="serial", report=False
    ).folder


def test_a_model_file_runs_no_code_that_is_not_trusted(finished: Path, tmp_path: Path) -> None:
    """A crafted name such as os:system must not be called, nor a file imported, by loading a model."""
    path = unalike.load(finished, 0).save(tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        about = json.loads(file.metadata()["unalike"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    mark = tmp_path / "ran"
    spec = next(iter(about["models"].values()))
    for changed in ({"method": "os:system"}, {"models": {"x": {**spec, "name": f"os:system(command='touch {mark}')"}}}):
        save_file(tensors, path, metadata={"unalike": json.dumps({**about, **changed})})
        with pytest.raises(InputError, match=r"names code of its own, os:system.*--trust-code"):
            unalike.load(path)
    assert not mark.exists()


def test_a_damaged_state_is_noticed(finished: Path, table: Federation) -> None:
    path = max((finished / "checkpoint" / "clients" / "1").glob("*.safetensors"), key=lambda p: int(p.stem))
    before = path.read_bytes()
    path.write_bytes(before[:-4] + b"\0\0\0\1")
    try:
        with pytest.raises(RunError, match="is damaged: its sha256 is not the one that was committed"):
            unalike.personal.extract(finished, 1, last=True)
    finally:
        path.write_bytes(before)


def test_resuming_on_another_federation_is_refused(table: Federation, tmp_path: Path) -> None:
    folder = stopped(api.prepare("standalone", table, rounds=2, engine="serial"), tmp_path / "run")
    other = federation("wine", clients=2, models=["mlp-5"], min_per_client=20, seed=1)
    with pytest.raises(InputError, match="the partition is not the one"):
        api.resume(folder, other)
    wrong = federation("breast-cancer", clients=2, models=["mlp-5"], min_per_client=20)
    with pytest.raises(InputError, match="was run on other data"):
        api.resume(folder, wrong)


def test_resuming_with_a_changed_model_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "nets.py"
    file.write_text(NET)
    made = federation("breast-cancer", clients=2, models=[f"{file}:net"], min_per_client=20)
    folder = stopped(api.prepare("standalone", made, rounds=2, engine="serial"), tmp_path / "run")
    file.write_text(NET.replace("torch.relu", "torch.tanh"))
    with pytest.raises(InputError, match=r"nets.py:net has changed since"):
        api.resume(folder)


def stopped(prepared: runs.Prepared, folder: Path) -> Path:
    def stop(event: Any) -> None:
        if event["event"] == "round":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.run(prepared, out=folder, listeners=[stop], report=False)
    return folder


def test_bits_do_not_depend_on_where_a_users_file_lies(tmp_path: Path) -> None:
    found = []
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "nets.py").write_text(NET)
        made = federation("breast-cancer", clients=2, models=[f"{tmp_path / name}/nets.py:net"], min_per_client=20)
        found.append(api.run("pfedafm", made, out=tmp_path / name / "run", rounds=1, engine="serial", report=False))
    assert found[0].summary["state_sha256"] == found[1].summary["state_sha256"]
    again = tmp_path / "again"
    main_exits(["run", str(tmp_path / "here" / "run" / "experiment.toml"), "--out", str(again), "--quiet"], 0)
    assert api.Result(again).summary["state_sha256"] == found[0].summary["state_sha256"]


def main_exits(words: list[str], code: int) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == code


def test_a_model_that_computes_after_its_last_layer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NET)
    models.check(Spec(f"{tmp_path}/nets.py:net", (4,), 3))
    with pytest.raises(InputError, match=r"computes more than header\(extractor\(x\)\)"):
        models.check(Spec(f"{tmp_path}/nets.py:net(after=True)", (4,), 3))


def test_frozen_and_unused_parameters_are_left_alone(tmp_path: Path) -> None:
    """With five features `body` is frozen; `spare` is never used. Only `last`, the header, is trained."""
    (tmp_path / "nets.py").write_text(NET)
    spec = Spec(f"{tmp_path}/nets.py:net", (5,), 3)
    weights = models.initial(spec, Key.root(0))
    data = {"x": torch.randn(8, 5), "y": torch.arange(8) % 3}
    loss = lambda p, g, b: models.supervised_loss(spec, Classification(3), p, g, b)  # noqa: E731
    visits = local.batches(data, 4, 2, Key.root(1))
    tuned, _ = local.sgd(loss, {"model": weights}, local.SGD(0.5, 0.9, 0.1), visits, Key.root(2))
    moved = {
        name
        for name, leaf in unalike.tree.flatten(tuned["model"]).items()
        if not torch.equal(leaf, unalike.tree.flatten(weights)[name])
    }
    assert moved == {"header/weight", "header/bias"}


def test_a_run_on_own_data_from_python_can_be_used_afterwards(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rows = [
        f"{x:.3f},{'>=60' if a else '<60'},{int(x > 0)}"
        for x, a in zip(rng.normal(size=80), rng.random(80) < 0.5, strict=True)
    ]
    (tmp_path / "my.csv").write_text("\n".join(["x,age,outcome", *rows]))
    made = federation(str(tmp_path / "my.csv"), label="outcome", clients=2, partition="iid")
    folder = api.run("standalone", made, out=tmp_path / "run", rounds=1, engine="serial", report=False).folder
    assert unalike.load(folder, client=0).classes == ("0", "1")
    main_exits(["predict", str(folder), "--client", "0", "--input", str(tmp_path / "my.csv")], 0)
    (tmp_path / "new.csv").write_text("x,age\n1,young\n")
    main_exits(["predict", str(folder), "--client", "0", "--input", str(tmp_path / "new.csv")], 2)


def test_arrays_in_memory_are_given_again(table: Federation, tmp_path: Path) -> None:
    source = unalike.data.Source("mine", "table", table.source.x, table.source.y, table.source.classes)
    made = federation(source, clients=2, partition="iid", models=["mlp-5"])
    folder = api.run("standalone", made, out=tmp_path / "run", rounds=1, engine="serial", report=False).folder
    assert unalike.load(folder, client=0, federation=made).info == made.clients[0]


def test_a_pool_is_sound_after_a_run_that_failed(table: Federation, tmp_path: Path) -> None:
    """A worker that dies in one method's run must not fail the next one."""
    with Processes(2) as engine:
        one = api.prepare("standalone", table, rounds=2, engine="processes", workers=2)
        runs.create(tmp_path / "a", one)

        def kill(event: Any) -> None:
            if event["event"] == "round":
                engine._pool[0].process.kill()
                engine._pool[0].process.wait()

        with pytest.raises(RunError, match="a worker process ended with code -9"):
            api.drive(tmp_path / "a", one, engine, [kill], report=False)
        runs.create(tmp_path / "b", one)
        api.drive(tmp_path / "b", one, engine, [], report=False)
        assert (tmp_path / "b" / "summary.json").exists()


def test_the_preset_of_the_paper_is_the_papers() -> None:
    found = unalike.prepare("pfedafm", data="wine", clients=2, preset="paper", rounds=3).experiment.parameters
    assert (found["lr"], found["local_epochs"], found["batch_size"], found["alpha0"]) == (0.01, 10, 512, 1.0)
    assert (found["lr_alpha"], found["momentum"], found["weight_decay"], found["rounds"]) == (0.01, 0.9, 1e-3, 3)
    with pytest.raises(InputError, match="standalone has no preset 'paper'; it has none"):
        unalike.prepare("standalone", data="wine", preset="paper")


def test_a_method_without_a_default_says_what_is_missing(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(
        "from dataclasses import dataclass, field\nfrom unalike.algorithms.fedavg import FedAvg\n\n"
        "@dataclass(frozen=True, kw_only=True)\nclass M(FedAvg):\n    mu: float\n"
        "    sizes: list[int] = field(default_factory=lambda: [1, 2])\n"
    )
    with pytest.raises(InputError, match="mu is missing: the method has no default for it"):
        unalike.prepare(f"{tmp_path}/m.py:M", data="wine")
    found = unalike.prepare(f"{tmp_path}/m.py:M", data="wine", mu=0.5, clients=2).experiment.parameters
    assert (found["mu"], found["sizes"]) == (0.5, [1, 2])
