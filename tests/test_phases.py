"""The order of the phases and the rounds that each may have."""

from __future__ import annotations

import pytest

from unalike.phases import Phase, limit, order, share


def names(phases: tuple[Phase, ...]) -> str:
    return " ".join(f"{phase.kind[0]}{phase.step}" for phase in phases)


def test_a_chain_is_shrunk_from_its_end_and_grown_from_its_beginning() -> None:
    assert names(order(4)) == "s4 m4 s3 m3 s2 m2 g1 g2 g3 g4"
    assert names(order(3, mapping=False)) == "s3 s2 g1 g2 g3"
    assert names(order(3, shrinking=False)) == "g1 g2 g3"
    assert names(order(1)) == "g1"


def test_shares_by_hand() -> None:
    """Of 33 rounds: 3 · 1 + 3 · 0.5 + 4 · 3 = 16.5 are 2 each for a weight of 1."""
    ahead = order(4)
    assert [share(ahead[i:], 33) for i in (0, 6)] == [2, 8]
    assert share(ahead[1:], 31) == 1
    assert share(ahead[-1:], 7) == 7


@pytest.mark.parametrize("rounds", [10, 11, 17, 40, 41, 80, 1000])
def test_every_phase_has_its_rounds_and_together_they_have_all(rounds: int) -> None:
    ahead, left, given = order(4), rounds, []
    for i in range(len(ahead)):
        given.append(share(ahead[i:], left))
        left -= given[-1]
    assert min(given) >= 1
    assert sum(given) == rounds
    if rounds >= 40:
        assert sum(given[-4:]) > rounds / 2


def test_a_run_too_short_for_all_phases_goes_as_far_as_it_gets() -> None:
    assert [share(order(4)[i:], 3 - i) for i in range(3)] == [1, 1, 1]


def test_limits_that_are_given_go_before_shares() -> None:
    ahead = order(4)
    assert limit(ahead, 100, most=15) == 15
    assert limit(ahead, 8, most=15) == 8
    assert limit(ahead, 33) == share(ahead, 33)
    assert limit(ahead[1:], 1000, most=15, most_mapping=10) == 10
    assert limit(ahead[1:], 31, most_mapping=10) == 1


def test_a_phase_says_what_it_does() -> None:
    assert str(Phase("shrink", 3)) == "shrink block 3"
