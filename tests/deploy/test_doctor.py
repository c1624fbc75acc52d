"""What doctor says about Flower and the clock."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from importlib import metadata
from pathlib import Path

import pytest

from unalike import doctor


@pytest.mark.parametrize("version", ["1.41.0", "1.42.3"])
def test_a_supported_flower_is_fine(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    assert doctor._flower() == (f"flwr {version}", "ok")


@pytest.mark.parametrize("version", ["1.40.9", "1.43.0.dev20261101", "2.0"])
def test_another_flower_has_a_remedy(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    found, remedy = doctor._flower()
    assert found == f"flwr {version}"
    assert remedy.startswith("pip install 'unalike[flower]'")


def test_without_flower_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", absent)
    assert doctor._flower() == ("without flwr", "pip install 'unalike[flower]'")


def test_the_range_is_that_of_the_extra() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    (first, beyond) = (".".join(map(str, version)) for version in doctor.FLOWER)
    assert f"flwr>={first},<{beyond}" in project["optional-dependencies"]["flower"]


def test_a_clock_before_the_installation_is_wrong() -> None:
    now = datetime.now(UTC)
    assert doctor._clock(now)[1] == "ok"
    assert "timedatectl" in doctor._clock(now - timedelta(days=20_000))[1]


def test_examine_has_both_checks() -> None:
    assert {"clock", "extra flower"} <= {row["check"] for row in doctor.examine()}
