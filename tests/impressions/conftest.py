"""A small network with BatchNorm that has been trained on digits, to make impressions of."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from unalike import models
from unalike.data.federation import Federation, federation
from unalike.local import SGD, batches, sgd
from unalike.rng import Key

SMALL = "cnn-5(width=0.25, norm=True)"


@pytest.fixture(scope="session")
def small() -> Federation:
    """Three clients with the small network."""
    return federation("digits", rows=400, clients=3, partition="dirichlet:1.0", min_per_client=30, models=[SMALL])


@pytest.fixture(scope="session")
def trained(small: Federation) -> dict[str, Any]:
    """Its weights after six epochs on the rows of the first client."""
    spec, data = small.models[SMALL], small.data(0, "train")
    loss = functools.partial(models.supervised_loss, spec, small.task)
    visits = batches(data, 16, 6, Key.root(1))
    return sgd(loss, {"model": models.initial(spec, Key.root(2))}, SGD(0.05, 0.9), visits, Key.root(3))[0]["model"]
