"""A grid: its page, its CSV and its Markdown, complete and renewed in place."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from synthetic_runs import FAILED, row, write_comparison

from unalike.errors import InputError
from unalike.report import sentence, write

OURS = row("ours", [0.90, 0.80, 0.85])
FAR = row("far", [0.88, 0.77, 0.81], OURS)
ABOVE = row("above", [0.92, 0.83, 0.89], OURS)


@pytest.fixture
def grid(tmp_path: Path) -> Path:
    """Ours is 3 points above far in the first regime, 3 below `above` in the second; the third has not begun."""
    folder = tmp_path / "grid"
    write_comparison(folder / "r1", [OURS, FAR, FAILED], clients=3)
    write_comparison(folder / "r2", [OURS, FAR, ABOVE])
    regimes = [
        {"name": f"digits, {scheme}", "folder": f"r{k}", "keys": {"partition": scheme}, "status": status}
        for k, (scheme, status) in enumerate((("iid", "done"), ("classes:2", "done"), ("site", "running")), 1)
    ]
    about = {"title": "Three regimes", "regimes": regimes}
    (folder / "grid.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def test_sentence_of_a_grid(grid: Path) -> None:
    assert sentence(grid) == (
        "ours is above the best of the others in 1 of 2 regimes, below in 1. It stands best in digits, iid, 3.0 points "
        "above far, and worst in digits, classes:2, 3.0 points below above. Not finished: digits, site."
    )


def test_page_of_a_grid(grid: Path) -> None:
    write(grid / "r1")
    page = write(grid).read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == [
        "The result in one sentence",
        "ours against the best",
        "All regimes",
        "Each regime",
        "Where this comes from",
    ]
    assert '<a href="r1/report.html">digits, iid</a>' in page
    assert "r2/report.html" not in page
    assert '<span class="above">▲ +3.0</span><small>+0.5 to +5.5, far</small>' in page
    assert '<span class="below">▼ −3.0</span><small>−5.5 to −0.5, above</small>' in page
    assert '<td class="n"><strong>0.880</strong><small>± 0.114</small></td>' in page
    assert page.count("<strong>0.850</strong>") == 1
    assert ">failed</span>" in page
    assert "<small>running</small>" in page
    assert "<dd>c0ffee</dd>" in page
    assert "<dd>2 runs</dd>" in page


def test_csv_has_a_line_for_each_regime_and_method(grid: Path) -> None:
    write(grid)
    with (grid / "grid.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["regime"], r["partition"], r["method"], r["regime_status"]) for r in rows] == [
        ("digits, iid", "iid", "ours", "done"),
        ("digits, iid", "iid", "far", "done"),
        ("digits, iid", "iid", "fedmd", "done"),
        ("digits, classes:2", "classes:2", "ours", "done"),
        ("digits, classes:2", "classes:2", "far", "done"),
        ("digits, classes:2", "classes:2", "above", "done"),
        ("digits, site", "site", "", "running"),
    ]
    assert (rows[2]["reason"], float(rows[0]["mean"])) == (FAILED["reason"], pytest.approx(0.85))


def test_markdown_of_a_grid(grid: Path) -> None:
    write(grid)
    text = (grid / "grid.md").read_text()
    assert text.startswith("# Three regimes\n\n## All regimes\n\nours is above the best")
    assert re.findall("^## (.*)$", text, re.MULTILINE) == [
        "All regimes",
        "digits, iid",
        "digits, classes:2",
        "digits, site",
        "Where this comes from",
    ]
    assert "| regime | ours | far | fedmd | above |\n" in text
    assert "| digits, iid | **0.850 ± 0.124** | 0.820 ± 0.138 | failed | – |\n" in text
    assert "| digits, classes:2 | 0.850 ± 0.124 | 0.820 ± 0.138 | – | **0.880 ± 0.114** |\n" in text
    assert "| digits, site (running) | – | – | – | – |\n" in text
    verdict = "ours is 3.0 points above far, the best of the others (95 % interval 0.5 to 5.5 over 3 seeds)."
    assert f"- digits, iid: {verdict}\n" in text
    assert f"## digits, iid\n\n{verdict}\n" in text
    assert "- commit: c0ffee\n" in text
    assert "that is hardest on ours" in text


def test_rivals_are_judged_and_others_above_named(grid: Path) -> None:
    about = json.loads((grid / "grid.json").read_text())
    (grid / "grid.json").write_text(json.dumps(about | {"rivals": ["far"]}))
    write(grid)
    assert (
        "- digits, classes:2: ours is 3.0 points above far, the best of the rivals (95 % interval 0.5 to 5.5 over 3 "
        "seeds); above it, though no rival: above by 3.0 points (95 % interval 0.5 to 5.5 over 3 seeds).\n"
    ) in (grid / "grid.md").read_text()
    assert sentence(grid).startswith("ours is above the best of the rivals in 2 of 2 regimes, below in none.")


def test_a_page_keeps_its_head_and_is_renewed(grid: Path, tmp_path: Path) -> None:
    page = tmp_path / "regimes.md"
    page.write_text("# Regimes\n\nWritten by hand.\n\n### Kept\n\n## Old\n\ngone\n", encoding="utf-8")
    write(grid, page=page)
    first = page.read_text()
    assert first.startswith("# Regimes\n\nWritten by hand.\n\n### Kept\n\n## All regimes\n")
    assert "gone" not in first
    write(grid, page=page)
    assert page.read_text() == first
    write(grid, page=tmp_path / "new.md")
    assert (tmp_path / "new.md").read_text() == (grid / "grid.md").read_text()


def test_a_comparison_is_written_into_a_page_too(grid: Path, tmp_path: Path) -> None:
    page = tmp_path / "one.md"
    page.write_text("# One\n\nBy hand.\n\n## Old\n", encoding="utf-8")
    write(grid / "r1", page=page)
    found = page.read_text()
    assert found.startswith("# One\n\nBy hand.\n\n## The methods\n")
    assert "| ours |" in found
    assert "## Where this comes from\n\n- seeds: 0, 1, 2\n" in found
    assert "Old" not in found


def test_where_no_reference_is_the_leaders_are_counted(grid: Path) -> None:
    for name, rows in (("r1", [OURS, FAR]), ("r2", [OURS, ABOVE])):
        (grid / name / "compare.json").write_text(json.dumps([{**one, "difference": None} for one in rows]))
    assert sentence(grid).startswith("The highest mean accuracy has ours in 1 regime and above in 1 regime.")
    assert "against best" not in write(grid).read_text()


def test_a_failed_reference_is_said(grid: Path) -> None:
    broken = {**FAILED, "method": "ours"}
    (grid / "r1" / "compare.json").write_text(json.dumps([broken, FAR]))
    assert "in none of 1 regime, below in 1." in sentence(grid)
    assert "Nothing to compare in digits, iid." in sentence(grid)


def test_what_is_wrong_with_a_grid_is_said(grid: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leave out --page"):
        write(next((grid / "r1").glob("*-seed0"), grid / "r1" / "none"), page=tmp_path / "x.md")
    (grid / "r2" / "compare.json").unlink()
    with pytest.raises(InputError, match=r"grid\.json says that r2 is done, but it has no compare\.json"):
        write(grid)
