"""The mean of what has arrived, and the client named when something does not fit."""

from __future__ import annotations

import pytest
import torch

from unalike.averaging import average, gather
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


def labelled(client: int, **named: list[float]) -> Arrival[dict[str, dict[str, torch.Tensor]]]:
    up = {"means": {name: torch.tensor(values) for name, values in named.items()}} if named else {}
    return Arrival(ClientInfo(client, "t", 1), up, 1.0, {})


def test_what_only_some_clients_send_is_gathered_by_name_in_their_order() -> None:
    found = gather([labelled(4, a=[1.0, 2.0]), labelled(5), labelled(7, b=[3.0], a=[5.0, 6.0])], "means")
    assert {name: leaves.tolist() for name, leaves in found.items()} == {"a": [[1.0, 2.0], [5.0, 6.0]], "b": [[3.0]]}


def test_gathering_names_the_client_that_differs() -> None:
    with pytest.raises(RunError, match=r"client 7 sent a \(2,\) float32; the others have \(1,\) float32"):
        gather([labelled(4, a=[1.0]), labelled(7, a=[1.0, 2.0])], "means")
