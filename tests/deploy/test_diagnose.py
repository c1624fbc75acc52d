"""What Flower really printed, each with its cause; how the command line tells it."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from unalike.deploy.diagnose import RULES, diagnose

Call: TypeAlias = Callable[..., tuple[Any, str, str]]
OUTPUT = Path(__file__).parent / "flower_output"
WARNING = "authentication of sites is off"

CAUSES = {
    "disk is full": "disk-serverapp-run disk-superlink-database-1.41 disk-superlink-database-1.42",
    "key that is not registered": "unregistered-superlink",
    "key is in use": "same-key-superlink",
    "refused this site's key": "unregistered same-key-2 rekill-2",
    "came without a key": "no-key no-key-superlink",
    "registered already": "register-twice register-twice-superlink",
    "private key cannot be read": "key-locked key-nonsense key-noread key-nowhere",
    "public key is missing": "register-missing register-nonsense",
    "no longer knows a site": (
        "lost-node-1.41 lost-node-1.42 lost-superlink-again-1.41 lost-superlink-again-1.42 unregistered-later-superlink"
    ),
    "site's clock is off": "skew-superlink",
    "ended by itself": "skew-ahead skew-little-ahead skew-superlink-ahead-node",
    "this machine's clock is behind": "before-validity future-node",
    "certificate has expired": "after-validity expired-node",
    "for another address": "elsewhere-node",
    "not signed by the authority": "other-ca third-ca",
    "one side speaks TLS": "tls-node-to-plain tls-to-plain-superlink",
    "this side speaks plain HTTP": "plain-node-to-tls",
    "over TLS only": "auth-without-tls plain-node-with-key",
    "without certificates": "no-tls-no-insecure",
    "certificate file is missing": (
        "ca-nonsense ca-nowhere ca-nowhere-run superlink-certificate-missing superlink-key-mismatch"
    ),
    "port is taken": "port-taken-node port-taken-superlink",
    "nothing listens": "unreachable-node proxy-node",
    "host name is unknown": "unresolvable-node bad-address",
    "does not answer": "silent-server",
    "cannot be reached": "unreachable-node-forever lost-node-silent-1.42",
    "could not talk": "unreachable-run other-ca-run",
    "another FLWR_HOME": "no-config-run-1.41 no-config-run-1.42 unknown-connection",
    "larger than a proxy": "large-node",
    "different versions": "other-version-superexec-1.41 other-version-superexec-1.42 other-version-superlink",
    "written by a newer flwr": "schema-42-then-41 schema-notdb",
    "Flower is not installed": "no-flwr-bash no-flwr-python no-flwr-sh no-flwr-subprocess",
    "does not know this run": "no-run-log no-run-superlink",
    "pyproject.toml is missing": ("app-noattr bad-override-superlink run-bad-override run-bad-toml run-no-component"),
    "app is larger": "run-too-big",
    "needs a module": "app-noimport clientapp-noimport-node",
    "server app ended": "app-raises",
    "error of its own at this site": "clientapp-raises-node",
    WARNING: "auth-off-superlink",
}
FIXTURES = [(name, cause) for cause, names in CAUSES.items() for name in names.split()]


def printed(name: str) -> str:
    return (OUTPUT / f"{name}.txt").read_text().partition("\n")[2]


@pytest.mark.parametrize(("name", "cause"), FIXTURES, ids=[name for name, _ in FIXTURES])
def test_what_flower_printed_has_its_cause_first(name: str, cause: str) -> None:
    first = diagnose(printed(name))[0]
    assert cause in first.cause
    assert first.line
    assert any(
        first.line in line or " ".join(line.strip("│ ").split()) in first.line for line in printed(name).splitlines()
    )


def test_every_output_and_every_rule_is_tested() -> None:
    assert {path.stem for path in OUTPUT.iterdir()} == {name for name, _ in FIXTURES}
    assert len(CAUSES) == len(RULES)
    for cause in CAUSES:
        assert sum(cause in rule.cause for rule in RULES) == 1, cause


def test_every_output_says_which_version_and_command_made_it() -> None:
    for path in OUTPUT.iterdir():
        assert path.read_text().startswith(("# flwr 1.4", "# no flwr: ")), path


@pytest.mark.parametrize(("name", "cause"), FIXTURES, ids=[name for name, _ in FIXTURES])
def test_nothing_else_is_blamed(name: str, cause: str) -> None:
    also = {
        "disk-serverapp-run": {"server app ended"},
        "lost-node-1.41": {"cannot be reached"},
        "lost-node-1.42": {"cannot be reached"},
    }
    expected = {cause, WARNING} | also.get(name, set())
    assert all(any(known in found.cause for known in expected) for found in diagnose(printed(name)))


def test_the_line_of_a_crash_is_the_apps_own() -> None:
    assert diagnose(printed("app-raises"))[0].line == "ValueError: the shapes differ"
    assert diagnose(printed("clientapp-raises-node"))[0].line == "ValueError: no rows"
    assert diagnose(printed("key-noread"))[0].line == "PermissionError: [Errno 13] Permission denied: 'noread'"


def test_colours_and_boxes_do_not_hide_a_cause() -> None:
    red = printed("unregistered").replace("[code", "\x1b[91m[code\x1b[0m").replace("2004", "2004\x1b[0m")
    assert "refused" in diagnose(red)[0].cause
    narrow = (
        "╭─ Error ─────────────╮\n│ Connection to the   │\n│ SuperLink is        │\n│ unavailable.        │\n╰────╯\n"
    )
    assert diagnose(narrow)[0].line == "Connection to the SuperLink is unavailable."


def test_a_normal_start_and_stop_is_not_blamed_on_the_clock() -> None:
    start, served, end = "Starting Flower SuperNode\n", "SuperNode ID: 7\n", "SuperNode terminated gracefully.\n"
    assert diagnose(start + served + end) == []
    assert len(diagnose(start + end)) == 1


def test_two_lost_attempts_or_a_connection_in_between_are_no_finding() -> None:
    lost, back = "Connection attempt failed, retrying in 1.00 seconds\n", "Connection successful after 2.00 seconds\n"
    assert diagnose(lost * 2) == diagnose((lost * 2 + back) * 3) == []
    assert "cannot be reached" in diagnose(lost * 2 + back + lost + "INFO\n" + lost * 2)[0].cause


def test_a_helper_that_outlives_its_supernode_is_not_blamed() -> None:
    lost, end = "Connection attempt failed, retrying in 1.00 seconds\n", "SuperNode terminated gracefully.\n"
    assert diagnose(end + lost * 3) == []
    assert len(diagnose(lost * 3 + end)) == len(diagnose(end + "Starting Flower SuperNode\n" + lost * 3)) == 1


def test_a_long_log_is_read_in_a_moment() -> None:
    lines = (
        "INFO :      Starting Flower SuperNode\nServerApp raised an exception\nConnection attempt failed, retrying\n"
    )
    started = time.perf_counter()
    diagnose(lines + "INFO :      a line: of a long day\n" * 20_000 + lines)
    assert time.perf_counter() - started < 10


def test_every_remedy_names_a_command() -> None:
    words = ("unalike deploy ", "unalike site ", "pip install")
    assert all(any(word in rule.remedy for word in words) for rule in RULES)


def test_doctor_reads_a_log(call: Call, tmp_path: Path) -> None:
    log = tmp_path / "site.log"
    log.write_text(printed("other-ca"))
    code, out, err = call("doctor", "--log", log)
    assert (code, err) == (0, "")
    cause, arrow, remedy = out.strip().partition(" -> ")
    assert arrow
    assert cause.startswith("the server's certificate was not signed")
    assert remedy.endswith("unalike site FOLDER/sites/NAME")
    (found,) = json.loads(call("doctor", "--log", log, "--json")[1])
    assert found == {"cause": cause, "remedy": remedy, "line": found["line"]}
    assert "CERTIFICATE_VERIFY_FAILED" in found["line"]


def test_doctor_reads_standard_input_and_may_find_nothing(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("all is well\n"))
    assert call("doctor", "--log", "-") == (0, "nothing known was found\n", "")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert call("doctor", "--log", "-", "--json") == (0, "[]\n", "")


def test_a_log_that_is_not_there_is_a_wrong_input(call: Call) -> None:
    code, out, err = call("doctor", "--log", "nowhere.log")
    assert (code, out) == (2, "")
    assert "nowhere.log" in err
