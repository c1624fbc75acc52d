"""Who takes part: levels by budget, and draws among those that fit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, overload

import pytest
import torch

from unalike.algorithms.fedavg import FedAvg
from unalike.errors import InputError, NobodyFitsError
from unalike.memory import eligible
from unalike.protocol import ClientInfo
from unalike.rng import Key

NEEDS = {"full": 100, "half": 40, "quarter": 15}


def client(id: int, memory: int | None) -> ClientInfo:
    return ClientInfo(id, "model", 10, memory)


@pytest.mark.parametrize(
    ("memory", "level"), [(100, "full"), (99, "half"), (40, "half"), (39, "quarter"), (15, "quarter"), (14, None)]
)
def test_the_best_level_is_the_first_that_the_budget_holds(memory: int, level: str | None) -> None:
    assert eligible.best(client(0, memory), NEEDS, NEEDS.__getitem__) == level
    assert eligible.fits(client(0, memory), lambda: 40) is (memory >= 40)


def test_without_a_budget_no_need_is_asked_for() -> None:
    def unknown(level: str = "") -> int:
        raise AssertionError(level)

    assert eligible.best(client(0, None), NEEDS, unknown) == "full"
    assert eligible.fits(client(0, None), unknown)
    eligible.require_some("m", [client(0, None), client(1, 5)], unknown, "the step")


def test_where_all_take_part_the_draw_stays_as_it_was() -> None:
    clients = [client(k, 100) for k in range(10)]
    drawn = FedAvg(fraction=0.4).select({"model": {}}, clients, 1, Key.root(0))
    assert len(drawn) == 4
    assert eligible.instead(drawn, clients, lambda c: True, Key.root(0)) is drawn


def test_all_that_fit_are_equally_likely_and_nobody_else_is_drawn() -> None:
    """2 of 6 where clients 1, 2, 5 fit: each is in two thirds of the draws, whatever the first draw was."""
    clients, counts = [client(k, 100 if k in (1, 2, 5) else 1) for k in range(6)], Counter[int]()
    for seed in range(600):
        drawn = FedAvg(fraction=2 / 6).select({"model": {}}, clients, 1, Key.root(seed))
        found = eligible.instead(drawn, clients, lambda c: eligible.fits(c, lambda: 50), Key.root(seed))
        assert len({c.id for c in found}) == 2
        assert [c.id for c in found] == sorted(c.id for c in found)
        counts.update(c.id for c in found)
    assert set(counts) == {1, 2, 5}
    assert all(abs(n - 400) < 50 for n in counts.values()), counts


def test_fewer_that_fit_all_take_part() -> None:
    clients = [client(k, k) for k in range(6)]
    found = eligible.instead(clients[:4], clients, lambda c: eligible.fits(c, lambda: 4), Key.root(0))
    assert [c.id for c in found] == [4, 5]
    assert eligible.instead(clients[:4], clients, lambda c: False, Key.root(0)) == []


def test_positions_are_each_drawn_once() -> None:
    assert sorted(eligible._shuffled(50, Key.root(3))) == list(range(50))
    orders = Counter(tuple(eligible._shuffled(3, Key.root(seed))) for seed in range(600))
    assert len(orders) == 6
    assert all(abs(n - 100) < 40 for n in orders.values()), orders


def test_a_client_with_a_budget_evaluates_as_many_rows_as_it_holds() -> None:
    """10 bytes a row: 32 rows where they and two more fit, else 8 at most, of 55 bytes 4, of 5 one all the same."""

    def need(rows: int) -> int:
        assert rows > 1, "one row is no batch"
        return 10 * rows

    budgets = (None, 10**6, 340, 339, 80, 79, 55, 39, 5)
    rows = [eligible.rows_at_once(client(0, memory), need) for memory in budgets]
    assert rows == [None, 32, 32, 8, 8, 4, 4, 2, 1]


def test_a_client_that_could_not_predict_a_row_is_named_before_anything_starts() -> None:
    eligible.require_prediction("m", [client(0, None), client(1, 2**20)], lambda: 2**20)
    with pytest.raises(
        InputError, match=r"^m: to predict with the whole model takes 2\.00 MiB, and client 1 has 1\.00"
    ):
        eligible.require_prediction("m", [client(0, None), client(1, 2**20)], lambda: 2**21)


def test_rows_pass_in_parts() -> None:
    seen, x = list[int](), torch.arange(10.0).reshape(5, 2)

    def double(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return 2 * part

    assert eligible.in_parts(double, x, 2).equal(2 * x)
    assert eligible.in_parts(double, x, None).equal(2 * x)
    assert seen == [2, 2, 1, 5]


class Million(Sequence[ClientInfo]):
    """Clients that are made when they are asked for; every second one has little memory."""

    def __init__(self) -> None:
        self.asked = 0

    def __len__(self) -> int:
        return 10**6

    @overload
    def __getitem__(self, index: int) -> ClientInfo: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ClientInfo]: ...
    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < 10**6:
            raise IndexError
        self.asked += 1
        return client(index, 100 * (index % 2))


def test_of_a_million_clients_only_a_few_are_looked_at() -> None:
    clients = Million()
    drawn = [clients[k] for k in range(20)]
    found = eligible.instead(drawn, clients, lambda c: eligible.fits(c, lambda: 50), Key.root(0))
    assert len(found) == 20
    assert all(c.id % 2 for c in found)
    assert clients.asked < 100


def test_nobody_who_fits_is_an_error_that_names_need_and_budget() -> None:
    clients = [client(0, 2**20), client(1, 3 * 2**20), client(2, 2**19)]
    eligible.require_some("m", clients, lambda: 3 * 2**20, "the step")
    with pytest.raises(NobodyFitsError) as caught:
        eligible.require_some("m", clients, lambda: 4 * 2**20, "the smallest width")
    assert "m: no client's memory holds the smallest width: it needs 4.0 MiB" in str(caught.value)
    assert "the largest budget is 3.0 MiB (client 1)" in str(caught.value)
