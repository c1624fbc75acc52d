"""The pages: complete, escaped, the same bytes each time, loading nothing, and shown by a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic_runs import FEDERATED, make_run, write_lines

from unalike.errors import InputError
from unalike.report import write

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
QUIET = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-component-update",
    "--disable-background-networking",
    "--disable-sync",
    "--enable-logging=stderr",
    "--v=0",
)


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_page_of_a_run(federated: Path, alone: Path) -> None:
    page = text_of(write(federated))
    assert headings(page) == [
        "The result in one sentence",
        "What was asked",
        "Accuracy over rounds",
        "Accuracy over the clients’ work",
        "Each client",
        "How the data lie",
        "How much does each client rely on its own extractor?",
        "Traffic and time",
        "The clients in numbers",
        "Where this comes from",
    ]
    assert "Federating paid: mean accuracy 0.887 against 0.811 alone" in page
    assert '<a href="https://arxiv.org/abs/2404.17847">2404.17847</a>' in page
    assert "<dt>local_epochs</dt><dd>2</dd>" in page
    assert "<dt>models</dt><dd>4\u00a0×\u00a0cnn-1, 3\u00a0×\u00a0cnn-2, 3\u00a0×\u00a0cnn-3</dd>" in page
    assert '<td class="n">0.851</td><td class="n">−2.1</td>' in page
    assert "<code>unalike run experiment.toml</code>" in page
    assert "torch 2.13.0" in page


def test_page_of_a_comparison(compared: Path) -> None:
    page = text_of(write(compared))
    assert headings(page) == [
        "The result in one sentence",
        "What was asked",
        "The methods",
        "Accuracy over rounds",
        "Accuracy over the clients’ work",
        "Each client",
        "How the data lie",
        "How much does each client rely on its own extractor? (pfedafm)",
        "Traffic and time",
        "Where this comes from",
    ]
    assert "<dt>seeds</dt><dd>0, 1, 2</dd>" in page
    assert "failed: client 3 ran out of memory in round 2" in page
    assert '<td class="n"><strong>0.877 ± 0.011</strong></td>' in page
    assert '<td class="n">0.801 ± 0.016</td>' in page


def test_unfinished_run(tmp_path: Path) -> None:
    page = text_of(write(make_run(tmp_path / "run", "pfedafm", FEDERATED, rounds=5, finished=False)))
    assert "Unfinished after round 5." in page


def test_the_least_a_run_can_be(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"algorithm": "mine"}', encoding="utf-8")
    page = text_of(write(tmp_path))
    assert "No test accuracy was recorded." in page
    assert "<svg" not in page


def test_a_run_broken_off_at_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "events.jsonl", [{"event": "start", "method": "mine"}])
    assert "Unfinished after round 0." in text_of(write(tmp_path))


def test_a_comparison_in_which_all_failed(tmp_path: Path) -> None:
    row = {"method": "mine", "mean": None, "status": "failed", "reason": "no memory"}
    (tmp_path / "compare.json").write_text(json.dumps([row]), encoding="utf-8")
    assert "No method finished." in text_of(write(tmp_path))


def test_many_clients_and_rounds_stay_readable_and_small(tmp_path: Path) -> None:
    final = {i: 0.5 + (37 * i % 100) / 250 for i in range(210)}
    page = write(make_run(tmp_path / "run", "pfedafm", final, rounds=45))
    assert "The 200 clients with the lowest accuracy, of 210." in text_of(page)
    assert "Line: the median client." in text_of(page)
    assert page.stat().st_size < 400_000


def test_data_are_escaped(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    client = {"id": 0, "name": evil, "tier": f'"{evil}', "train": 3, "labels": [1, 2]}
    folder = make_run(
        tmp_path / "run", "a<b", {0: 0.5}, classes=[evil, "$x_{ #fe00ff"], paper=evil, rounds=2, clients=[client]
    )
    (folder / "experiment.toml").write_text(f"note = '{evil}'\n", encoding="utf-8")
    page = text_of(write(folder))
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


def test_same_bytes_each_time(federated: Path, compared: Path) -> None:
    for folder in (federated, compared):
        first = write(folder).read_bytes()
        assert write(folder).read_bytes() == first
        assert [p.name for p in folder.iterdir() if p.name.startswith(".")] == []


def test_nothing_is_loaded_and_no_id_occurs_twice(federated: Path, compared: Path) -> None:
    for folder in (federated, compared):
        page = text_of(write(folder))
        assert re.findall(r"<(?:script|link|iframe|object|embed|base)\b|@import|@font-face|\son\w+=", page) == []
        loaded = re.findall(r'(?:src|<(?:image|use)[^>]* href)="([^"]*)"|url\(([^)]*)\)', page)
        assert all((a or b).startswith(("#", "data:image/png")) for a, b in loaded)
        ids = re.findall(r'\bid="([^"]*)"', page)
        assert len(ids) == len(set(ids))
        assert {(a or b)[1:] for a, b in loaded if (a or b).startswith("#")} <= set(ids)


def test_pictures_have_words_and_follow_the_theme(federated: Path, alone: Path) -> None:
    page = text_of(write(federated))
    pictures = re.findall(r"<svg ([^>]*)>(.*?)</svg>", page, re.DOTALL)
    assert len(pictures) == 12  # six, each wide and narrow
    for head, body in pictures:
        assert re.search(r'role="img" aria-label="[^"]{20,}"', head)
        assert "var(--" in body
        assert not re.search(r"#[0-9a-f]{6}\b(?!\")", body.replace("url(#", "url("))


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is no run folder: it has neither summary\.json nor compare\.json"):
        write(tmp_path)


def test_against(federated: Path, alone: Path, compared: Path, tmp_path: Path) -> None:
    rival = make_run(tmp_path / "elsewhere", "fedavg", dict.fromkeys(range(10), 0.5))
    assert "0.887 against 0.500 with fedavg" in text_of(write(federated, against=rival))
    summary = json.loads(text_of(rival / "summary.json"))
    (rival / "summary.json").write_text(json.dumps(summary | {"partition_hash": "else"}), encoding="utf-8")
    before = text_of(federated / "report.html")
    with pytest.raises(InputError, match="have not the same clients"):
        write(federated, against=rival)
    assert text_of(federated / "report.html") == before
    with pytest.raises(InputError, match="leave out --against"):
        write(compared, against=alone)


def test_torch_is_not_imported() -> None:
    code = "import sys, unalike.report as r; r.write; assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.parametrize("scheme", ["0", "1"], ids=["dark", "light"])
def test_in_a_browser(compared: Path, tmp_path: Path, scheme: str) -> None:
    page, shot = write(compared), tmp_path / "shot.png"
    done = subprocess.run(
        [
            str(CHROMIUM),
            *QUIET,
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--blink-settings=preferredColorScheme={scheme}",
            f"--screenshot={shot}",
            "--window-size=400,800",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    from matplotlib.image import imread

    corner = imread(shot)[2, 2, :3].mean()
    assert corner < 0.2 if scheme == "0" else corner > 0.9


@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_sees_all_of_it(federated: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [str(CHROMIUM), *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", write(federated).as_uri()],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "CONSOLE" not in done.stderr
    assert len(re.findall("<svg ", done.stdout)) == 12
    assert "<h2>Where this comes from</h2>" in done.stdout
