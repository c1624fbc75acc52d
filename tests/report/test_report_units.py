from __future__ import annotations

import pytest

from unalike.report import units


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (units.fraction(0.88734), "0.887"),
        (units.fraction(None), "–"),
        (units.interval(0.887, 0.01), "0.887 ± 0.010"),
        (units.interval(0.887, None), "0.887"),
        (units.signed(-0.0214), "−2.1"),
        (units.signed(0.05), "+5.0"),
        (units.signed(-0.0001), "0.0"),
        (units.size(0), "0 B"),
        (units.size(2_660_192), "2.66 MB"),
        (units.size(999_700), "1 MB"),
        (units.flops(4.2857e10), "42.9 GFLOP"),
        (units.duration(0.42), "0.42 s"),
        (units.duration(59.6), "1 min 0 s"),
        (units.duration(83), "1 min 23 s"),
        (units.duration(7_385), "2 h 3 min"),
        (units.counted(1, "client"), "1 client"),
        (units.counted(1200, "client"), "1,200 clients"),
        (units.listing([4]), "4"),
        (units.listing([4, 7, 9]), "4, 7 and 9"),
    ],
)
def test_numbers_as_people_read_them(told: str, expected: str) -> None:
    assert told == expected
