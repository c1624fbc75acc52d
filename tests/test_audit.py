"""The pooled audit of a simulated run: its verdict, where it is told, and what cannot be audited."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from unalike import api, runs
from unalike.audit import audit, impressions, verdict
from unalike.engines.checkpoint import Checkpoints

Call = Callable[..., tuple[Any, str, str]]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    keys = {"clients": 3, "models": "cnn-5", "min_per_client": 60, "rounds": 1, "local_epochs": 1}
    folder = tmp_path_factory.mktemp("audit") / "run"
    return api.run("fedavg", out=folder, engine="serial", report=False, **keys).folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def noise(n: int = 40) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


def keep(folder: Path, round: int, images: Tensor) -> None:
    (folder / "keepsakes").mkdir(exist_ok=True)
    labels = torch.zeros(len(images), dtype=torch.long)
    save_file({"images": images, "labels": labels}, folder / "keepsakes" / f"round-{round:06d}.safetensors")


def brightened_rows(folder: Path, client: int, n: int) -> Tensor:
    return (runs.reopen(folder).federation.data(client, "train")["x"][:n] * 0.8 + 0.1).contiguous()


def as_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().to(torch.uint8)


def test_copies_are_found_with_their_round_and_training_row(run: Path) -> None:
    """Seven brightened training images of client 1, sent as bytes, among noise; the round before has noise only."""
    keep(run, 1, noise())
    keep(run, 2, as_bytes(torch.cat([noise(), brightened_rows(run, 1, 7)])))
    told = audit(run)
    rows = runs.reopen(run).federation.rows(1, "train")
    assert told["rounds"] == [{"round": 1, "images": 40, "copies": 0}, {"round": 2, "images": 47, "copies": 7}]
    found = {(one["round"], one["image"], one["client"], one["row"]) for one in told["nearest"] if one["copy"]}
    assert found == {(2, 40 + i, 1, int(rows[i])) for i in range(7)}
    assert told["verdict"] == "Copies found: 7 of 87 impressions are near-copies of training images."
    assert json.loads((run / "audit.json").read_text()) == told
    assert told["impressions"]["margins"]["lowest"] < told["threshold"] <= told["others"]["margins"]["p5"]
    assert f"to training image {rows[0]} of client 1" in verdict(told)


def test_noise_is_no_copy_and_few_copies_may_be_chance(run: Path) -> None:
    keep(run, 1, noise(99))
    told = audit(run)
    assert told["copies"] == 0
    assert told["verdict"].startswith("No copies: none of 99 impressions")
    keep(run, 1, torch.cat([noise(99), brightened_rows(run, 0, 1)]))
    assert audit(run)["verdict"] == (
        "1 of 100 impressions is a near-copy of training images; among as many held-out images up to 3 would be taken "
        "for such: look at them."
    )


def test_all_rows_are_compared(run: Path) -> None:
    """Of all three clients, and what is held out is no training image."""
    keep(run, 1, noise())
    told, found = audit(run), runs.reopen(run).federation
    sizes = {
        part: sum(len(found.rows(client, part)) for client in range(3)) for part in ("train", "validation", "test")
    }
    assert (told["train"], told["held_out"]) == (sizes["train"], sizes["validation"] + sizes["test"])


def test_the_servers_last_impressions_are_audited_as_well(run: Path) -> None:
    checkpoints = Checkpoints(run / "checkpoint")
    index, copies = checkpoints.open(), brightened_rows(run, 2, 5)
    server = {**checkpoints.server(index), "impressions": {"images": copies, "labels": torch.zeros(5).long()}}
    checkpoints.commit(index, server)
    keep(run, 0, noise())
    assert {round: len(images) for round, images in impressions(run).items()} == {0: 40, 1: 5}
    assert audit(run)["copies"] == 5


def test_the_command_prints_the_verdict_and_the_page_shows_it(run: Path, call: Call) -> None:
    keep(run, 1, torch.cat([noise(), brightened_rows(run, 0, 30)]))
    (run / "report.html").write_text("a page, which is written anew")
    code, out, err = call("audit", run)
    assert (code, err) == (0, "")
    assert out.startswith("Copies found: 30 of 70 impressions")
    page = (run / "report.html").read_text()
    assert "Copies found: 30 of 70 impressions are near-copies of training images." in page
    assert "Rounds with copies" in page
    (run / "report.html").unlink()
    code, out, err = call("audit", run, "--json")
    assert (code, err, json.loads(out)) == (0, "", json.loads((run / "audit.json").read_text()))
    assert not (run / "report.html").exists()


def test_what_cannot_be_audited_is_said_in_one_line(run: Path, call: Call) -> None:
    def refused(*words: str) -> None:
        code, out, err = call("audit", run)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert all(word in err for word in words), err
        assert not (run / "audit.json").exists()

    refused("no impressions to audit")
    keep(run, 1, torch.zeros(2, 3, 8, 8))
    refused("impressions of round 1 have the shape (3, 8, 8)", "(1, 8, 8)")
    (run / "keepsakes" / "round-000001.safetensors").write_bytes(b"half")
    refused("round-000001.safetensors is damaged")
    manifest = json.loads((run / "manifest.json").read_text())
    (run / "manifest.json").write_text(json.dumps({**manifest, "data": {**manifest["data"], "rows": 0}}))
    refused("a run over a network", "simulations only")
    (run / "experiment.toml").unlink()
    refused("is no run folder")


def test_a_damaged_audit_is_named_by_the_page(run: Path, call: Call) -> None:
    (run / "audit.json").write_text('{"images": 3}')
    code, _, err = call("report", run)
    assert (code, err.count("\n")) == (2, 1)
    assert "audit.json: verdict" in err
