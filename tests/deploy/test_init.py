"""The folder that `unalike deploy init` writes: whole or not at all, and read back as it was meant."""

from __future__ import annotations

import ast
import importlib
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch

from unalike import config, runs
from unalike.data.federation import PARTS
from unalike.data.schema import Schema
from unalike.deploy import certificates, init, wheels
from unalike.deploy.folder import at_home, read_deployment, read_site, site_federation
from unalike.errors import InputError

NAMES = ("berlin", "paris")
KEYS = {"method": "pfedafm", "clients": 3, "seed": 7, "min_per_client": 60, "partition": "dirichlet:1.0", "rounds": 2}
TOP = "README.md experiment.toml deployment.toml schema.json wheels.txt Dockerfile .dockerignore"
APP = "pyproject.toml unalike_app/__init__.py unalike_app/server.py unalike_app/client.py"
SERVER = "ca.crt ca.key server.crt server.key unalike-server.service"
SITE = """site.toml ca.crt node.key node.pub schema.json unalike-site.service
data/federation.json data/partition.npz data/x.npy data/y.npy"""
NETS = """
from torch import nn

def net(input, classes, width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, classes))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("deploy") / "lungs $1 100%"
    init.init(made, config.resolve(KEYS), NAMES, "fl.example.org:9092", hosts=["10.0.0.7"])
    return made


def test_everything_is_there(folder: Path) -> None:
    expected = {Path(line) for line in TOP.split()} | {Path("app") / line for line in APP.split()}
    expected |= {Path("server") / line for line in SERVER.split()}
    expected |= {Path("sites") / name / line for name in NAMES for line in SITE.split()}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == expected
    for private in (folder / "server", *(folder / "sites").iterdir(), folder / "sites/paris/state"):
        assert private.stat().st_mode & 0o777 == 0o700
    assert not list(folder.parent.glob(".*"))


def test_forgetting_is_not_measured_over_a_network(tmp_path: Path) -> None:
    asked = config.resolve({**KEYS, "method": "fedavg", "models": ["cnn-5"], "forgetting": True})
    with pytest.raises(InputError, match="sites do not tell the counts"):
        init.init(tmp_path / "deploy", asked, NAMES, "fl.example.org:9092")
    assert not (tmp_path / "deploy").exists()


def test_the_files_read_back_as_they_were_meant(folder: Path) -> None:
    prepared = runs.prepare(config.resolve(KEYS))
    assert config.from_toml(folder / "experiment.toml") == prepared.experiment
    deployment = read_deployment(folder)
    assert (deployment.sites, deployment.min_sites, deployment.address) == (NAMES, 2, "fl.example.org:9092")
    assert Schema.from_json(folder / "schema.json") == Schema.of(prepared.federation.source)
    for name, clients in {"berlin": (0, 2), "paris": (1,)}.items():
        place = folder / "sites" / name
        wanted = init.site_config(name, clients, deployment, prepared)
        site = read_site(place)
        assert site == wanted.located(place)
        share = site_federation(site, Schema.from_json(place / "schema.json"))
        for client in range(3):
            for part in PARTS if client in clients else ():
                assert torch.equal(share.data(client, part)["x"], prepared.federation.data(client, part)["x"])
        assert len(share.source.y) == sum(len(share.rows(k, part)) for k in clients for part in PARTS)


def test_the_app_names_its_folder_its_version_and_both_sides(folder: Path) -> None:
    app = tomllib.loads((folder / "app/pyproject.toml").read_text())
    assert app["tool"]["flwr"]["app"]["config"] == {"folder": str(folder)}
    assert app["project"]["dependencies"] == [f"unalike=={metadata.version('unalike')}"]
    ours = {"serverapp": "unalike.deploy.serverapp", "clientapp": "unalike.engines.flower.client"}
    for side, place in app["tool"]["flwr"]["app"]["components"].items():
        module, _, name = place.partition(":")
        body = ast.parse((folder / "app" / (module.replace(".", "/") + ".py")).read_text()).body
        (line,) = [node for node in body if isinstance(node, ast.ImportFrom)]
        assert (line.module, line.names[0].name) == (ours[side], name)
        assert hasattr(importlib.import_module(ours[side]), name)


def test_the_server_is_known_by_its_address_and_on_loopback(folder: Path) -> None:
    found = {*certificates.hosts(folder / "server/server.crt")}
    assert found == {"fl.example.org", "localhost", "127.0.0.1", "::1", "10.0.0.7"}
    assert certificates.warnings((folder / "server").glob("*.crt")) == []


def test_renewing_keeps_hosts_and_authority(folder: Path) -> None:
    before = {name: (folder / "server" / name).read_bytes() for name in ("ca.crt", "server.crt", "server.key")}
    hosts = certificates.hosts(folder / "server/server.crt")
    init.renew(folder, days=99)
    after = {name: (folder / "server" / name).read_bytes() for name in before}
    assert [name for name in before if before[name] == after[name]] == ["ca.crt"]
    assert certificates.hosts(folder / "server/server.crt") == hosts
    assert (folder / "server/server.key").stat().st_mode & 0o777 == 0o600


def test_the_operators_page_names_each_command_and_site(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    commands = [f"unalike deploy {word} ." for word in ("server", "register", "run", "status", "renew")]
    commands += ["unalike rehearse experiment.toml --sites 2", "unalike site sites/paris", "unalike doctor --log FILE"]
    for word in (*commands, "pip download -r wheels.txt", "--no-index --find-links wheels", "port 9092", "$(id -u)"):
        assert word in text


def test_the_services_are_hardened_and_quote_their_paths(folder: Path) -> None:
    server = (folder / "server/unalike-server.service").read_text()
    site = (folder / "sites/berlin/unalike-site.service").read_text()
    plain = str(folder.parent)
    assert f'deploy" "server" "{plain}/lungs $$1 100%%"' in server
    assert f'ReadWritePaths="{plain}/lungs $1 100%%"' in server
    assert "ReadWritePaths=/srv/unalike/berlin/state\n" in site
    for text in (server, site):
        for line in ("NoNewPrivileges=true", "ProtectSystem=strict", "Restart=always"):
            assert f"{line}\n" in text


def test_an_existing_folder_is_refused_and_left(folder: Path) -> None:
    before = (folder / "experiment.toml").read_bytes()
    with pytest.raises(InputError, match="exists already"):
        init.init(folder, config.resolve(KEYS), NAMES)
    assert (folder / "experiment.toml").read_bytes() == before


@pytest.mark.parametrize("broken", ["_readme", "_write_sites", "sync_folder"])
def test_a_failure_leaves_nothing(broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if broken == "sync_folder":
        monkeypatch.setattr(Path, "rename", full)
    else:
        monkeypatch.setattr(init, broken, full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): choose another folder"):
        init.init(tmp_path / "new", config.resolve(KEYS), NAMES)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "more", "words"),
    [
        (("a", "b", "c", "d"), {}, "3 clients cannot be divided among 4 sites: ask for --clients 4"),
        (("a", "A"), {}, "small letters"),
        (("a",), {"days": 0}, "cannot be valid for 0 days"),
        (("a",), {"stage": "canary"}, "at least one site"),
        (("a",), {"colour": 1}, "unknown key 'colour'"),
    ],
)
def test_wrong_input_leaves_nothing(names: tuple[str, ...], more: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        init.init(tmp_path / "new", config.resolve(KEYS), names, **more)
    assert list(tmp_path.iterdir()) == []


def test_by_itself_it_is_pfedafm_with_a_client_a_site() -> None:
    found = init._default(4)
    assert (found.method, found.data, found.clients) == ("pfedafm", "digits", 4)


def test_a_seed_that_nobody_chose_cannot_be_guessed() -> None:
    drawn = {init._seeded(config.resolve({"method": "fedavg"})).seed for _ in range(2)}
    assert len(drawn) == 2
    assert min(drawn) > 2**24
    assert init._seeded(config.resolve({"method": "fedavg", "seed": 0})).seed == 0


def test_a_site_gets_its_own_copy_of_the_users_code(tmp_path: Path) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    keys = {**KEYS, "method": "fedavg", "clients": 2, "models": f"{tmp_path}/nets.py:net(width=4)"}
    init.init(tmp_path / "new", config.resolve(keys), NAMES)
    place = tmp_path / "new/sites/paris"
    (tmp_path / "nets.py").unlink()
    site = read_site(place)
    assert site.trust == (f"{place}/code/nets.py:net",)
    assert at_home(f"{tmp_path}/nets.py:net(width=4)", site.trust) == f"{place}/code/nets.py:net(width=4)"


def test_wheels_pin_what_is_installed_here_and_all_that_it_needs() -> None:
    lines = wheels.wheels().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("--"))
    for name in ("torch", "flwr", "cryptography", "grpcio", "cffi", "numpy"):
        assert pins[name] == metadata.version(name)
    assert not {"unalike", "pytest", "ray"} & {*pins}
    assert lines[0].startswith("--extra-index-url") is pins["torch"].endswith("+cpu")


def test_without_the_extra_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(wheels.metadata, "version", version)
    with pytest.raises(InputError, match=r"pip install 'unalike\[flower\]'"):
        init.init(tmp_path / "new", None, NAMES)
