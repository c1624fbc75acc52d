"""What a site answers, refuses, keeps and deletes, and what its errors tell the server."""

from __future__ import annotations

import dataclasses
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from messages import foreign, host, job, opening, say

from unalike import api, tree
from unalike.algorithms.pfedafm import PFedAFM
from unalike.data.federation import Federation, federation
from unalike.data.sources import Source
from unalike.engines.flower.host import Host
from unalike.engines.site import Site
from unalike.engines.wire import Message
from unalike.protocol import Batch, ClientInfo


@pytest.fixture(scope="module")
def table() -> Federation:
    """Three clients with one small model on the wines."""
    return federation("wine", clients=3, models=["mlp-5"], min_per_client=20)


def opened(folder: Path, given: Federation, **keys: Any) -> Host:
    at = host(folder, given, **keys)
    assert "error" not in say(at, opening(given)).head
    return at


def error(at: Host, head: Any) -> str:
    """The one line that a site answers; nothing beside it but what was asked."""
    said = say(at, head)
    assert set(said.head) <= {"error", "run", "kind", "round", "client"}
    assert said.body == b""
    return str(said.head["error"])


def trained(at: Host, given: Federation, round: int, before: Mapping[str, Any] | None = None, **changes: Any) -> Any:
    """The head of the reply to a job that starts from what the one before left."""
    start = {"version": before["version"], "sha256": before["sha256"]} if before else {}
    said = say(at, job(given, at.local.clients[0], round, **start, **changes)).head
    assert "error" not in said, said["error"]
    return said


def versions(at: Host, client: int = 0) -> list[int]:
    folder = at.local.folder / "run1" / "clients" / str(client)
    return sorted(int(path.stem) for path in folder.iterdir())


# What it does


def test_it_tells_what_a_server_may_know_of_it(tmp_path: Path, table: Federation) -> None:
    at = host(tmp_path, table, (0, 2), memory=10**9, modalities=("table",))
    said = say(at, {"kind": "hello", "run": "run1"}).head
    assert [client["id"] for client in said["clients"]] == [0, 2]
    assert said["clients"][1] == {
        "id": 2,
        "n": len(table.rows(2, "train")),
        "memory": 10**9,
        "modalities": ["table"],
    }
    assert say(at, opening(table)).head == {**said, "kind": "open"}
    assert say(at, {"kind": "ping", "run": "run1"}).head == {"run": "run1", "kind": "ping"}


def test_without_a_memory_of_its_own_its_clients_have_that_of_their_data(tmp_path: Path, table: Federation) -> None:
    given = table.with_budgets((10**8, None, 10**9))
    found = {}
    for own in (None, 7):
        said = say(host(tmp_path, given, (0, 1, 2), memory=own), {"kind": "hello", "run": "run1"}).head
        found[own] = [client["memory"] for client in said["clients"]]
    assert found == {None: [10**8, None, 10**9], 7: [7, 7, 7]}


class Curious(PFedAFM):
    """A method whose training depends on what is known of a client."""

    def client_update(self, job: Any) -> Any:
        update = super().client_update(job)
        return dataclasses.replace(update, metrics={"memory": float(job.info.memory or 0), "n": float(job.info.n)})


def test_a_method_sees_the_same_client_at_a_site_as_on_other_engines(tmp_path: Path, table: Federation) -> None:
    """With its memory and modalities, as the federation holds them."""
    clients = tuple(dataclasses.replace(info, memory=10**9 + info.id) for info in table.clients)
    given = dataclasses.replace(table, clients=clients)
    found = {}
    for engine in ("serial", "flower"):
        result = api.run(
            f"{__file__}:Curious",
            given,
            out=tmp_path / engine,
            report=False,
            engine=engine,
            rounds=1,
            local_epochs=1,
        )
        found[engine] = [event["updates"] for event in result.events() if event["event"] == "round"]
    assert found["flower"] == found["serial"]
    assert found["flower"][0]["2"]["memory"] == 10**9 + 2


def test_a_run_is_opened_again_after_a_restart(tmp_path: Path, table: Federation) -> None:
    """By a process that knows nothing but the folder, in the bits that it would have had; the seed is not told anew."""
    first = trained(opened(tmp_path, table), table, 1)
    undisturbed = trained(opened(tmp_path / "other", table), table, 1)
    again = host(tmp_path, table)
    found = say(again, job(table, 0, 2, version=1, sha256=first["sha256"]))
    other = host(tmp_path / "other", table)
    expected = say(other, job(table, 0, 2, version=1, sha256=undisturbed["sha256"]))
    assert "error" not in found.head
    assert (found.head["sha256"], found.body) == (expected.head["sha256"], expected.body)
    assert found.body


def test_its_folder_is_its_owners_alone(tmp_path: Path, table: Federation) -> None:
    at = opened(tmp_path, table)
    assert (at.local.folder / "run1").stat().st_mode & 0o777 == 0o700


def test_it_answers_one_at_a_time(tmp_path: Path, table: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when several messages come at once: training has one thread, and a client's state one writer."""
    at, inside, most = opened(tmp_path, table), [0], [0]

    def reply(self: Site, request: Message) -> Message:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return Message({"client": 0})

    monkeypatch.setattr(Site, "reply", reply)
    threads = [threading.Thread(target=say, args=(at, job(table))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]


# What it refuses


def test_it_refuses_code_of_the_servers_own(tmp_path: Path, table: Federation) -> None:
    at = host(tmp_path, table)
    said = error(at, opening(table, method="/srv/elsewhere.py:Method"))
    assert "names code of its own, elsewhere.py:Method, which this site does not trust" in said
    assert "which this site does not trust" in error(at, opening(table, models=foreign(table)))
    assert at._sites == {}
    assert not (tmp_path / "site0" / "run1" / "run.json").exists()


def test_code_that_its_owner_trusts_is_used_under_the_owners_name(tmp_path: Path, table: Federation) -> None:
    at = host(tmp_path, table, at_home=lambda name: {"theirs.py:Method": f"{__file__}:Curious"}.get(name, name))
    assert "error" not in say(at, opening(table, method="theirs.py:Method")).head
    assert type(at._sites["run1"].algorithm).__name__ == "Curious"


@pytest.mark.parametrize("changes", [{"unalike": "0.0.1"}, {"protocol": 0}], ids=["version", "protocol"])
def test_it_refuses_another_unalike(tmp_path: Path, table: Federation, changes: dict[str, Any]) -> None:
    assert "install the same" in error(host(tmp_path, table), opening(table, **changes))


def test_it_refuses_to_go_on_with_other_data(tmp_path: Path, table: Federation) -> None:
    opened(tmp_path, table)
    x = table.source.x.copy()
    x[0, 0] += np.float32(1)
    other = dataclasses.replace(table, source=dataclasses.replace(table.source, x=x))
    assert isinstance(other.source, Source)
    at = host(tmp_path, other)
    for message in (opening(table), job(table)):
        assert "its data have changed since the run began" in error(at, message)


def test_it_refuses_a_run_it_has_not_joined(tmp_path: Path, table: Federation) -> None:
    assert "run run1 is not known here" in error(host(tmp_path, table), job(table))


@pytest.mark.parametrize("run", ["../secret", "..", "", "a/b", ".", "a b", "x" * 5000])
def test_the_name_of_a_run_leads_nowhere_else(tmp_path: Path, table: Federation, run: str) -> None:
    """Neither to be written nor to be read: a description that lies elsewhere is not looked at."""
    at = host(tmp_path / "a", table)
    for place in (tmp_path / "a" / "secret", tmp_path / "a" / "site0", tmp_path / "a"):
        place.mkdir(parents=True, exist_ok=True)
        (place / "run.json").write_text(json.dumps({"asked": {"protocol": "found"}}))
    before = sorted(tmp_path.rglob("*"))
    for message in (opening(table, run=run), job(table, run=run)):
        said = error(at, message)
        assert "letters and digits were expected" in said or len(run) > 1000
        assert "found" not in said
    assert sorted(tmp_path.rglob("*")) == before


def test_it_refuses_a_client_that_is_not_here(tmp_path: Path, table: Federation) -> None:
    assert "client 1 is not here: this site has 0, 2" in error(opened(tmp_path, table, clients=(0, 2)), job(table, 1))


def test_it_refuses_a_body_that_is_not_the_one_that_was_sent(tmp_path: Path, table: Federation) -> None:
    at, asked = opened(tmp_path, table), job(table)
    changed = tree.to_bytes(tree.map_leaves(lambda leaf: leaf + 1, asked.tree))
    for body in (changed, b""):
        assert "is not what was sent: its sha256 differs" in error(at, Message(asked.head, body))
    assert not (at.local.folder / "run1" / "clients" / "0").exists()


def test_it_refuses_a_state_of_another_sha256(tmp_path: Path, table: Federation) -> None:
    trained(opened(tmp_path, table), table, 1)
    assert "is damaged" in error(host(tmp_path, table), job(table, 0, 2, version=1, sha256="0" * 64))


@pytest.mark.parametrize(
    "changes",
    [{"kind": "steal"}, {"client": "x"}, {"client": None}, {"version": "x"}, {"keep": None}, {"key": "zz"}, {"run": 3}],
    ids=str,
)
def test_whatever_a_message_holds_the_next_one_is_answered(
    tmp_path: Path, table: Federation, changes: dict[str, Any]
) -> None:
    at, asked = opened(tmp_path, table), job(table)
    assert error(at, Message({**asked.head, **changes}, asked.body))
    missing = {name: value for name, value in asked.head.items() if name != next(iter(changes))}
    if "kind" not in changes:
        assert error(at, Message(missing, asked.body))
    assert "error" not in say(at, asked).head


# What its errors tell


def raising(what: Exception) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise what

    return raises


@pytest.mark.parametrize("spot", ["site", "host"])
@pytest.mark.parametrize("kind", [OSError, RuntimeError], ids=lambda k: k.__name__)
def test_an_error_carries_no_traceback_and_no_path(
    tmp_path: Path, table: Federation, monkeypatch: pytest.MonkeyPatch, spot: str, kind: type[Exception]
) -> None:
    folder = tmp_path / "of our company"
    at = opened(folder, table)
    path = f"{at.local.folder}/run1/clients/0/1.safetensors"
    fault = OSError(28, "No space left on device", path) if kind is OSError else kind(f"{path}: broken\n  File {path}")
    monkeypatch.setattr(*((Site, "data") if spot == "site" else (Host, "_tidy")), raising(fault))
    said = error(at, job(table))
    assert "No space left on device" in said or "broken" in said
    for part in (str(tmp_path), "of our company", "run1", "Traceback", ".py", "\n", str(Path.home()) + "/"):
        assert part not in said, said


def test_a_state_that_is_gone_is_told_without_its_path(tmp_path: Path, table: Federation) -> None:
    said = error(opened(tmp_path, table), job(table, 0, 4, version=3))
    assert "client 0's state of round 3 cannot be read" in said
    assert str(tmp_path) not in said


def test_a_name_within_a_tree_is_no_path(tmp_path: Path, table: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    at = opened(tmp_path, table)
    monkeypatch.setattr(PFedAFM, "client_update", raising(ValueError("theta/0.weight is not finite: lower --lr")))
    assert error(at, job(table)) == "round 1, client 0: ValueError: theta/0.weight is not finite: lower --lr"


def test_the_traceback_stays_in_the_sites_log(
    tmp_path: Path, table: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    at = opened(tmp_path, table)
    monkeypatch.setattr(PFedAFM, "client_update", raising(ValueError("odd")))
    error(at, job(table))
    assert "Traceback" in caplog.text
    assert "in _update" in caplog.text


# What it keeps


def test_only_versions_that_are_neither_kept_nor_started_from_are_deleted(tmp_path: Path, table: Federation) -> None:
    """Round 2 is the best on validation: it is kept, whatever comes."""
    at, last, keep = opened(tmp_path, table), None, {1: [], 2: [1], 3: [1, 2], 4: [2, 3], 5: [2, 3, 4], 6: [2, 4, 5]}
    for round, kept in keep.items():
        last = trained(at, table, round, last, keep=kept)
        assert versions(at) == sorted({*kept, *([round - 1] if round > 1 else []), round})


def test_other_clients_versions_are_left_alone(tmp_path: Path, table: Federation) -> None:
    at = opened(tmp_path, table, clients=(0, 2))
    other = say(at, job(table, 2, 1)).head
    assert "error" not in other
    last = None
    for round in (1, 2, 3):
        last = trained(at, table, round, last)
    assert versions(at, 2) == [1]


def test_a_message_that_comes_late_deletes_nothing_newer(tmp_path: Path, table: Federation) -> None:
    """A job of round 2 comes again in round 5, with what was kept in round 2."""
    at, heads = opened(tmp_path, table), list[Any]()
    for round in range(1, 6):
        kept = [version for version in (round - 2, round - 1) if version > 0]
        heads.append(trained(at, table, round, heads[-1] if heads else None, keep=kept))
    assert versions(at) == [3, 4, 5]
    late = job(table, 0, 2, version=1, sha256=heads[0]["sha256"], keep=[1])
    assert "cannot be read" in error(host(tmp_path, table), late)
    assert versions(at) == [3, 4, 5]
    evaluation = job(table, 0, 4, kind="evaluate", version=4, sha256=heads[3]["sha256"], keep=[3, 4])
    assert set(say(host(tmp_path, table), evaluation).head["scores"]) == {"validation", "test"}
    assert versions(at) == [3, 4, 5]


def test_a_version_that_is_not_here_deletes_none(tmp_path: Path, table: Federation) -> None:
    """The server's run and this folder do not belong together: nothing is lost while that is mended."""
    at = opened(tmp_path, table)
    trained(at, table, 2, trained(at, table, 1))
    error(at, job(table, 0, 9, version=8, keep=[7, 8]))
    assert versions(at) == [1, 2]


def test_the_same_job_twice_gives_the_same_answer(tmp_path: Path, table: Federation) -> None:
    """It is sent again when it is not known whether it arrived."""
    at = opened(tmp_path, table)
    first = trained(at, table, 1)
    one, other = (say(at, job(table, 0, 2, version=1, sha256=first["sha256"], keep=[1])) for _ in range(2))
    assert one.body == other.body != b""
    assert one.head["sha256"] == other.head["sha256"]
    assert versions(at) == [1, 2]


def test_no_row_is_needed_of_other_clients(tmp_path: Path, table: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """A site holds the data of its own clients only."""
    asked, real = set[int](), Federation.data

    def data(self: Federation, client: int, part: str, *how: Any) -> Batch:
        asked.add(client)
        return real(self, client, part, *how)

    monkeypatch.setattr(Federation, "data", data)
    trained(opened(tmp_path, table, clients=(1,)), table, 1)
    assert asked == {1}
    infos = host(tmp_path, table, (1,))._site(tmp_path, opening(table)).federation.clients
    assert [isinstance(info, ClientInfo) and info.n > 0 for info in infos] == [False, True, False]


def test_states_are_on_disk_before_the_answer(tmp_path: Path, table: Federation) -> None:
    at = opened(tmp_path, table)
    said = trained(at, table, 1)
    path = at.local.folder / "run1" / "clients" / "0" / "1.safetensors"
    assert tree.sha256(tree.from_bytes(path.read_bytes())) == said["sha256"]
    assert all(isinstance(leaf, torch.Tensor) for leaf in tree.flatten(tree.from_bytes(path.read_bytes())).values())
