"""Rows of a client with what its model answers to them: counted by hand, and as a page."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import seeing
from unalike import api
from unalike.errors import InputError
from unalike.examples import BOTH, examples
from unalike.report.examples import Asked, page


@pytest.fixture(scope="module")
def finished(foundations: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A round of FedDAT on three sites, the last of which has no images and the second no questions."""
    folder = tmp_path_factory.mktemp("runs")
    data = seeing.write_questions(folder / "squares")
    options: dict[str, Any] = {"partition": "site", "models": (f"vl:{foundations['vilt']}",)}
    api.run(
        "feddat", data=str(data), **options, modalities="1:image,2:text", rounds=1, engine="serial", out=folder / "run"
    )
    return folder / "run"


def test_rows_are_spread_over_the_test_rows_and_shares_are_of_all(finished: Path) -> None:
    whole, some = examples(finished, 0, rows=99), examples(finished, 0, rows=2)
    assert (len(whole.rows), whole.of, whole.name) == (4, 4, "site0")
    assert some.rows == [whole.rows[0], whole.rows[-1]]
    assert some.right == whole.right
    for view in (BOTH, "local", "shared"):
        hits = [row.answers[view] == row.right for row in whole.rows]
        assert whole.right[view] == pytest.approx(np.mean(hits))
    summary = json.loads((finished / "summary.json").read_text())
    assert whole.right[BOTH] == pytest.approx(summary["accuracy"]["per_client"]["0"])
    assert whole.right["local"] == pytest.approx(summary["scopes"]["local"]["accuracy"]["per_client"]["0"])


def test_what_a_client_lacks_is_not_shown(finished: Path) -> None:
    assert all(row.image and row.question for row in examples(finished, 0).rows)
    assert all(row.image and not row.question for row in examples(finished, 1).rows)
    assert all(row.question and not row.image for row in examples(finished, 2).rows)


def test_the_page_has_images_of_its_own_and_the_command_prints_rows(
    finished: Path, call: Callable[..., Any], tmp_path: Path
) -> None:
    code, out, error = call("explain", finished, "--client", 0, "--rows", 3, "--out", "page.html")
    assert code == 0, error
    assert out.startswith("client 0 (site0), round 1: 3 of its 4 test rows\n")
    assert len(out.splitlines()) == 1 + 3 + 3
    text = (tmp_path / "page.html").read_text()
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert len(found) == 3
    assert Image.open(io.BytesIO(base64.b64decode(found[0]))).size == (32, 32)
    assert not re.findall(r'(?:src|href)="(?!data:)', text)
    code, out, _ = call("explain", finished, "--client", 0, "--json")
    assert [row["right"] for row in json.loads(out)["rows"]] == [row.right for row in examples(finished, 0).rows]


def test_text_of_a_question_is_no_markup() -> None:
    row = Asked(b"", "<script>x</script>", "a & b", {"answer": "<b>"})
    text = page("run", "feddat", 0, "", 1, 1, {"answer": 0.0}, [row])
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "no image" in text


def test_what_cannot_be_shown_is_refused_in_a_line(finished: Path, alike: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no client 9: its clients are 0 to 2"):
        examples(finished, 9)
    api.run("fedavg", alike, rounds=1, engine="serial", out=tmp_path / "digits")
    with pytest.raises(InputError, match="no questions about images: give --input"):
        examples(tmp_path / "digits", 0)


def test_the_report_says_who_trained_on_what(finished: Path) -> None:
    text = (finished / "report.html").read_text()
    heads = re.findall(r"<th[^>]*>([^<]*)</th>", text.partition("Clients in numbers")[2].partition("</table>")[0])
    assert "trains on" in heads
    cells = [re.findall(rf"<td[^>]*>({what})</td>", text) for what in ("images and questions", "images", "questions")]
    assert [len(found) for found in cells] == [1, 1, 1]
