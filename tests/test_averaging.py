"""The mean of what has arrived, and the client named when something does not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unalike import tree
from unalike.averaging import average, average_held, gather, summed
from unalike.errors import RunError
from unalike.protocol import Arrival, ClientInfo
from unalike.rng import Key


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


def test_a_sum_counts_all_alike_and_names_the_client_that_differs() -> None:
    assert summed([arrival(4, 1.0, 2.0), arrival(7, 3.0, 6.0)], "theta")["w"].tolist() == [8.0]
    with pytest.raises(RunError, match=r"client 7 sent w \(2,\) float32; the others have \(1,\) float32"):
        summed([arrival(4, 1.0, 2.0), arrival(7, 1.0, 1.0, 1.0)], "theta")


def labelled(client: int, **named: list[float]) -> Arrival[dict[str, dict[str, torch.Tensor]]]:
    up = {"means": {name: torch.tensor(values) for name, values in named.items()}} if named else {}
    return Arrival(ClientInfo(client, "t", 1), up, 1.0, {})


def test_what_only_some_clients_send_is_gathered_by_name_in_their_order() -> None:
    found = gather([labelled(4, a=[1.0, 2.0]), labelled(5), labelled(7, b=[3.0], a=[5.0, 6.0])], "means")
    assert {name: leaves.tolist() for name, leaves in found.items()} == {"a": [[1.0, 2.0], [5.0, 6.0]], "b": [[3.0]]}


def test_gathering_names_the_client_that_differs() -> None:
    with pytest.raises(RunError, match=r"client 7 sent a \(2,\) float32; the others have \(1,\) float32"):
        gather([labelled(4, a=[1.0]), labelled(7, a=[1.0, 2.0])], "means")


WHOLE = {"w": torch.full((3, 2), 9.0), "n": torch.tensor(7)}
HOLDS = {
    1: {"w": (torch.tensor([0, 1]), torch.tensor([0])), "n": ()},
    2: {"w": (torch.tensor([1, 2]), torch.tensor([0, 1])), "n": ()},
    3: {"w": ()},
}


def part(client: int, weight: float, w: list[list[float]], n: int | None = None) -> Arrival[Any]:
    counter = {} if n is None else {"n": torch.tensor(n)}
    return Arrival(ClientInfo(client, "t", 1), {"model": {"w": torch.tensor(w), **counter}}, weight, {})


def held(*arrivals: Arrival[Any]) -> dict[str, Any]:
    return average_held(arrivals, "model", WHOLE, lambda a: HOLDS[a.info.id])


def test_the_mean_over_holders_by_hand() -> None:
    """Rows 0, 1 of column 0 with weight 1, rows 1, 2 of both with weight 3: at (1, 0) (1 · 2 + 3 · 4) / 4 = 3.5."""
    found = held(part(1, 1.0, [[1.0], [2.0]], 4), part(2, 3.0, [[4.0, 5.0], [6.0, 7.0]], 5))
    assert found["w"].tolist() == [[1.0, 9.0], [3.5, 5.0], [6.0, 7.0]]  # nobody holds (0, 1)
    assert found["n"].tolist() == 5  # 4.75
    assert found["n"].dtype == torch.int64
    assert WHOLE["w"].eq(9.0).all()


def test_leaves_that_a_client_does_not_hold_are_the_others() -> None:
    found = held(part(1, 1.0, [[1.0], [2.0]], 4), part(3, 1.0, [[3.0, 4.0]] * 3))
    assert found["w"].tolist() == [[2.0, 4.0], [2.5, 4.0], [3.0, 4.0]]
    assert found["n"].tolist() == 4


def test_a_client_of_weight_0_changes_nothing() -> None:
    found = held(part(1, 0.0, [[1.0], [2.0]], 4), part(2, 3.0, [[4.0, 5.0], [6.0, 7.0]], 5))
    assert found["w"].tolist() == [[9.0, 9.0], [4.0, 5.0], [6.0, 7.0]]


def test_where_all_hold_everything_it_is_the_mean_bit_for_bit() -> None:
    generator = Key.root(0).torch()
    models = [{"a": {"w": torch.randn(50, 40, generator=generator)}, "n": torch.tensor(k)} for k in range(7)]
    sent = [Arrival(ClientInfo(k, "t", 1), {"model": m}, 13.0 + k, {}) for k, m in enumerate(models)]
    found = average_held(sent, "model", models[0], lambda a: {"a/w": (), "n": ()})
    assert tree.equal(found, average(sent, "model"))


def test_a_part_of_another_shape_or_name_is_refused_by_client() -> None:
    with pytest.raises(RunError, match=r"client 2 sent w \(1, 2\) float32; the others have \(2, 2\) float32"):
        held(part(2, 1.0, [[1.0, 2.0]], 3))
    with pytest.raises(RunError, match="client 1 did not send n"):
        held(part(1, 1.0, [[1.0], [2.0]]))
    with pytest.raises(RunError, match="clients 3 sent no positive weight"):
        held(part(3, 0.0, [[3.0, 4.0]] * 3))
