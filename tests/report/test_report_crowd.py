"""Fifteen methods on one page: a reference that stands out, and nothing wider than the window."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from synthetic_runs import FAILED, row, write_comparison
from test_report_page import CHROMIUM, QUIET, headings

from unalike.report import write
from unalike.report.axes import emphasised

NAMES = ["ours", "standalone", *(f"method_{k}" for k in range(12))]


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ours = row(NAMES[0], [0.90, 0.88, 0.92])
    others = [
        row(name, [0.89 - 0.01 * k, 0.875 - 0.01 * k, 0.905 - 0.01 * k], ours) for k, name in enumerate(NAMES[1:])
    ]
    return write_comparison(tmp_path_factory.mktemp("crowd") / "c", [ours, *others, FAILED], clients=4)


def test_with_more_methods_than_hues_two_stand_out() -> None:
    roles = emphasised(NAMES, ["ours", "standalone"])
    assert {name for name, role in roles.items() if role != "c6"} == {"ours"}  # the baseline is always grey
    assert emphasised(NAMES, ["ours", "method_3"])["method_3"] == "c1"
    assert len(set(emphasised(NAMES[:7], ["ours"]).values())) == 7  # a hue each, as far as they suffice


def test_page_of_a_crowd(crowd: Path) -> None:
    page = write(crowd).read_text()
    assert headings(page)[:9] == [
        "The result in one sentence",
        "What was asked",
        "Against ours",
        "The methods",
        "What was tuned",
        "Accuracy over rounds",
        "Accuracy over the clients’ work",
        "Each client",
        "How the data lie",
    ]
    assert "Grey: the methods that have no name." in page
    for title in (
        "Points of mean accuracy against ours: standalone −1.0 ± 1.2",
        "Mean validation accuracy over rounds",
    ):
        assert re.search(rf'aria-label="{title}', page)
    assert '<td class="w">lr 0.05, momentum 0.9</td>' in page
    assert "24 trials a method" in page
    assert "12.3 MB, 14 rounds (2 of 3 seeds)" in page
    assert page.count("(10, 64), a_b | c &amp; d &lt; e") == 1
    assert (crowd / "compare.tex").is_file()


def test_untuned_methods_are_said_to_be_untuned(tmp_path: Path) -> None:
    page = write(write_comparison(tmp_path / "c", [row("ours", [0.9], trials=0, chosen={})])).read_text()
    assert "Nothing: each method ran with the values that it was given." in page


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_nothing_is_wider_than_the_window(crowd: Path, tmp_path: Path) -> None:
    """Measured by a browser in frames of both widths; a page with a wide block beside it, to see that it measures."""
    shutil.copytree(crowd, tmp_path / "grid" / "r1")
    regime = {"name": "digits, ten clients, dirichlet:0.5, 2,000 rows", "folder": "r1"}
    (tmp_path / "grid" / "grid.json").write_text(json.dumps({"title": "A grid", "regimes": [regime]}))
    pages = [write(crowd).read_text(), write(tmp_path / "grid").read_text(), '<div style="width:2000px">x</div>']
    frames = "".join(
        f'<iframe width="{width}" height="600" srcdoc="{escape(page)}"></iframe>'
        for page in pages
        for width in (390, 1280)
    )
    script = (
        "onload=()=>{document.body.innerHTML='<p>'+[...document.querySelectorAll('iframe')].map("
        "f=>f.contentDocument.documentElement.scrollWidth-f.contentWindow.innerWidth<=0).join(' ')}"
    )
    (tmp_path / "frames.html").write_text(f"<!doctype html><body>{frames}<script>{script}</script>")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            (tmp_path / "frames.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "<p>true true true true false false</p>" in done.stdout
