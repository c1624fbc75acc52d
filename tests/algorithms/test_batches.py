"""Every method takes its steps on the batches that `batch_size` and `drop_last` say."""

from __future__ import annotations

from typing import Any

import pytest
from by_hand import job, prepared

from unalike import ALGORITHMS, local
from unalike.data.federation import Federation, federation


@pytest.fixture(scope="module")
def clients() -> Federation:
    return federation("digits", rows=100, clients=2, partition="iid", models=["cnn-5(norm=True)"])


@pytest.mark.parametrize("name", ALGORITHMS)
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
