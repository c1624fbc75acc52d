"""Certificates that a TLS client accepts, keys that nobody else can read, and warnings in time."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from unalike import files
from unalike.deploy import certificates
from unalike.deploy.certificates import expiry, make_authority, make_node_key, make_server, warnings
from unalike.errors import InputError

NOW = datetime.now(UTC)
HOSTS = ["fl.example.org", "127.0.0.1", "::1"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "server").mkdir()
    make_authority(tmp_path / "server")
    make_server(tmp_path / "server", HOSTS)
    return tmp_path / "server"


def shake(folder: Path, trusted: Path, host: str) -> None:
    """A whole TLS handshake in memory; raises `ssl.SSLError` when a side is not content."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.crt", folder / "server.key")
    client = ssl.create_default_context(cafile=trusted)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [server.wrap_bio(up, down, server_side=True), client.wrap_bio(down, up, server_hostname=host)]
    done = [False, False]
    for _ in range(6):
        for i in (1, 0):
            try:
                sides[i].do_handshake()
                done[i] = True
            except ssl.SSLWantReadError:
                pass
    assert done == [True, True]


@pytest.mark.parametrize("host", HOSTS)
def test_a_client_that_trusts_the_authority_accepts_the_server_by_each_of_its_names(folder: Path, host: str) -> None:
    shake(folder, folder / "ca.crt", host)
    assert certificates.hosts(folder / "server.crt") == HOSTS


def test_another_name_and_another_authority_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        shake(folder, folder / "ca.crt", "evil.example.org")
    make_authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError, match="certificate verify failed"):
        shake(folder, tmp_path / "ca.crt", HOSTS[0])


def test_private_files_are_never_open_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    original = os.fsync

    def look(descriptor: int) -> None:
        for path in tmp_path.iterdir():
            seen[path.name.removeprefix(".").removesuffix(f".{os.getpid()}.tmp")] = path.stat().st_mode & 0o777
        original(descriptor)

    monkeypatch.setattr(files.os, "fsync", look)
    before = os.umask(0)
    try:
        make_authority(tmp_path)
        make_server(tmp_path, ["localhost"])
        make_node_key(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes.keys() == seen.keys() == {"ca.crt", "ca.key", "server.crt", "server.key", "node.key", "node.pub"}
    for name in modes:
        assert modes[name] == seen[name] == (0o600 if name.endswith(".key") else 0o666)


def test_a_file_left_open_to_others_by_a_crash_is_not_written_into(tmp_path: Path) -> None:
    left = tmp_path / f".node.key.{os.getpid()}.tmp"
    left.write_text("")
    left.chmod(0o644)
    make_node_key(tmp_path)
    assert (tmp_path / "node.key").stat().st_mode & 0o777 == 0o600


def test_node_keys_are_p384_in_openssh_form_and_belong_together(tmp_path: Path) -> None:
    make_node_key(tmp_path)
    private = serialization.load_ssh_private_key((tmp_path / "node.key").read_bytes(), None)
    public = serialization.load_ssh_public_key((tmp_path / "node.pub").read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(private.curve, ec.SECP384R1)
    assert private.public_key() == public


def test_the_server_does_not_outlive_its_authority(tmp_path: Path) -> None:
    make_authority(tmp_path, days=20)
    make_server(tmp_path, ["localhost"], days=365)
    assert expiry(tmp_path / "server.crt") == expiry(tmp_path / "ca.crt")
    assert abs(expiry(tmp_path / "ca.crt") - datetime.now(UTC) - timedelta(days=20)) < timedelta(minutes=5)


def test_nothing_is_said_of_a_certificate_that_lasts(folder: Path) -> None:
    assert warnings([folder / "ca.crt", folder / "server.crt"]) == []


def test_thirty_days_before_the_end_one_line_says_so(folder: Path) -> None:
    make_server(folder, ["localhost"], days=10)
    (line,) = warnings([folder / "ca.crt", folder / "server.crt"])
    day = f"{NOW + timedelta(days=10):%Y-%m-%d}"
    assert line.startswith(f"{folder / 'server.crt'} expires on {day}, in 9 days: unalike deploy renew {folder.parent}")
    assert warnings([folder / "server.crt"], within_days=9) == []


def test_an_end_that_has_passed_is_said(folder: Path) -> None:
    make_server(folder, ["localhost"], days=30, start=NOW - timedelta(days=31))
    (line,) = warnings([folder / "server.crt"])
    assert f"server.crt expired on {NOW - timedelta(days=1):%Y-%m-%d}: unalike deploy renew" in line


def test_a_clock_that_is_behind_is_said(folder: Path) -> None:
    (line,) = warnings([folder / "server.crt"], now=NOW - timedelta(days=2))
    assert "is valid only from" in line
    assert f"clock says {NOW - timedelta(days=2):%Y-%m-%d %H:%M} UTC: set the clock" in line
    assert warnings([folder / "server.crt"], now=NOW - timedelta(minutes=50)) == []


def test_an_authority_is_renewed_in_another_way(tmp_path: Path) -> None:
    make_authority(tmp_path, days=5)
    (line,) = warnings([tmp_path / "ca.crt"])
    assert "give each site its new ca.crt" in line


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "ca.key").unlink(), "ca.key cannot be read"),
        (lambda f: (f / "ca.key").write_text("x"), "ca.key is no private key"),
        (lambda f: (f / "ca.crt").write_text("x"), "ca.crt is no certificate in PEM"),
        (lambda f: make_node_key(f) or (f / "node.key").replace(f / "ca.key"), "ca.key is no private key"),
        (lambda f: (f / "server.key").replace(f / "ca.key"), "ca.key does not belong to ca.crt"),
        (lambda f: make_authority(f, days=1, start=NOW - timedelta(days=2)), "ca.crt expired on"),
    ],
)
def test_an_authority_that_cannot_sign_is_named(folder: Path, damage: Callable[[Path], object], words: str) -> None:
    damage(folder)
    with pytest.raises(InputError, match=words):
        make_server(folder, ["localhost"])


@pytest.mark.parametrize(
    ("hosts", "days", "words"),
    [([], 1, "needs a name"), (["a..b"], 1, "'a..b' is neither"), (["localhost"], 0, "cannot be valid for 0 days")],
)
def test_wrong_hosts_and_days_are_named(folder: Path, hosts: list[str], days: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        make_server(folder, hosts, days)
