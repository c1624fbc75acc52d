"""compare.csv, compare.tex and compare.md: complete rows, and nothing in a name or reason that is markup."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic_runs import FAILED, row, write_comparison

from unalike.report import latex, markdown, write
from unalike.report.records import Method

OURS = row("ours", [0.90, 0.80, 0.85])
FAR = row("far_1", [0.88, 0.77, 0.81], OURS, target={"accuracy": 0.8, "reached": 0, "seeds": 3})
LATEX = shutil.which("pdflatex") or shutil.which("latex")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = write_comparison(tmp_path / "c", [OURS, FAR, FAILED])
    write(folder)
    return folder


def test_csv_has_every_figure_as_a_number(folder: Path) -> None:
    with (folder / "compare.csv").open(newline="") as file:
        ours, far, failed = csv.DictReader(file)
    assert (ours["method"], float(ours["mean"]), ours["seeds"]) == ("ours", pytest.approx(0.85), "0 1 2")
    assert [float(mean) for mean in ours["means"].split()] == [0.90, 0.80, 0.85]
    assert (ours["difference"], ours["target_bytes"], ours["bytes_per_round_up"]) == ("", "12300000.0", "9350000.0")
    assert (float(far["difference"]), far["difference_to"]) == (pytest.approx(-0.03), "ours")
    assert float(far["difference_ci95"]) == pytest.approx(0.02484, abs=1e-5)
    assert (far["chosen"], far["trials"], far["target_reached"]) == ('{"lr": 0.05, "momentum": 0.9}', "24", "0")
    assert (failed["status"], failed["reason"], failed["mean"]) == ("failed", FAILED["reason"], "")


def columns_of(line: str) -> int:
    """How many columns a line of a tabular spans."""
    spans = [int(n) - 1 for n in re.findall(r"\\multicolumn\{(\d+)\}", line)]
    return len(re.findall(r"(?<!\\)&", line)) + 1 + sum(spans)


def test_latex_is_balanced_and_each_row_has_all_columns(folder: Path) -> None:
    text = (folder / "compare.tex").read_text()
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    shape = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert shape is not None
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert [columns_of(line) for line in rows] == [len(shape[1])] * 4
    assert re.findall(r"\\(?:begin|end)\{(table\*|tabular)\}", text) == [
        "table*",
        "tabular",
        "tabular",
        "table*",
    ]


def test_latex_rows(folder: Path) -> None:
    rows = (folder / "compare.tex").read_text().splitlines()
    assert r"ours & \textbf{0.850 $\pm$ 0.124} & 0.050 & 0.770 & 0.750 & -- & 374 MB & 36 GFLOP \\" in rows
    assert r"far\_1 & 0.820 $\pm$ 0.138 & 0.050 & 0.740 & 0.720 & $-$3.0 $\pm$ 2.5 & 374 MB & 36 GFLOP \\" in rows
    assert (
        r"fedmd & \multicolumn{7}{p{.7\linewidth}}{failed: client 3 sent fc/weight (10, 64), a\_b \textbar{} c \& d "
        r"\textless{} e} \\" in rows
    )


def test_a_method_of_which_some_seeds_failed_keeps_its_figures() -> None:
    half = Method.model_validate({**FAR, "status": "failed", "reason": "seed 2: no memory"})
    text = latex.table([Method.model_validate(OURS), half], "caption")
    assert "far\\_1 & 0.820" in text
    assert r" & \multicolumn{7}{p{.7\linewidth}}{failed: seed 2: no memory} \\" in text
    assert "| far_1 | failed: seed 2: no memory | 0.820 ± 0.138 |" in markdown.methods(
        [Method.model_validate(OURS), half]
    )


@pytest.mark.skipif(LATEX is None, reason="needs LaTeX")
def test_latex_compiles(folder: Path) -> None:
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}\input{compare.tex}\end{document}"
    (folder / "page.tex").write_text(page)
    subprocess.run([str(LATEX), "-interaction=nonstopmode", "-halt-on-error", "page.tex"], cwd=folder, check=True)


def test_markdown_table(folder: Path) -> None:
    head, rule, ours, far, failed, *rest = (folder / "compare.md").read_text().splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in (rule, ours, far, failed)] == [head.count("|")] * 4
    assert ours.startswith("| ours | done | **0.850 ± 0.124** | reference | 0.854 | 0.050 | 0.750 | 0.770 | 0.980 |")
    assert "| 0.900, 0.800, 0.850 | 187 MB | 187 MB | 9.35 MB | 9.35 MB | 12.3 MB, 14 rounds (2 of 3 seeds) |" in ours
    assert "| −3.0 ± 2.5 |" in far
    assert "| not reached |" in far
    assert r"| failed: client 3 sent fc/weight (10, 64), a_b \| c & d \< e |" in failed
    assert "- ours: lr 0.05, momentum 0.9 (24 trials)" in rest


def test_markdown_text_is_no_markup() -> None:
    assert markdown.text("a*b|c\n_d_ e_f <g> `h` [i](j)") == r"a\*b\|c \_d\_ e_f \<g\> \`h\` \[i\](j)"
