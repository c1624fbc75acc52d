"""Serial, processes, killed and resumed, interrupted and repeated runs end in the same bits.

On the digits with three architectures, one of which has both BatchNorm (buffers) and dropout (torch's own generator).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import seeing
from unalike import api, cli, compare
from unalike.engines.checkpoint import Checkpoints

BOTH = "cnn-5(norm=True, dropout=0.2)"
KEYS: dict[str, Any] = {
    "data": "digits",
    "clients": 4,
    "fraction": 0.5,
    "partition": "dirichlet:1.0",
    "min_per_client": 60,
    "models": f"cnn-5,cnn-4,{BOTH}",
    "rounds": 3,
    "local_epochs": 1,
    "batch_size": 32,
    "seed": 5,
}
METHODS = ("pfedafm", "standalone", "fedavg")


def keys_of(method: str) -> dict[str, Any]:
    return {**KEYS, "shared_model": BOTH} if method == "fedavg" else KEYS


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an undisturbed serial run of every method."""
    folder = tmp_path_factory.mktemp("serial")
    for name in METHODS:
        api.run(name, out=folder / name, engine="serial", report=False, **keys_of(name))
    return folder


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as one comparison in two worker processes, which serve one run after the other."""
    own = {name: {"shared_model": BOTH} if name == "fedavg" else {} for name in METHODS}
    common = {key: value for key, value in KEYS.items() if key != "seed"}
    folder = tmp_path_factory.mktemp("pooled")
    lines = compare(own, out=folder, seeds=[KEYS["seed"]], engine="processes", workers=2, report=False, **common)
    assert [line["status"] for line in lines] == ["done"] * 3, lines
    return folder


def summary(folder: Path) -> dict[str, Any]:
    """What must not depend on how a run was carried out. (Heads of messages tell times, of one digit more or less.)"""
    found = api.Result(folder).summary
    return {k: v for k, v in found.items() if k not in ("seconds", "peak_memory_bytes", "wire_bytes")}


def started(method: str, out: Path, keys: Mapping[str, Any], *options: str) -> subprocess.Popen[str]:
    given = [part for name, value in keys.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    command = [sys.executable, "-m", "unalike", "run", method, *given, *options, "--out", str(out), "--quiet"]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # what runs in the background ignores it
    )


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not happened():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.003)


def in_the_second_round(out: Path, keeps_states: bool) -> Callable[[], bool]:
    """Round 1 is committed and, where clients keep states, one of round 2 is written."""

    def happened() -> bool:
        if not (out / "checkpoint" / "round-000001.json").exists():
            return False
        return not keeps_states or any(out.glob("checkpoint/clients/*/2.safetensors"))

    return happened


def children(pid: int) -> list[int]:
    if not Path(f"/proc/{pid}/stat").exists():
        pytest.skip("needs Linux's /proc")
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def require_gone(workers: list[int]) -> None:
    limit = time.monotonic() + 10
    while any(map(alive, workers)) and time.monotonic() < limit:
        time.sleep(0.05)
    assert not [pid for pid in workers if alive(pid)], "workers outlive their run"


def resumed(folder: Path) -> dict[str, Any]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["resume", str(folder), "--quiet"])
    assert ended.value.code == 0
    told = [(event["event"], event["round"]) for event in api.Result(folder).events()]
    assert told == [("start", 0), ("round", 1), ("start", 1), ("round", 2), ("round", 3), ("end", 3)]
    return summary(folder)


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_in_the_bits_of_one(method: str, serial: Path, pooled: Path) -> None:
    assert summary(pooled / f"{method}-seed5") == summary(serial / method)


def test_the_methods_differ(serial: Path) -> None:
    """So that equality above says something."""
    assert len({api.Result(serial / name).summary["state_sha256"] for name in METHODS}) == 3


@pytest.mark.parametrize(
    ("method", "engine"), [("pfedafm", "processes"), ("standalone", "serial"), ("fedavg", "serial")]
)
def test_a_run_killed_within_a_round_resumes_to_the_same_bits(
    method: str, engine: str, serial: Path, tmp_path: Path
) -> None:
    """kill -9 in the middle of round 2; its workers end with it."""
    out = tmp_path / "run"
    process = started(method, out, keys_of(method), "--engine", engine, "--workers", "2")
    wait_for(in_the_second_round(out, keeps_states=method != "fedavg"), process)
    time.sleep(0.03)
    workers = children(process.pid)
    assert len(workers) == (2 if engine == "processes" else 0)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    require_gone(workers)
    assert Checkpoints(out / "checkpoint").read().round == 1
    assert not (out / "summary.json").exists()
    with (out / "events.jsonl").open("a") as file:  # as if it had died between an event and its commit
        file.write('{"event": "round", "round": 2}\n{"eve')
    assert resumed(out) == summary(serial / method)


@pytest.mark.parametrize("method", ["feddpa", "feddat"])
def test_a_foundation_models_run_killed_in_its_last_round_resumes_to_the_same_bits(
    method: str, eight: Path, tiny_lm: Path, foundations: Mapping[str, Path], tmp_path: Path
) -> None:
    """kill -9 of two workers' run: in FedDPA-F's last phase, and in FedDAT's with a client that sees no image."""
    common = {"partition": "site", "local_epochs": 1, "seed": 5}
    squares, vilt = seeing.write_questions(tmp_path / "squares"), f"vl:{foundations['vilt']}"
    own: dict[str, dict[str, Any]] = {
        "feddpa": {"data": eight, "models": f"lm:{tiny_lm}(r=2)", "variant": "F", "rounds": 2, "max_new_tokens": 2},
        "feddat": {"data": squares, "models": vilt, "modalities": "2:text", "rounds": 3},
    }
    keys = common | own[method]
    whole = api.run(method, out=tmp_path / "whole", engine="serial", report=False, **keys)
    out = tmp_path / "run"
    process = started(method, out, keys, "--engine", "processes", "--workers", "2")
    wait_for(lambda: (out / "checkpoint" / "round-000002.json").exists(), process)
    workers = children(process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    require_gone(workers)
    assert not (out / "summary.json").exists()
    api.resume(out, report=False)
    assert summary(out) == summary(whole.folder)


def test_an_interrupted_run_says_so_in_one_line_and_resumes(serial: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of round 2."""
    out = tmp_path / "run"
    process = started("pfedafm", out, KEYS, "--engine", "processes", "--workers", "2")
    wait_for(in_the_second_round(out, keeps_states=True), process)
    workers = children(process.pid)
    process.send_signal(signal.SIGINT)
    said, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert said == ""
    assert complaint.splitlines() == [
        "unalike: interrupted: continue a run from its last committed round with: unalike resume RUN"
    ]
    assert len(workers) == 2
    require_gone(workers)
    assert resumed(out) == summary(serial / "pfedafm")


def test_the_resolved_experiment_repeats_the_run(serial: Path, tmp_path: Path) -> None:
    """From any folder, on the command line."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(serial / "pfedafm" / "experiment.toml"), "--out", str(tmp_path / "again"), "--quiet"])
    assert ended.value.code == 0
    assert summary(tmp_path / "again") == summary(serial / "pfedafm")
    written = (serial / "pfedafm" / "experiment.toml").read_bytes()
    assert (tmp_path / "again" / "experiment.toml").read_bytes() == written
