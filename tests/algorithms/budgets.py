"""Small federations with memory budgets for the methods that mind them."""

from __future__ import annotations

from typing import Any

from unalike.data.federation import Federation, federation

WINE = "mlp-5"
NORM = "cnn-5(norm=True, width=0.25)"


def wines(clients: int = 4) -> Federation:
    """Clients with a perceptron of 13, 64, 64 and 3 on the wines; all have all labels."""
    return federation("wine", clients=clients, partition="iid", models=[WINE], min_per_client=20, seed=1)


def digits(clients: int = 4) -> Federation:
    """Clients with a small network with BatchNorm on the digits, of which some lack labels."""
    return federation(
        "digits", rows=400, clients=clients, partition="dirichlet:0.3", min_per_client=30, models=[NORM], seed=2
    )


def needs(method: Any, *levels: Any) -> list[int | None]:
    """What each level needs; None stays."""
    return [None if level is None else method.plan()[level].need for level in levels]
