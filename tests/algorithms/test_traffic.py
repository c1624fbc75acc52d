"""What a run counts as sent is, to the byte, what each paper sends. Sizes are computed by hand from the layers."""

from __future__ import annotations

from pathlib import Path

import pytest
from by_hand import CNN5, EXTRACTOR, HEADER

from unalike import ALGORITHMS, api
from unalike.data.federation import Federation, federation

FLOAT, CLIENTS, ROUNDS = 4, 2, 2
FIXED = {
    "pfedafm": EXTRACTOR,
    "standalone": 0,
    "lg-fedavg": HEADER,
    "fml": CNN5,
    "fedapen": CNN5,
    "fedavg": CNN5,
    "fedavg-ft": CNN5,
    "fedprox": CNN5,
    "fedbn": CNN5,  # all but the BatchNorm layers, which cnn-5 has none of
    "fedrep": EXTRACTOR,
    "ditto": CNN5,
    "scaffold": 2 * CNN5,
    "vhl": CNN5,
}
"""Scalars that each client sends and receives in a round."""
BY_LABEL = {"fd": 10, "fedproto": 500}
"""Scalars for each label: those that a client has go up, those that anyone has come down from the second round on."""


@pytest.fixture(scope="module")
def clients() -> Federation:
    return federation("digits", rows=100, clients=CLIENTS, partition="dirichlet:0.1", min_per_client=20, seed=2)


def sent(name: str, clients: Federation, folder: Path) -> tuple[int, int]:
    model = "cnn-5(norm=True)" if name == "fedbn" else "cnn-5"
    keys = {"rounds": ROUNDS, "local_epochs": 1, "shared_model": model, "engine": "serial"}
    run = api.run(name, clients, out=folder / name, report=False, **keys)
    return run.summary["bytes"]["up"], run.summary["bytes"]["down"]


def test_the_sizes_are_those_of_the_papers_table() -> None:
    assert (EXTRACTOR, CNN5) == (520_248, 525_258)
    assert FIXED.keys() | BY_LABEL.keys() <= {*ALGORITHMS}  # FedKD's varies with the updates: test_fedkd.py


@pytest.mark.parametrize("name", FIXED)
def test_bytes_of_a_run_are_what_the_paper_sends(name: str, clients: Federation, tmp_path: Path) -> None:
    each_way = FIXED[name] * FLOAT * CLIENTS * ROUNDS
    assert sent(name, clients, tmp_path) == (each_way, each_way)


@pytest.mark.parametrize("name", BY_LABEL)
def test_bytes_of_what_is_sent_by_label(name: str, clients: Federation, tmp_path: Path) -> None:
    labels = [len(set(clients.data(k, "train")["y"].tolist())) for k in range(CLIENTS)]
    assert min(labels) < 10, "the clients are to differ in the labels that they have"
    up = sum(labels) * BY_LABEL[name] * FLOAT * ROUNDS
    anyones = len({label for k in range(CLIENTS) for label in clients.data(k, "train")["y"].tolist()})
    down = anyones * BY_LABEL[name] * FLOAT * CLIENTS * (ROUNDS - 1)
    assert sent(name, clients, tmp_path) == (up, down)


def test_bytes_of_fedcurv(clients: Federation, tmp_path: Path) -> None:
    """w, u and v each way, but w alone down in the first round."""
    up, down = 3 * CNN5 * FLOAT * CLIENTS * ROUNDS, (1 + 3 * (ROUNDS - 1)) * CNN5 * FLOAT * CLIENTS
    assert sent("fedcurv", clients, tmp_path) == (up, down)
