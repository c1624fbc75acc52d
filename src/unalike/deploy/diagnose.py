"""What Flower prints when something is wrong, read as a cause and a remedy.

The patterns are words of flwr 1.41 and 1.42, made to fail; what they printed is in tests/deploy/flower_output.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple

COLOURS = re.compile(r"\x1b\[[0-9;]*m")
BOX_ROWS = re.compile(r"(?:^│.*│ *\n?)+", re.MULTILINE)
"""The rows of a box, in which `flwr` wraps its errors."""
ENDED = re.compile(r"(?:terminated gracefully|Shutting down).*\n(?:(?!.*Starting Flower ).*\n?)*")
RETRY = re.compile(r"^.*Connection attempt failed, retrying.*\n?", re.MULTILINE)
"""Also printed by a helper that has outlived its SuperNode or SuperLink for some seconds, and of no meaning then."""

REGISTER = "on the server: unalike deploy register FOLDER"
SERVER = "on the server: unalike deploy server FOLDER"
SITE = "at the site: unalike site FOLDER/sites/NAME"
INIT = "make a new folder and hand it out: unalike deploy init"
CLOCKS = f"set both clocks (timedatectl set-ntp true), then {SITE}"
RUN = "unalike deploy run FOLDER"
RERUN = f"then: {RUN}"


@dataclass(frozen=True)
class Finding:
    """One cause, what to do about it, and the line that told."""

    cause: str
    remedy: str
    line: str


class Rule(NamedTuple):
    """What to look for (lines apart), and what a match means."""

    pattern: re.Pattern[str]
    cause: str
    remedy: str


def _rule(pattern: str, cause: str, remedy: str) -> Rule:
    return Rule(re.compile(pattern, re.MULTILINE), cause, remedy)


def _crash(app: str, code: int) -> str:
    """The last line of an app's traceback, up to the exit code that follows it."""
    between = r"(?:(?!.*Exit Code).*\n){0,200}"
    return rf"{app} raised an exception\n{between}(?!INFO:)[A-Za-z_][\w.]*(?:: .*)?(?=\n{between}.*Exit Code: {code}\b)"


RULES = (
    # the machine
    _rule(
        r"No space left on device|database or disk is full",
        "the disk is full",
        "free some space (df -h), then unalike deploy server FOLDER or unalike site FOLDER/sites/NAME",
    ),
    # who a site is
    _rule(
        r"exception: No SuperNode found with the given public key",
        "a site came with a key that is not registered",
        REGISTER,
    ),
    _rule(
        r"exception: SuperNode with node ID \d+ could not be activated",
        "a site's key is in use: by another SuperNode, or by one that was killed within the last minute",
        f"stop the other one or wait a minute, then {SITE}",
    ),
    _rule(
        r"\[code: 2004\]",
        "the SuperLink refused this site's key: not registered, or in use (a killed SuperNode holds it for a minute)",
        f"{REGISTER}; if it is registered already, wait a minute, then {SITE}",
    ),
    _rule(
        r"\[code: 2001\]|\[ApiError:2001\]",
        "a site came without a key, and this SuperLink asks for one",
        SITE,
    ),
    _rule(
        r"\[code: 23\]|\[ApiError:23\]",
        "this site's key is registered already",
        "nothing to do; to see the sites: unalike deploy status FOLDER",
    ),
    _rule(
        r"Exit Code: 302\b|_try_setup_client_authentication\n(?:.*\n){0,40}?(?:FileNotFound|Permission|Type)Error: .*",
        "the site's private key cannot be read: missing, not for this user, locked, or not an elliptic-curve key",
        f"check the file and its owner (ls -l FOLDER/sites/NAME); for new keys {INIT}",
    ),
    _rule(
        r"Exit Code: 500\b|Public key file '.*' does not exist",
        "a site's public key is missing or is no elliptic-curve key in SSH format",
        f"put the site's .pub file back, then {REGISTER}",
    ),
    _rule(
        r"'401 Unauthorized'.*/v1/fleet/|\"POST /v1/fleet/(?:pull-messages|send-node-heartbeat) HTTP/1\.1\" 401",
        "the SuperLink no longer knows a site: it was restarted (and forgets its sites), or the site was unregistered",
        f"{REGISTER}, then {SITE}",
    ),
    # clocks
    _rule(
        r'"POST /v1/fleet/activate-node HTTP/1\.1" 401',
        "a site's clock is off: its signature was more than 5 s ahead or 305 s behind the SuperLink's clock",
        CLOCKS,
    ),
    _rule(
        r"Starting Flower SuperNode *\n(?:(?!.*(?:SuperNode ID|Connection attempt|ERROR|Traceback)).*\n){0,40}"
        r".*SuperNode terminated gracefully",
        "the SuperNode ended by itself before it was let in, most likely because its clock and the SuperLink's differ",
        f"unless you stopped it, {CLOCKS}",
    ),
    _rule(
        r"certificate verify failed: certificate is not yet valid",
        "this machine's clock is behind, or the server's certificate was made by a clock that is ahead",
        f"compare both clocks (date -u) and set them; if they agree, {INIT}",
    ),
    # certificates and TLS
    _rule(
        r"certificate verify failed: certificate has expired",
        "the server's certificate has expired, or this machine's clock is far ahead",
        f"compare the clocks (date -u); if they agree, {INIT}",
    ),
    _rule(
        r"certificate verify failed: (?:IP address|Hostname) mismatch",
        "the server's certificate is for another address than the one that was called",
        f"call the server by the name in its certificate, or, with the right address, {INIT}",
    ),
    _rule(
        r"certificate verify failed: (?:certificate signature failure|(?:unable to get|self[- ]signed).*certificate)",
        "the server's certificate was not signed by the authority whose ca.crt this machine has",
        f"copy ca.crt of the server's folder here, then {SITE}",
    ),
    _rule(
        r"WRONG_VERSION_NUMBER|Invalid HTTP request received",
        "one side speaks TLS and the SuperLink plain HTTP",
        f"start it with certificates, {SERVER}",
    ),
    _rule(
        r"Server disconnected without sending a response",
        "this side speaks plain HTTP and the SuperLink TLS, or something between them hung up",
        f"drop --insecure, {SITE}",
    ),
    _rule(
        r"Exit Code: 303\b|`--enable-supernode-auth` flag requires encrypted TLS",
        "sites are authenticated over TLS only, and --insecure turned it off",
        f"drop --insecure: {SERVER}, {SITE}",
    ),
    _rule(
        r"Certificates are required unless running in insecure mode",
        "the SuperLink was started without certificates",
        SERVER,
    ),
    _rule(
        r"`--(?:root-certificates|ssl-\w+)` does not point to a file|Failed to read certificate file"
        r"|cadata does not contain a certificate|KEY_VALUES_MISMATCH",
        "a certificate file is missing or damaged, or the server's key belongs to another certificate",
        f"restore the folder as it was made, or {INIT}",
    ),
    # the connection
    _rule(
        r"address already in use",
        "the port is taken, perhaps by an earlier start that still runs",
        "find the program (ss -ltnp) and stop it, or write another port into the folder, then start again; "
        "what runs: unalike deploy status FOLDER",
    ),
    _rule(
        r"\[Errno (?:111|61)\] Connection refused",
        "nothing listens at the SuperLink's address (or at the proxy in HTTPS_PROXY)",
        SERVER,
    ),
    _rule(
        r"Exit Code: 600\b|Name or service not known|Temporary failure in name resolution|nodename nor servname",
        "the SuperLink's address is malformed, or its host name is unknown here",
        f"correct the address in the site's folder, then {SITE}",
    ),
    _rule(
        r"handshake operation timed out",
        "the SuperLink's address does not answer: a firewall, or another program",
        f"let this machine out to the server's port, then {SITE}",
    ),
    _rule(
        r"^.*Connection attempt failed, retrying.*"
        r"(?:\n(?:(?!.*Connection (?:attempt|successful)).*\n)*.*Connection attempt failed, retrying.*){2}",
        "the SuperLink cannot be reached, and Flower keeps trying without saying why",
        f"see whether it runs (unalike deploy status FOLDER), or start it {SERVER}; restarted, it may want {REGISTER}",
    ),
    _rule(
        r"Connection to the SuperLink is unavailable",
        "flwr could not talk to the SuperLink: not running, another address or another certificate (it hides which)",
        f"{SERVER}; if it runs, use the folder's own commands, as in {RUN}",
    ),
    _rule(
        r"SuperLink connection '[^']*' not found in the Flower configuration|Flower configuration not found",
        "flwr read another FLWR_HOME than the folder's and does not know the SuperLink; with none, it starts its own",
        f"use the folder's own command: {RUN}",
    ),
    _rule(
        r"413 Request Entity Too Large|HTTP payload too large|'413 ",
        "a message was larger than a proxy on the way allows",
        f"raise the proxy's limit (nginx: client_max_body_size 64m), {RERUN}",
    ),
    # versions
    _rule(
        r"runtime version mismatch|Exit Code: 606\b",
        "two parts of Flower have different versions",
        "install the same on both machines (pip install 'unalike[flower]'; unalike doctor shows it), then "
        "unalike deploy server FOLDER",
    ),
    _rule(
        r"Can't locate revision identified by|file is not a database",
        "the SuperLink's database was written by a newer flwr than this one, or is damaged",
        f"go back to that flwr, or start with a new database file, {SERVER}",
    ),
    _rule(
        r"No module named 'flwr'|flower-super\w+: (?:command )?not found|No such file or directory: 'flower-super\w+'",
        "Flower is not installed here",
        "pip install 'unalike[flower]'",
    ),
    # runs and apps
    _rule(
        r"\[code: 16\]|\[ApiError:16\]",
        "the SuperLink does not know this run: a wrong number, or it was restarted and has forgotten",
        f"see what runs (unalike deploy status FOLDER); to continue it: {RUN}",
    ),
    _rule(
        r"(?:Failed to load|Invalid) Flower App configuration|\[code: 15\]|\[ApiError:15\]",
        "the app's pyproject.toml is missing, damaged or names something that does not exist",
        f"restore the folder as it was made, or {INIT}",
    ),
    _rule(
        r"FAB size exceeds maximum allowed size",
        "the app is larger than 10 MB: data or models lie in its folder",
        f"move them out of the app's folder, {RERUN}",
    ),
    _rule(
        _crash("(?:Server|Client)App", 607),
        "the app needs a module that is not installed on this machine",
        f"install it into the environment that runs Flower here, {RERUN}",
    ),
    _rule(
        _crash("ServerApp", 201),
        "the server app ended with an error of its own",
        f"mend what the line says; to go on from the last round: {RUN}",
    ),
    _rule(
        _crash("ClientApp", 800),
        "the app ended with an error of its own at this site",
        f"mend what the line says, then {SITE}",
    ),
    # warnings
    _rule(
        r"SuperNode authentication is disabled",
        "the SuperLink lets every SuperNode in: authentication of sites is off",
        f"unless this is a trial on one machine, stop it, then {SERVER}",
    ),
)
"""The surer come first."""


def diagnose(text: str) -> list[Finding]:
    """What is known to be wrong by the output of Flower's commands or of ours: each cause once, as `RULES` has them."""
    plain = _plain(text)
    hits = ((rule, rule.pattern.search(plain)) for rule in RULES)
    return [Finding(rule.cause, rule.remedy, _line_at(plain, hit.end())) for rule, hit in hits if hit]


def _plain(text: str) -> str:
    """Without colours and a helper's last words, and what is wrapped in a box as one line."""
    text = COLOURS.sub("", text).replace("\r\n", "\n")
    text = ENDED.sub(lambda rest: RETRY.sub("", rest[0]), text)
    return BOX_ROWS.sub(lambda rows: " ".join(rows[0].replace("│", " ").split()) + "\n", text)


def _line_at(text: str, end: int) -> str:
    """The line on which a match ended."""
    end = len(text[:end].rstrip())
    return text[text.rfind("\n", 0, end) + 1 :].partition("\n")[0].strip()
