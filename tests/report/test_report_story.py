"""The sentences, in each case, against numbers worked out by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from synthetic_runs import make_run, method

from unalike.errors import InputError
from unalike.report import sentence, story
from unalike.report.read import find_baseline, read_run
from unalike.report.records import Method, Run


def pair(
    folder: Path, ours: Mapping[int, float], theirs: Mapping[int, float], rival: str = "standalone"
) -> tuple[Run, Run]:
    run = make_run(folder / "a", "pfedafm", ours, rounds=1)
    return read_run(run), read_run(make_run(folder / "b", rival, theirs, rounds=1))


def told(*rows: Mapping[str, object]) -> list[str]:
    return story.comparison([Method.model_validate(row) for row in rows])


def test_paid_with_losers_named(federated: Path, alone: Path) -> None:
    assert sentence(federated) == (
        "Federating paid: mean accuracy 0.887 against 0.811 alone; 8 of 10 clients gained, clients 4 and 7 lost "
        "(by at most 2.1 points); the worst client’s accuracy rose from 0.330 to 0.830."
    )


@pytest.mark.parametrize(
    ("ours", "theirs", "judgement", "for_whom", "worst"),
    [
        (
            (0.8, 0.9),
            (0.7, 0.6),
            "paid: mean accuracy 0.850 against 0.650 alone",
            "all 2 clients gained",
            "rose from 0.600 to 0.800",
        ),
        (
            (0.5, 0.7),
            (0.8, 0.7),
            "did not pay: mean accuracy 0.600 against 0.750 alone",
            "none of 2 clients gained, client 0 lost (30.0 points)",
            "fell from 0.700 to 0.500",
        ),
        (
            (0.5, 0.95),
            (0.6, 0.7),
            "paid on the mean only: mean accuracy 0.725 against 0.650 alone",
            "1 of 2 clients gained, client 0 lost (10.0 points)",
            "fell from 0.600 to 0.500",
        ),
        (
            (0.6, 0.6),
            (0.5, 0.8),
            "did not pay on the mean, though it lifted the worst client: mean accuracy 0.600 against 0.650 alone",
            "1 of 2 clients gained, client 1 lost (20.0 points)",
            "rose from 0.500 to 0.600",
        ),
        (
            (0.6, 0.7),
            (0.6, 0.7),
            "did not pay: mean accuracy 0.650 against 0.650 alone",
            "none of 2 clients gained, none lost",
            "stayed at 0.600",
        ),
    ],
    ids=["paid", "did not pay", "on the mean only", "lifted the worst", "no difference"],
)
def test_verdict(
    tmp_path: Path, ours: Sequence[float], theirs: Sequence[float], judgement: str, for_whom: str, worst: str
) -> None:
    told = story.verdict(*pair(tmp_path, dict(enumerate(ours)), dict(enumerate(theirs))))
    assert told == f"Federating {judgement}; {for_whom}; the worst client’s accuracy {worst}."


def test_many_losers_are_counted(tmp_path: Path) -> None:
    run, other = pair(tmp_path, dict.fromkeys(range(8), 0.5), {i: 0.51 + i / 100 for i in range(8)})
    assert "none of 8 clients gained, 8 lost (by at most 8.0 points)" in story.verdict(run, other)


def test_against_another_method(tmp_path: Path) -> None:
    run, other = pair(tmp_path, {0: 0.8, 1: 0.9}, {0: 0.7, 1: 0.6}, rival="fedavg")
    assert story.verdict(run, other).startswith("pfedafm is ahead: mean accuracy 0.850 against 0.650 with fedavg;")
    assert story.verdict(other, run).startswith("fedavg is behind: mean accuracy 0.650 against 0.850 with pfedafm;")


def test_standard_error_of_paired_differences(tmp_path: Path) -> None:
    """Differences .1 .2 .3: mean .2, deviation .1, error .1 / sqrt 3 = .0577."""
    run, other = pair(tmp_path, {0: 0.6, 1: 0.7, 2: 0.8}, {0: 0.5, 1: 0.5, 2: 0.5})
    assert story.caution(run, other) == (
        "The mean difference is +20.0 ± 5.8 points (standard error over 3 clients, one seed)."
    )
    assert story.caution(run, None) == ""


def test_a_difference_within_twice_its_error_is_doubted(tmp_path: Path) -> None:
    """Differences .3 and -.1: mean .1, deviation .2828, error .2."""
    run, other = pair(tmp_path, {0: 0.8, 1: 0.5}, {0: 0.5, 1: 0.6})
    assert story.caution(run, other).endswith(
        "+10.0 ± 20.0 points (standard error over 2 clients, one seed): within twice its error, so it may be chance."
    )


def test_without_baseline_the_command_is_given(federated: Path) -> None:
    run = read_run(federated)
    assert find_baseline(federated, run) is None
    assert story.verdict(run, None) == (
        "Mean test accuracy is 0.887 over 10 clients, the worst client’s 0.830 (client 4). "
        "Whether federating paid is not known: standalone was not run on this partition."
    )
    assert story.remedy(run) == (
        "This, run beside it and followed by a new report, would tell: `unalike run standalone --data digits "
        "--clients 10 --partition dirichlet:0.5 --split 60/20/20 --seed 0 --rounds 12 --local-epochs 2`"
    )


@pytest.mark.parametrize(
    ("model", "method"), [("lm:tiny(r=2)", "local-lora"), ("vl:tiny", "local-adapter"), ("cnn-5", "standalone")]
)
def test_the_baseline_is_for_the_clients_models(model: str, method: str, federated: Path) -> None:
    run = read_run(federated)
    run = replace(run, experiment={**run.experiment, "models": [model], "modalities": "1:text"})
    assert f" {method} was not run" in story.verdict(run, None)
    assert f"`unalike run {method} " in story.remedy(run)
    assert "--modalities 1:text" in story.remedy(run)


def test_the_baseline_itself(alone: Path) -> None:
    assert sentence(alone) == (
        "Each client alone: mean test accuracy is 0.811 over 10 clients, the worst client’s 0.330 (client 3). "
        "This is what federating has to beat."
    )


def test_the_best_fitting_neighbour_is_the_baseline(federated: Path) -> None:
    runs = federated.parent
    make_run(runs / "weak", "standalone", {0: 0.1}, rounds=1)
    make_run(runs / "strong", "standalone", {0: 0.9}, rounds=1)
    make_run(runs / "other-seed", "standalone", {0: 1.0}, rounds=1, seed=7)
    make_run(runs / "unfinished", "standalone", {0: 1.0}, rounds=1, finished=False)
    (runs / "broken").mkdir()
    (runs / "broken" / "summary.json").write_text("{", encoding="utf-8")
    found = find_baseline(federated, read_run(federated))
    assert found is not None
    assert found.name == "strong"


def test_settled_comparison() -> None:
    assert told(
        method("pfedafm", 0.887, 0.010, worst=0.83),
        method("standalone", 0.821, 0.012, worst=0.33),
        method("fedavg", 0.880, 0.020, worst=0.85),
    ) == [
        "pfedafm has the highest mean accuracy, 0.887 ± 0.010 (95 % interval over 3 seeds); the best worst client is "
        "fedavg’s, 0.850 against 0.830.",
        "Federating paid on the mean: standalone (0.821 ± 0.012) is 6.6 points behind and the intervals do not "
        "overlap.",
        "The next best: fedavg (0.880 ± 0.020) is 0.7 points behind, but the intervals overlap: the order is not "
        "settled.",
    ]


def test_standalone_wins() -> None:
    assert told(method("fedavg", 0.78, 0.01), method("standalone", 0.82, 0.01))[1] == (
        "No federated method beat standalone. The nearest: fedavg (0.780 ± 0.010) is 4.0 points behind and the "
        "intervals do not overlap."
    )


def test_a_single_seed_has_no_interval() -> None:
    assert told(method("pfedafm", 0.9), method("standalone", 0.8)) == [
        "pfedafm has the highest mean accuracy, 0.900, and the best worst client, 0.800.",
        "Federating paid on the mean: standalone (0.800) is 10.0 points behind.",
        "With a single seed there is no interval: these differences may be chance.",
    ]


def test_failed_methods_are_told_with_their_reason() -> None:
    broken = method("fedavg", None, status="failed", reason="client 3 ran out of memory.")
    assert told(method("pfedafm", 0.9), broken) == [
        "Only pfedafm finished: mean accuracy 0.900.",
        "Whether federating pays is not known: no method that trains each client alone did finish.",
        "fedavg failed: client 3 ran out of memory.",
    ]
    assert told(broken) == ["No method finished.", "fedavg failed: client 3 ran out of memory."]


def test_sentence_of_a_comparison(compared: Path) -> None:
    assert sentence(compared).startswith(
        "pfedafm has the highest mean accuracy, 0.877 ± 0.011 (95 % interval over 3 seeds)"
    )


def test_unfinished_run_is_told_at_its_best_validated_round(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", "pfedafm", {0: 0.8, 1: 0.6}, rounds=4, finished=False)
    run = read_run(folder)
    assert (run.finished, run.algorithm, run.summary.rounds, run.summary.selected_round) == (False, "pfedafm", 4, 4)
    assert run.summary.accuracy.mean == pytest.approx(0.7)
    assert run.summary.bytes.up == 2_080_992 * 6  # client 0 took part in rounds 1, 2, 3 and client 1 in 1, 2, 4


@pytest.mark.parametrize(
    ("name", "text", "where"),
    [
        ("events.jsonl", '{"event": "start"}\n\n{"event": \n', "events.jsonl: line 3: Invalid JSON"),
        ("events.jsonl", '{"event": "round", "round": "x"}\n', "events.jsonl: line 1: round: Input should be"),
        ("summary.json", "[]", "summary.json: Input should be"),
        ("experiment.toml", "a = \n", "experiment.toml is not TOML: "),
    ],
)
def test_broken_files_are_named(federated: Path, name: str, text: str, where: str) -> None:
    (federated / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_run(federated)
    assert where in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_was_not_measured_is_left_out(federated: Path) -> None:
    summary = json.loads((federated / "summary.json").read_text(encoding="utf-8"))
    summary["accuracy"]["per_client"] |= {"3": None, "4": float("nan")}
    (federated / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert read_run(federated).summary.accuracy.per_client.keys() == {0, 1, 2, 5, 6, 7, 8, 9}
