"""Sites that lose, repeat, forge, leave and come back: the run ends in the same bits, or in one line that says why."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from messages import QUICK, Scripted, host, job, rounds_of, scripted, setup, train

from unalike import api
from unalike.data.federation import Federation, federation
from unalike.engines.flower.client import client_app
from unalike.engines.serial import Serial
from unalike.engines.wire import Message
from unalike.errors import RunError

SITES = [(0,), (1, 2), (3,)]


@pytest.fixture(scope="module")
def table() -> Federation:
    """Four clients with one small model on the wines."""
    return federation("wine", clients=4, models=["mlp-5"], min_per_client=20)


@pytest.fixture(scope="module")
def undisturbed(table: Federation, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The hash in which three rounds end on the serial engine."""
    result = train(tmp_path_factory.mktemp("serial") / "r", "pfedafm", table, Serial(), rounds=3)
    return str(result.summary["state_sha256"])


def once(
    verdict: Any, kind: str = "update", client: int | None = 1, round: int | None = 2, times: int = 1
) -> Callable[[Mapping[str, Any], int], Any]:
    """A script that says something the first times that a message of a kind is pulled, and "answer" for the rest."""
    left = [times]

    def script(head: Mapping[str, Any], node: int) -> Any:
        if (head["kind"], head.get("round"), head.get("client")) == (kind, round, client) and left[0]:
            left[0] -= 1
            return verdict
        return "answer"

    return script


def jobs(grid: Scripted) -> Counter[tuple[int, int]]:
    """How often each job was sent, by round and client."""
    return Counter((head["round"], head["client"]) for head in grid.pushed if head["kind"] == "update")


def at(round: int, do: Callable[[], Any]) -> list[Any]:
    """A listener that does something when a round is committed."""
    return [lambda event: do() if (event["event"], event["round"]) == ("round", round) else None]


# What gets lost, comes twice, or is forged


def test_several_sites_end_in_the_bits_of_one_process(table: Federation, tmp_path: Path, undisturbed: str) -> None:
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    assert grid.kinds().count("open") == 3
    assert "ping" not in grid.kinds()
    assert set(jobs(grid).values()) == {1}


@pytest.mark.parametrize("restarted", [False, True])
def test_a_job_that_got_lost_is_sent_again_when_a_later_ping_is_answered(
    table: Federation, tmp_path: Path, undisturbed: str, restarted: bool
) -> None:
    """Also to a site whose process is a new one, which reads from its folder what it knew."""
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    lose = once("lose")

    def script(head: Mapping[str, Any], node: int) -> Any:
        verdict = lose(head, node)
        if verdict == "lose" and restarted:
            grid._apps[node] = client_app(host(tmp_path, table, SITES[node - 1]).answer)
        return verdict

    grid.script = script
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    assert "ping" in grid.kinds()
    assert {job for job, times in jobs(grid).items() if times > 1} == {(2, 1)}


@pytest.mark.parametrize("kind", ["update", "evaluate"])
def test_an_error_of_flowers_is_retried(table: Federation, tmp_path: Path, undisturbed: str, kind: str) -> None:
    round = 2 if kind == "update" else 3
    grid, engine = scripted(tmp_path, table, SITES, once("fail", kind, round=round, times=3), at_least=3)
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    heads = [head for head in grid.pushed if (head["kind"], head.get("round"), head.get("client")) == (kind, round, 1)]
    assert len(heads) == 4
    assert all(head == heads[0] for head in heads)


def test_an_error_that_is_told_at_every_look_does_not_put_off_the_next_try(
    table: Federation, tmp_path: Path, undisturbed: str
) -> None:
    """A SuperLink tells of a node that is away each time it is asked, and for as long as the message is waited for."""
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    looks = [0]

    def script(head: Mapping[str, Any], node: int) -> str:
        if (head["kind"], head.get("round"), head.get("client")) != ("update", 2, 1) or jobs(grid)[2, 1] > 1:
            return "answer"
        looks[0] += 1
        assert looks[0] < 2000, "the job is never sent again"
        return "down"

    grid.script = script
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    assert jobs(grid)[2, 1] == 2


@pytest.mark.parametrize(
    ("verdict", "why"),
    [("fail", r"the client app is being restarted \(code 2\)"), ("lose", "the site was restarted")],
)
def test_a_site_that_never_answers_a_job_ends_the_run_in_one_line(
    table: Federation, tmp_path: Path, verdict: str, why: str
) -> None:
    """It names round, client, site and remedy; what was committed can be gone on with."""
    _, engine = scripted(tmp_path, table, SITES, once(verdict, times=10**6), at_least=3)
    started = time.monotonic()
    with pytest.raises(RunError, match=why) as caught:
        train(tmp_path / "r", "pfedafm", table, engine, rounds=3)
    assert QUICK.gone < time.monotonic() - started < 60
    said = str(caught.value)
    assert said.startswith("round 2, client 1: site site1 has not answered for 0.4 s (")
    assert said.endswith("): start it again, then go on with unalike deploy run")
    assert [event["round"] for event in rounds_of(tmp_path / "r")] == [1]


def test_a_reply_that_comes_twice_is_taken_once(table: Federation, tmp_path: Path, undisturbed: str) -> None:
    _, engine = scripted(tmp_path, table, SITES, lambda head, node: "twice" if "round" in head else "answer")
    engine.at_least = 3
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed


def test_replies_that_come_in_any_order_are_put_in_the_order_of_requests(table: Federation, tmp_path: Path) -> None:
    """The Grid is asked for them more often the lower a client's number is: they come backwards."""
    asked, came = Counter[int](), list[int]()

    def script(head: Mapping[str, Any], node: int) -> str:
        if head["kind"] == "update":
            asked[head["client"]] += 1
            if asked[head["client"]] <= 3 * (3 - head["client"]):
                return "wait"
            came.append(head["client"])
        return "answer"

    unhurried = dataclasses.replace(
        QUICK, ping=60.0
    )  # so that no site is asked whether it is there while it is made to wait
    _, engine = scripted(tmp_path, table, SITES, script, at_least=3, patience=unhurried)
    engine.open(*setup(table))
    engine.present(table.clients)
    replies = list(engine.map(job(table, client).encode() for client in range(4)))
    assert came == [3, 2, 1, 0]
    assert [Message.decode(frame).head["client"] for frame in replies] == [0, 1, 2, 3]


@pytest.mark.parametrize("field", ["run", "kind", "round", "client"])
def test_a_reply_for_anything_else_than_was_asked_is_refused(table: Federation, tmp_path: Path, field: str) -> None:
    """Another client's, an earlier round's, another run's, or scores that were said to be an update."""
    other = {"run": "run2", "kind": "evaluate", "round": 1, "client": 2}[field]

    def forge(reply: Message) -> Message:
        return Message({**reply.head, field: other}, reply.body)

    _, engine = scripted(tmp_path, table, SITES, once(forge), at_least=3)
    with pytest.raises(RunError, match=r"site site1 answered \{.*\} when asked \{.*\}: its reply is refused"):
        train(tmp_path / "r", "pfedafm", table, engine, rounds=3)
    assert [event["round"] for event in rounds_of(tmp_path / "r")] == [1]


def test_an_error_at_a_site_ends_the_run_in_its_line(table: Federation, tmp_path: Path) -> None:
    _, engine = scripted(tmp_path, table, SITES, at_least=3)
    with pytest.raises(RunError, match=r"^round 1, client \d: .* not finite after training: lower --lr") as caught:
        train(tmp_path / "r", "pfedafm", table, engine, rounds=3, lr=1e37)
    assert "\n" not in str(caught.value)
    assert not getattr(caught.value, "__notes__", [])


def test_no_more_than_two_jobs_a_site_are_on_their_way(table: Federation, tmp_path: Path) -> None:
    most = [0]

    def script(head: Mapping[str, Any], node: int) -> str:
        most[0] = max(most[0], len(grid._asked))
        return "answer"

    grid, engine = scripted(tmp_path, table, [(0, 1, 2, 3)], script)
    train(tmp_path / "r", "pfedafm", table, engine, rounds=2)
    assert most == [2]


# Time


def test_a_job_may_take_longer_than_a_site_may_be_gone(table: Federation, tmp_path: Path, undisturbed: str) -> None:
    """And one restart in it is survived: what counts is the time since all was well, not since it was sent."""
    begun, lost = list[float](), list[int]()

    def script(head: Mapping[str, Any], node: int) -> str:
        if node != 2:
            return "answer"
        if (head["kind"], head.get("round"), head.get("client")) == ("update", 2, 1) and not lost:
            begun.append(time.monotonic())
            if time.monotonic() - begun[0] < 3 * QUICK.gone:
                return "wait"
            lost.append(1)
            return "lose"
        return "wait" if begun and not lost else "answer"

    grid, engine = scripted(tmp_path, table, SITES, script, at_least=3)
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    assert lost == [1]
    assert jobs(grid)[2, 1] == 2


def test_a_site_that_is_away_for_a_while_is_waited_for_without_pings(
    table: Federation, tmp_path: Path, undisturbed: str
) -> None:
    """They would all be answered, one after the other, when it comes back."""
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    gone = list[float]()
    begun = once("wait")

    def script(head: Mapping[str, Any], node: int) -> str:
        if begun(head, node) == "wait":
            gone.append(time.monotonic())
            grid.here.discard(2)
            return "wait"
        return "answer"

    def nodes() -> Any:
        if gone and time.monotonic() - gone[0] > 0.6 * QUICK.gone:
            grid.here.add(2)
        return real()

    grid.script, real, grid.get_nodes = script, grid.get_nodes, nodes  # type: ignore[method-assign]
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=3).summary["state_sha256"] == undisturbed
    assert gone
    assert grid.kinds().count("ping") <= 2


def test_a_site_that_stays_away_ends_the_run(table: Federation, tmp_path: Path) -> None:
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)

    def script(head: Mapping[str, Any], node: int) -> str:
        if (head["kind"], head.get("round")) == ("update", 2):
            grid.here.discard(2)
        return "answer" if node in grid.here else "wait"

    grid.script = script
    with pytest.raises(RunError, match=r"round 2, client [12]: site site1 has not answered for 0.4 s \(it is away\)"):
        train(tmp_path / "r", "pfedafm", table, engine, rounds=3)


# Who is there


def test_a_site_that_joins_is_told_the_run_and_takes_part(table: Federation, tmp_path: Path) -> None:
    grid, engine = scripted(tmp_path, table, SITES, at_least=2)
    grid.here.discard(3)
    train(tmp_path / "r", "pfedafm", table, engine, at(2, lambda: grid.here.add(3)), rounds=4)
    assert [event["clients"] for event in rounds_of(tmp_path / "r")] == [[0, 1, 2]] * 2 + [[0, 1, 2, 3]] * 2
    kinds = [(head["kind"], head.get("client")) for head in grid.pushed]
    assert grid.kinds().count("open") == 3
    assert kinds.index(("update", 3)) > max(i for i, kind in enumerate(kinds) if kind[0] == "open")
    scores = {event["round"]: set(event["evaluation"]["test"]) for event in rounds_of(tmp_path / "r")}
    assert scores == {1: set("012"), 2: set("0123"), 3: set("0123"), 4: set("0123")}


def test_a_site_that_has_left_is_neither_chosen_nor_scored(table: Federation, tmp_path: Path) -> None:
    grid, engine = scripted(tmp_path, table, SITES, at_least=2)
    train(tmp_path / "r", "pfedafm", table, engine, at(2, lambda: grid.here.discard(2)), rounds=4)
    assert [event["clients"] for event in rounds_of(tmp_path / "r")] == [[0, 1, 2, 3]] * 2 + [[0, 3]] * 2
    assert {round for round, client in jobs(grid) if client in (1, 2)} == {1, 2}
    last = rounds_of(tmp_path / "r")[-1]
    assert set(last["evaluation"]["test"]) == {"0", "3"}


def test_a_site_that_comes_back_goes_on_from_its_own_state(table: Federation, tmp_path: Path) -> None:
    """It was away in round 3: its clients start round 4 from what they had after round 2."""
    grid, engine = scripted(tmp_path, table, SITES, at_least=2)

    def listen(event: Mapping[str, Any]) -> None:
        if event["event"] == "round" and event["round"] in (2, 3):
            (grid.here.discard if event["round"] == 2 else grid.here.add)(2)
            grid._apps[2] = client_app(host(tmp_path, table, SITES[1]).answer)

    train(tmp_path / "r", "pfedafm", table, engine, [listen], rounds=4)
    heads = {(h["round"], h["client"]): h["version"] for h in grid.pushed if h["kind"] == "update"}
    assert [heads.get((round, 1)) for round in (1, 2, 3, 4)] == [0, 1, None, 2]
    assert [heads[round, 0] for round in (1, 2, 3, 4)] == [0, 1, 2, 3]


def test_too_few_sites_end_in_one_line_in_time(table: Federation, tmp_path: Path) -> None:
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    grid.here.discard(1)
    started = time.monotonic()
    with pytest.raises(RunError, match=r"^2 of 3 sites are there after 0.3 s: start unalike site at the others"):
        train(tmp_path / "r", "pfedafm", table, engine, rounds=1)
    assert QUICK.join < time.monotonic() - started < 60
    grid.here.add(1)
    assert train(tmp_path / "r", "pfedafm", table, engine, rounds=1).summary["rounds"] == 1


def test_why_a_site_does_not_take_part_stands_beside_it(table: Federation, tmp_path: Path) -> None:
    """Under another's name, with another's client, unexpected, or failing: the line says which."""
    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    grid.names = {1: "site0", 2: "site3", 3: "site3"}
    with pytest.raises(
        RunError, match="a site calls itself site1, but its key was registered for site3: it is refused"
    ):
        train(tmp_path / "a", "pfedafm", table, engine, rounds=1)
    expected = {"site0": (0,), "site1": (1,), "site3": (3,)}
    _, engine = scripted(tmp_path, table, SITES, at_least=3, expected=expected)
    with pytest.raises(RunError, match="site site1 says it has client 2, which is not its own: mend clients in"):
        train(tmp_path / "b", "pfedafm", table, engine, rounds=1)
    _, engine = scripted(tmp_path, table, SITES, at_least=3, expected={"site0": (0,), "site1": (1, 2)})
    with pytest.raises(RunError, match="site site3 does not take part now; those who do are site0, site1"):
        train(tmp_path / "c", "pfedafm", table, engine, rounds=1)
    grid, engine = scripted(tmp_path, table, SITES, lambda _, node: "fail" if node < 3 else "answer", at_least=3)
    with pytest.raises(RunError, match=r"1 of 3 sites .*the client app is being restarted"):
        train(tmp_path / "d", "pfedafm", table, engine, rounds=1)
    assert not jobs(grid)


def test_a_client_at_two_sites_ends_the_run(table: Federation, tmp_path: Path) -> None:
    _, engine = scripted(tmp_path, table, [(0,), (1, 0)], at_least=2)
    with pytest.raises(
        RunError, match=r"client 0 is at site site0 and site site1: give each its own number in site.toml"
    ):
        train(tmp_path / "r", "pfedafm", table, engine, rounds=1)


def test_other_versions_are_warned_of(table: Federation, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def forge(reply: Message) -> Message:
        return Message({**reply.head, "versions": {**reply.head["versions"], "torch": "1.0"}})

    _, engine = scripted(tmp_path, table, SITES, once(forge, "open", None, None), at_least=3)
    train(tmp_path / "r", "pfedafm", table, engine, rounds=1)
    (said,) = [record.getMessage() for record in caplog.records if "bits may differ" in record.getMessage()]
    assert said.startswith("site site0 has torch 1.0, the server ")


def test_what_a_site_says_of_its_clients_is_what_the_method_sees(table: Federation, tmp_path: Path) -> None:
    """A server of real sites knows no sizes before."""
    blank = dataclasses.replace(table, clients=tuple(dataclasses.replace(c, n=0) for c in table.clients))
    _, engine = scripted(tmp_path, table, SITES, at_least=3)
    prepared = api.prepare("pfedafm", table, rounds=1, local_epochs=1)
    assert engine.gather().keys() == {0, 1, 2, 3}
    assert [info.n for info in engine.present(blank.clients)] == [info.n for info in prepared.federation.clients]


def test_a_server_that_starts_again_ends_in_the_same_bits(table: Federation, tmp_path: Path, undisturbed: str) -> None:
    """A new engine, as after kill -9, on the same run's name; the sites have been there all the time."""

    class Killed(Exception):  # noqa: N818
        pass

    def kill() -> None:
        raise Killed

    grid, engine = scripted(tmp_path, table, SITES, at_least=3)
    with pytest.raises(Killed):
        train(tmp_path / "r", "pfedafm", table, engine, at(2, kill), rounds=3)
    again = type(engine)(grid, "run1", at_least=3, patience=QUICK)
    assert train(tmp_path / "r", "pfedafm", table, again, rounds=3).summary["state_sha256"] == undisturbed
    assert set(jobs(grid).values()) == {1}
