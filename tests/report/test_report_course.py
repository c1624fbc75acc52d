"""A run under memory budgets on its page: each picture where its data are, freeze points, and who never took part."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from synthetic_runs import FEDERATED, make_run, write_lines

from unalike.report import course, work, write
from unalike.report.read import read_run

MIB = 2**20
PHASES = [  # stage, step, rounds, limit, ended
    (0, 2, 3, 3, 2),
    (1, 2, 2, 4, 1),
    (2, 1, 3, 6, 1),
    (2, 2, 2, 8, 0),
]


def told(place: int, r: int, stage: int, limit: int, ended: int) -> dict[str, float]:
    measure = {"loss": 0.5 / (r + 1)} if stage == 1 else {"movement": 0.9 - 0.1 * r} if r else {}
    return {"stage": stage, "step": PHASES[place][1], "rounds": r + 1, "limit": limit, "ended": ended, **measure}


def rewritten(folder: Path, **more: Any) -> Path:
    """Each event of a run with what `more` says at its place."""
    start, *events = (json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    for name, values in more.items():
        for event, value in zip(events, values, strict=True):
            event[name] = {**event["metrics"], "server": value} if name == "metrics" else value
    write_lines(folder / "events.jsonl", [start, *events])
    return folder


def with_phases(folder: Path) -> Path:
    numbers = [
        told(place, r, stage, limit, ended if r == rounds - 1 else 0)
        for place, (stage, _, rounds, limit, ended) in enumerate(PHASES)
        for r in range(rounds)
    ]
    return rewritten(folder, metrics=numbers)


def with_budgets(folder: Path) -> Path:
    drawn = json.loads((folder / "partition.json").read_text(encoding="utf-8"))
    for client in drawn["clients"]:
        client["memory"] = (50 - 5 * client["id"]) * MIB
    (folder / "partition.json").write_text(json.dumps(drawn), encoding="utf-8")
    return folder


def with_memory(folder: Path, over: int = 0) -> Path:
    each = {"visits": 4, "evaluations": 10, "over": 0, "largest_share": 0.5, "largest_bytes": 20 * MIB}
    last = {**each, "over": over, "largest_share": 1.25 if over else 0.75}
    return rewritten(folder, memory=[each] * 9 + [last])


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A run of ten rounds without clients 3 and 7, which tells neither of phases nor of memory."""
    folder = make_run(tmp_path / "run", "profl", FEDERATED, rounds=10)
    return rewritten(folder, clients=[[0, 1, 2] if r < 5 else [4, 5, 6, 8, 9] for r in range(10)])


def sections(folder: Path) -> str:
    """Those of the page that are about the course of a run."""
    run = read_run(folder)
    return course.phases(run) + course.memory(run) + course.took_part(run)


def headings(markup: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", markup)


OWN = ["What was trained when", "Memory within the budgets", "Who took part"]


def test_each_picture_appears_only_with_its_data(plain: Path) -> None:
    assert headings(sections(plain)) == []
    assert headings(sections(with_phases(plain))) == OWN[:1]
    assert headings(sections(with_memory(plain))) == OWN[:2]
    assert headings(sections(with_budgets(plain))) == OWN


def test_on_the_page(plain: Path) -> None:
    told = write(with_budgets(with_memory(with_phases(plain)))).read_text(encoding="utf-8")
    assert headings(told)[2:7] == ["Accuracy over rounds", work.TITLE, *OWN]
    ids = re.findall(r'\bid="([^"]*)"', told)
    assert len(ids) == len(set(ids))
    below = told[told.index("The clients in numbers") :]
    rows = {i: re.search(rf'<th scope="row"[^>]*>{i}</th>(.*?)</tr>', below) for i in (0, 3)}
    cells = {i: re.findall(r"<td[^>]*>(.*?)</td>", row[1]) for i, row in rows.items() if row}
    assert cells[0][4:7] == ["50.0 MiB", "5", "shrink 2, map 2"]
    assert cells[3][4:7] == ["35.0 MiB", "0", ""]


def test_budgets_alone_show_who_took_part(plain: Path) -> None:
    told = sections(with_budgets(plain))
    assert headings(told) == OWN[2:]
    assert "Below, for each phase" not in told


def test_freeze_points_are_at_the_last_rounds_of_phases(plain: Path) -> None:
    found = course.stretches(read_run(with_phases(plain)).rounds)
    assert [(str(s), s.first, s.last, s.ended, s.limit) for s in found] == [
        ("shrink 2", 1, 3, "limit", 3),
        ("map 2", 4, 5, "rule", 4),
        ("grow 1", 6, 8, "rule", 6),
        ("grow 2", 9, 10, "", 8),
    ]
    assert found[0].curve("movement") == pytest.approx({2: 0.8, 3: 0.7})
    assert found[1].curve("loss") == {4: 0.5, 5: 0.25}
    ends = "shrink 2 in round 3 by the limit of rounds; map 2 in round 5 by the rule; grow 1 in round 8 by the rule"
    assert course.movement(found).alt == f"Effective movement over rounds in 4 phases. Ended: {ends}."


def test_freeze_points_are_drawn_where_they_are(plain: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure()
    course.movement(course.stretches(read_run(with_phases(plain)).rounds)).draw(figure, True)
    above, below = figure.axes
    marks = {int(line.get_xdata()[0]): line.get_markerfacecolor() for line in above.lines if line.get_ydata()[0] > 1}
    assert sorted(marks) == [3, 8]
    assert marks[3] != marks[8]
    assert [list(line.get_xdata()) for line in below.lines] == [[4, 5]]


def test_phases_in_words_and_numbers(plain: Path) -> None:
    told = sections(with_phases(plain))
    assert "Of 4 phases the rule ended 2 and the limit of rounds ended 1; grow 2 had not ended." in told
    cells = re.search(r"<th[^>]*>map 2</th>(.*?)</tr>", told)
    assert cells
    assert re.findall(r"<td[^>]*>(.*?)</td>", cells[1]) == ["4 to 5", "2", "4", "rule", "", "0.25", "3"]


@pytest.mark.parametrize(
    "server", [{"stage": 7, "step": 1}, {"stage": 0}, {"loss": 1.0}, {"stage": "grow", "step": []}]
)
def test_numbers_of_another_method_are_no_phases(plain: Path, server: dict[str, Any]) -> None:
    rewritten(plain, metrics=[server] * 10)
    assert sections(plain) == ""


def test_memory_is_counted_in_a_sentence(plain: Path) -> None:
    told = sections(with_memory(plain))
    assert "counted in 40 visits and 100 evaluations: none took more than it has." in told
    assert "The largest share of a budget was 0.750, in round 10." in told
    exceeded = sections(with_memory(plain, 2))
    assert "2 times one took more than it has. The largest share of a budget was 1.250" in exceeded


def test_a_client_that_never_took_part_is_named(plain: Path) -> None:
    told = sections(with_budgets(with_phases(plain)))
    assert "Of 10 clients 8 took part, 0 of them in every phase." in told
    assert "Clients 3 and 7 never took part (budgets of 15.0 MiB to 35.0 MiB)." in told


def test_all_took_part(plain: Path) -> None:
    rewritten(with_budgets(plain), clients=[list(FEDERATED)] * 10)
    assert "Of 10 clients 10 took part." in sections(plain)


def test_work_accumulates(plain: Path) -> None:
    run = read_run(plain)
    steps = work.path([run], "flops")
    assert [x for x, _ in steps] == [3e9 * r for r in range(1, 11)]
    assert steps[-1][1] == pytest.approx(0.887)
    assert work.path([run], "client_seconds") == []


def test_work_is_the_mean_over_seeds(plain: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "two", "profl", dict.fromkeys(FEDERATED, 0.5), rounds=10, seed=1)
    both = [read_run(plain), read_run(rewritten(other, flops=[1e9] * 10))]
    x, y = work.path(both, "flops")[-1]
    assert (x, y) == pytest.approx((2e10, (0.887 + 0.5) / 2))


def test_a_comparison_shows_the_work_of_each_method(compared: Path) -> None:
    told = write(compared).read_text(encoding="utf-8")
    ends = "pfedafm 0.877 after 36 GFLOP; standalone 0.801 after 36 GFLOP; fedavg 0.807 after 36 GFLOP"
    assert f'aria-label="Validation accuracy over the clients’ work: {ends}."' in told


def test_hours_where_all_rounds_have_the_seconds_of_clients(plain: Path) -> None:
    def shown() -> str:
        return str(work.single(read_run(plain), None))

    assert "client-" not in shown()
    rewritten(plain, client_seconds=[720.0] * 10)
    assert "0.887 after 2 client-hours" in shown()
    rewritten(plain, client_seconds=[720.0] * 9 + [None])
    assert "client-" not in shown()


def test_operations_that_are_not_known(plain: Path) -> None:
    rewritten(plain, flops=[None] * 10)
    assert work.single(read_run(plain), None) == ""


def test_late_scores_leave_what_the_server_told(plain: Path) -> None:
    with_phases(plain)
    late = {"event": "evaluation", "round": 10, "metrics": {"validation": {"accuracy": 0.25}}}
    with (plain / "events.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(late) + "\n")
    last = read_run(plain).rounds[-1].metrics
    assert (last.validation.accuracy, last.server["step"]) == (0.25, 2)
