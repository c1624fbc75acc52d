"""Every method takes its steps on the batches that `batch_size`, `drop_last` and `class_balance` say."""

from __future__ import annotations

from typing import Any

import pytest
from by_hand import close, gradient, job, minus, prepared
from torch._subclasses.fake_tensor import is_fake

from catalogue import NETWORKS
from unalike import local, tree
from unalike.data.federation import Federation, federation


@pytest.fixture(scope="module")
def clients() -> Federation:
    return federation("digits", rows=100, clients=2, partition="iid", models=["cnn-5(norm=True)"])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_smaller_last_batch_is_trained_on_or_dropped(
    name: str, clients: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 rows are 4 batches of 7 and 2 more; FedAPEN holds 3 back, learns λ on them, and has 3 batches and 6 rows."""
    sizes: list[int] = []
    alternate = local._alternate

    def noted(takers: Any, params: Any, given: Any, batch: Any) -> Any:
        sizes.append(len(batch["y"]))
        return alternate(takers, params, given, batch)

    monkeypatch.setattr(local, "_alternate", noted)
    found = {}
    for drop in (False, True):
        sizes.clear()
        method = prepared(name, clients, batch_size=7, drop_last=drop)
        method.client_update(job(method, clients))
        found[drop] = set(sizes)
    last, held = (6, {3}) if name == "fedapen" else (2, set())
    assert found == {False: {7, last} | held, True: {7} | held}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_class_balance_changes_what_is_trained(
    name: str, clients: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No method ignores it: all its batches are weighed, and what comes of them is another than without."""
    weighed: list[bool] = []
    alternate = local._alternate

    def noted(takers: Any, params: Any, given: Any, batch: Any) -> Any:
        if not (batch["y"].is_meta or is_fake(batch["y"])):  # as those are of which memory is predicted
            weighed.append("weight" in batch)
        return alternate(takers, params, given, batch)

    monkeypatch.setattr(local, "_alternate", noted)
    found = {}
    for beta in (0.0, 0.99):
        weighed.clear()
        method = prepared(name, clients, batch_size=32, class_balance=beta)
        update = method.client_update(job(method, clients))
        found[beta] = {"up": update.up, "state": update.state}
        assert set(weighed) == {beta > 0}
    assert not tree.equal(found[0.0], found[0.99])


def test_a_balanced_step_by_hand(alike: Federation) -> None:
    """One batch of all rows at β = 1: the gradient is the mean over the labels of the gradient of each label's loss."""
    method = prepared("fedavg", alike, class_balance=1.0)
    it = job(method, alike)
    of_label = [
        gradient(method, it.down["model"], {name: rows[it.data["y"] == label] for name, rows in it.data.items()})
        for label in it.data["y"].unique()
    ]
    assert len(of_label) > 2
    mean = tree.map_leaves(lambda *leaves: sum(leaves) / len(leaves), *of_label)
    assert close(method.client_update(it).up["model"], minus(it.down["model"], method.lr, mean))
