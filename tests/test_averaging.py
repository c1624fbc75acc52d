"""The mean of what has arrived, and the client named when something does not fit."""

from __future__ import annotations

import pytest
import torch

from unalike.averaging import average
from unalike.errors import RunError
from unalike.protocol import Arrival, ClientInfo


def arrival(client: int, weight: float, *values: float) -> Arrival[dict[str, dict[str, torch.Tensor]]]:
    return Arrival(ClientInfo(client, "t", 1), {"theta": {"w": torch.tensor(values)}}, weight, {})


def test_by_hand() -> None:
    """(1 · 2 + 3 · 6) / 4 = 5."""
    assert average([arrival(4, 1.0, 2.0), arrival(7, 3.0, 6.0)], "theta")["w"].tolist() == [5.0]


def test_the_client_that_differs_is_named() -> None:
    with pytest.raises(RunError, match=r"client 7 sent w \(2,\) float32; the others have \(1,\) float32"):
        average([arrival(4, 1.0, 2.0), arrival(7, 1.0, 1.0, 1.0)], "theta")


def test_weights_without_a_sum_are_refused() -> None:
    with pytest.raises(RunError, match="clients 4, 7 sent no positive weight"):
        average([arrival(4, 0.0, 2.0), arrival(7, 0.0, 6.0)], "theta")
