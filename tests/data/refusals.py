"""What tests of data say of bad input."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from unalike.errors import InputError


def refused(call: Callable[[], object], *words: str) -> None:
    """One line, with all of these words in it."""
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value), str(caught.value)
