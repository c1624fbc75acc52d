"""deployment.toml and site.toml: read, refused in one line, and led to rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unalike.data.federation import PARTS, Federation, federation
from unalike.data.schema import Schema
from unalike.deploy import certificates
from unalike.deploy.folder import (
    Deployment,
    SiteConfig,
    Stage,
    at_home,
    checked,
    is_loopback,
    read_deployment,
    read_site,
    site_federation,
)
from unalike.errors import InputError
from unalike.memory import available

ADDRESS = "127.0.0.1:9092"
DEPLOYMENT: dict[str, Any] = {"name": "lungs", "address": ADDRESS, "sites": ("berlin", "paris", "rome"), "clients": 3}
SITE: dict[str, Any] = {"name": "berlin", "clients": (1,), "superlink": ADDRESS}
TABLE = Schema(kind="table", shape=(2,), classes=("sick", "well"), features=("age", "dose"), impute="mean")


def site(**keys: Any) -> SiteConfig:
    return checked(SiteConfig, {**SITE, **keys})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A site's folder with all that it needs but site.toml."""
    certificates.make_authority(tmp_path)
    certificates.make_node_key(tmp_path)
    return tmp_path


def write(folder: Path, one: Deployment | SiteConfig) -> Path:
    name = "site.toml" if isinstance(one, SiteConfig) else "deployment.toml"
    (folder / name).write_text(one.to_toml())
    return folder


@pytest.mark.parametrize("more", [{}, {"stage": "canary", "canary": ("rome",), "min_sites": 2, "insecure": True}])
def test_a_deployment_reads_back_equal(more: dict[str, Any], tmp_path: Path) -> None:
    wanted = checked(Deployment, {**DEPLOYMENT, **more})
    assert read_deployment(write(tmp_path, wanted)) == wanted
    assert wanted.stage is Stage(more.get("stage", "shared"))


def test_a_site_reads_back_equal_with_its_paths_counted_from_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mine.csv").write_text("age,label\n")
    wanted = site(
        data="mine.csv",
        memory="2GB",
        modalities=("x-ray",),
        trust=("my.py:M", "m.n:f"),
    )
    monkeypatch.chdir(folder.parent)
    found = read_site(write(Path(folder.name), wanted))
    assert found == wanted.located(folder)
    assert (found.data, found.key, found.state) == tuple(str(folder / n) for n in ("mine.csv", "node.key", "state"))
    assert found.memory == 2_000_000_000
    assert found.trust == (f"{folder}/my.py:M", "m.n:f")
    assert site(data="digits").located(folder).data == "digits"


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"adress": "x"}, "unknown key 'adress': did you mean address"),
        ({"address": None}, "address is missing: host:port by which sites reach the server"),
        ({"address": "example.org"}, "address = 'example.org' is refused: it should be host:port"),
        ({"address": "::1:9092"}, r"host:port, such as .*\[::1\]:9092"),
        ({"address": "example.org:70000"}, "a port in 1..65535"),
        ({"name": "A b"}, "name = 'A b' is refused: it should be a name of up to 40 small letters"),
        ({"sites": ()}, "sites = .* is refused"),
        ({"sites": ("a", "a")}, "a list of different names"),
        ({"sites": ("../a",)}, "small letters, digits and inner hyphens"),
        ({"min_sites": 4}, "min_sites = 4 is refused: it should be at most 3, the number of sites"),
        ({"canary": ("oslo",)}, "names among berlin, paris, rome"),
        ({"stage": "canary"}, "at least one site, as the stage is canary"),
        ({"stage": "all"}, "stage = 'all' is refused: it should be 'local', 'canary' or 'shared'"),
    ],
)
def test_what_is_wrong_with_a_deployment_is_named(keys: dict[str, Any], words: str) -> None:
    given = {key: value for key, value in {**DEPLOYMENT, **keys}.items() if value is not None}
    with pytest.raises(InputError, match=words):
        checked(Deployment, given)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"clients": ()}, "clients = .* is refused"),
        ({"clients": (1, 1)}, "a list of different numbers"),
        ({"clients": (-1,)}, "greater than or equal to 0"),
        ({"memory": "much"}, "memory = 'much' is refused"),
        ({"memory": 0}, "memory = 0 is refused: it should be greater than 0"),
        ({"split": "60/40"}, "three positive shares such as 60/20/20"),
        ({"port": 70000}, "port = 70000 is refused"),
        ({"impute": "guess"}, "impute = 'guess' is refused"),
    ],
)
def test_what_is_wrong_with_a_site_is_named(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        site(**keys)


def test_a_folder_without_the_file_and_a_file_that_is_no_toml_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no folder of a site: it has no site.toml"):
        read_site(tmp_path)
    (tmp_path / "deployment.toml").write_text("name")
    with pytest.raises(InputError, match=r"deployment.toml is not TOML"):
        read_deployment(tmp_path)


def test_plaintext_beyond_loopback_is_spelled_out_twice(folder: Path) -> None:
    far = {"address": "fl.example.org:9092", "insecure": True}
    write(folder, checked(Deployment, {**DEPLOYMENT, **far}))
    write(folder, site(superlink="fl.example.org:9092", insecure=True))
    for read in (read_deployment, read_site):
        with pytest.raises(InputError, match=r"in plain text to fl\.example\.org:9092"):
            read(folder)
        assert read(folder, allow_insecure=True).insecure
    write(folder, site(superlink="fl.example.org:9092"))
    assert not read_site(folder, allow_insecure=True).insecure
    write(folder, site(insecure=True))
    assert read_site(folder).insecure


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("localhost:1", True),
        ("127.8.0.1:1", True),
        ("[::1]:1", True),
        ("0.0.0.0:1", False),
        ("localhost.evil.org:1", False),
    ],
)
def test_loopback_is_told_from_the_rest(address: str, inside: bool) -> None:
    assert is_loopback(address) is inside


@pytest.mark.parametrize("name", ["ca.crt", "node.key"])
def test_a_missing_certificate_or_key_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"there is no file .*{name}"):
        read_site(write(folder, site()))


def test_a_key_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "node.key").chmod(0o640)
    with pytest.raises(InputError, match="can be read by other users: chmod 600"):
        read_site(write(folder, site()))


def test_clients_go_round_the_sites() -> None:
    found = checked(Deployment, {**DEPLOYMENT, "clients": 5}).clients_of_sites()
    assert found == {"berlin": (0, 3), "paris": (1, 4), "rome": (2,)}


def test_a_site_uses_its_own_copy_of_what_it_trusts_and_nothing_else() -> None:
    trust = ("/site/code/nets.py:net", "m.n:f")
    assert at_home("/server/nets.py:net(width=3)", trust) == "/site/code/nets.py:net(width=3)"
    assert at_home("cnn-1", ()) == "cnn-1"
    assert at_home("m.n:f", trust) == "m.n:f"
    for name in ("/server/nets.py:other", "os:system", "/server/evil.py:net"):
        with pytest.raises(InputError, match="that this site does not trust"):
            at_home(name, trust)


# rows


def test_a_saved_share_is_taken_as_it_is(unlike: Federation, tmp_path: Path) -> None:
    unlike.only([1]).save(tmp_path / "data")
    found = site_federation(site(memory="1GB", modalities=("ink",)).located(tmp_path), Schema.of(unlike.source))
    for part in PARTS:
        assert torch.equal(found.data(1, part)["x"], unlike.data(1, part)["x"])
    assert (found.clients[1].memory, found.clients[1].modalities) == (10**9, ("ink",))
    assert found.clients[0] == unlike.clients[0]
    with pytest.raises(InputError, match="no rows of client 2: take the folder of site berlin"):
        site_federation(site(clients=(2,)).located(tmp_path), Schema.of(unlike.source))
    with pytest.raises(InputError, match="kind is image, agreed is table"):
        site_federation(site().located(tmp_path), TABLE)


def test_a_sites_own_file_in_another_order_takes_its_clients_place(tmp_path: Path) -> None:
    rows = "".join(f"{k / 10},well,{k}\n" for k in range(10))
    (tmp_path / "mine.csv").write_text(f"dose,outcome,age\n{rows}")
    own = site(clients=(3,), data="mine.csv", label="outcome").located(tmp_path)
    found = site_federation(own, TABLE)
    assert [len(found.rows(3, part)) for part in PARTS] == [6, 2, 2]
    assert sorted(found.source.x[:, 0]) == list(range(10))
    assert set(found.source.y) == {1}
    assert [(info.id, info.n) for info in found.clients] == [(0, 0), (1, 0), (2, 0), (3, 6)]
    assert found.data(3, "train")["x"].shape == (6, 2)
    assert found.partition.hash == site_federation(own, TABLE).partition.hash
    other = own.model_copy(update={"seed": 1})
    assert found.partition.hash != site_federation(other, TABLE).partition.hash


def test_several_clients_of_a_site_divide_its_rows_by_column(tmp_path: Path) -> None:
    rows = "".join(f"{k},0,sick,{'east' if k < 6 else 'west'}\n" for k in range(16))
    (tmp_path / "mine.csv").write_text(f"age,dose,label,ward\n{rows}")
    own = site(clients=(4, 1), data="mine.csv", site_column="ward").located(tmp_path)
    found = site_federation(own, TABLE)
    ages = {k: sorted(np.concatenate([found.source.x[found.rows(k, part), 0] for part in PARTS])) for k in range(5)}
    assert ages == {0: [], 1: list(range(6, 16)), 2: [], 3: [], 4: list(range(6))}
    with pytest.raises(InputError, match="site has 2 clients, not 3"):
        site_federation(own.model_copy(update={"clients": (0, 1, 2)}), TABLE)


def test_gaps_are_filled_as_agreed_without_a_word_in_the_sites_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("age,dose,label\n" + "1,,well\n2,3,well\n" * 5)
    found = site_federation(site(data="mine.csv").located(tmp_path), TABLE)
    assert found.source.impute == "mean"
    assert torch.isfinite(found.data(1, "train")["x"]).all()


def test_a_site_with_too_few_rows_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("age,dose,label\n1,2,well\n3,4,well\n")
    with pytest.raises(InputError, match="site berlin has 2 rows: each of its 1 clients needs 3"):
        site_federation(site(data="mine.csv").located(tmp_path), TABLE)


def test_a_named_set_serves_as_a_sites_own(tmp_path: Path) -> None:
    whole = federation("breast-cancer", clients=1, partition="iid")
    found = site_federation(site(data="breast-cancer", clients=(0,)).located(tmp_path), Schema.of(whole.source))
    assert len(found.source.y) == 569


def test_a_site_says_the_memory_that_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The least of what the machine has and what its container leaves, in bytes."""
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2048 kB\n")
    monkeypatch.setattr(available, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(available, "CGROUP", tmp_path)
    assert available.available() == 2048 * 1024
    (tmp_path / "memory.max").write_text("1500000\n")
    (tmp_path / "memory.current").write_text("500000\n")
    assert available.available() == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available.available() == 2048 * 1024

    write(tmp_path, site(insecure=True, measure_memory=True))
    assert read_site(tmp_path).memory == 2048 * 1024
    write(tmp_path, site(insecure=True, measure_memory=True, memory="1GB"))
    with pytest.raises(InputError, match="memory is given and measure_memory is true: remove one of them"):
        read_site(tmp_path)
    (tmp_path / "meminfo").unlink()
    with pytest.raises(InputError, match="free memory of cpu cannot be measured here: give it in bytes"):
        available.available()
