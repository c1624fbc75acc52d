"""Who may speak with whom: a certificate authority, the server's certificate, and a key for each site.

A site knows the server by `ca.crt`; the server knows a site by its public key. Private files (`*.key`) are made with
mode 0600, so no other user can read them at any moment. Curves are P-384, signatures SHA-384.

Import this module within functions only: it is the one that needs `cryptography`, which the extra `flower` brings.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ..errors import InputError
from ..files import write_atomically

try:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError:
    raise InputError("certificates need the package cryptography: pip install 'unalike[flower]'") from None

AUTHORITY, SERVER, NODE = "ca", "server", "node"
"""Stems of the files: ca.crt and ca.key, server.crt and server.key, node.key and node.pub."""
SKEW = timedelta(hours=1)
"""How far a site's clock may be behind the server's when a certificate is new."""
AUTHORITY_DAYS = 3650


def make_authority(folder: Path, days: int = AUTHORITY_DAYS, start: datetime | None = None) -> None:
    """Write ca.crt and ca.key, which sign the server's certificate and nothing below it.

    Args:
        days: of validity.
        start: first moment of validity; None is an hour ago.
    """
    key = _new_key()
    usage = _usage(digital_signature=False, signs_certificates=True)
    builder = _builder("unalike authority", key, days, start)
    builder = builder.issuer_name(_name("unalike authority"))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    _save(folder, AUTHORITY, builder, key, key)


def make_server(folder: Path, hosts: Sequence[str], days: int = 365, start: datetime | None = None) -> None:
    """Write server.crt and server.key, signed with the authority in the same folder.

    Args:
        hosts: the DNS names and IP addresses by which sites reach the server, at least one.
        days: of validity, which ends with the authority's at the latest.
        start: first moment of validity; None is an hour ago.

    Raises:
        InputError: no host, or the folder has no authority or an expired one.
    """
    if not hosts:
        raise InputError("the server's certificate needs a name: give the host that sites connect to")
    key = _new_key()

    authority = _read(folder / f"{AUTHORITY}.crt")
    signer = _read_key(folder / f"{AUTHORITY}.key")
    last = authority.not_valid_after_utc
    if last <= datetime.now(UTC):
        raise InputError(f"{folder / AUTHORITY}.crt {_expired(last)}: make a new deployment folder")
    builder = _builder("unalike server", key, days, start, last).issuer_name(authority.subject)
    names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys(hosts)])
    if signer.public_key() != authority.public_key():
        raise InputError(f"{folder / AUTHORITY}.key does not belong to {AUTHORITY}.crt beside it: copy both again")
    from_authority = x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
    usage = _usage(digital_signature=True, signs_certificates=False)
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage, True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (names, False),
        (from_authority, False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    _save(folder, SERVER, builder, key, signer)


def make_node_key(folder: Path) -> None:
    """Write node.key and node.pub, by which the server knows a site: EC P-384 in OpenSSH's format."""
    key = _new_key()
    public = key.public_key().public_bytes(form.Encoding.OpenSSH, form.PublicFormat.OpenSSH)
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.OpenSSH, form.NoEncryption())
    write_atomically(folder / f"{NODE}.key", private, mode=0o600)
    write_atomically(folder / f"{NODE}.pub", public + b"\n")


def expiry(path: Path) -> datetime:
    """The last moment, in UTC, at which a certificate is valid; `InputError` when `path` is no certificate."""
    return _read(path).not_valid_after_utc


def hosts(path: Path) -> list[str]:
    """The DNS names and IP addresses that a server's certificate was made for."""
    try:
        names = _read(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        raise InputError(f"{path} names no host: it is no certificate of a server") from None
    addresses = map(str, names.get_values_for_type(x509.IPAddress))
    return [*names.get_values_for_type(x509.DNSName), *addresses]


def warnings(paths: Iterable[Path], within_days: int = 30, now: datetime | None = None) -> list[str]:
    """A line for each certificate that is expired, ends within so many days, or is not valid yet.

    Args:
        now: with its time zone; None asks the clock.
    """
    moment = now or datetime.now(UTC)
    return [line for path in paths if (line := _warning(path, _read(path), within_days, moment))]


def _warning(path: Path, found: x509.Certificate, within_days: int, now: datetime) -> str:
    first, last = found.not_valid_before_utc, found.not_valid_after_utc
    if now < first:
        return (
            f"{path} is valid only from {first:%Y-%m-%d %H:%M} UTC, and this machine's clock says "
            f"{now.astimezone(UTC):%Y-%m-%d %H:%M} UTC: set the clock"
        )
    if now <= last - timedelta(days=within_days):
        return ""
    days = (last - now).days
    when = _expired(last) if now > last else f"expires on {last:%Y-%m-%d}, in {days} day{'s' * (days != 1)}"
    return f"{path} {when}: {_remedy(path, found)}"


def _expired(last: datetime) -> str:
    return f"expired on {last:%Y-%m-%d}"


def _remedy(path: Path, found: x509.Certificate) -> str:
    if found.subject == found.issuer:
        return "make a new deployment folder with unalike deploy init and give each site its new ca.crt and node.key"
    return f"unalike deploy renew {path.parent.parent}, then restart the server; sites keep their files"


def _new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP384R1())


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _builder(
    name: str, key: ec.EllipticCurvePrivateKey, days: int, start: datetime | None, latest: datetime | None = None
) -> x509.CertificateBuilder:
    if days < 1:
        raise InputError(f"a certificate cannot be valid for {days} days: give 1 or more")
    first = start or datetime.now(UTC) - SKEW
    last = (start or datetime.now(UTC)) + timedelta(days=days)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(first)
        .not_valid_after(min(last, latest or last))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )


def _usage(digital_signature: bool, signs_certificates: bool) -> x509.KeyUsage:
    no = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement")
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
        **dict.fromkeys(no, False),
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host.encode("idna").decode())
    except (UnicodeError, ValueError):
        raise InputError(f"{host!r} is neither a DNS name nor an IP address") from None


def _save(
    folder: Path,
    stem: str,
    builder: x509.CertificateBuilder,
    key: ec.EllipticCurvePrivateKey,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    certificate = builder.sign(signer, hashes.SHA384())
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption())
    write_atomically(folder / f"{stem}.key", private, mode=0o600)
    write_atomically(folder / f"{stem}.crt", certificate.public_bytes(form.Encoding.PEM))


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): copy it from the deployment's folder") from None
    except ValueError:
        raise InputError(f"{path} is no certificate in PEM: copy it again from the deployment's folder") from None


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = form.load_pem_private_key(path.read_bytes(), None)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): bring it back from where it is kept") from None
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path} is no private key of an elliptic curve, in PEM without a password: copy it again")
    return key
