"""All clients' rows together, forgetting and impressions: on a run's page, in a comparison's tables, in a grid's."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file
from synthetic_runs import FEDERATED, make_run, row, write_comparison, write_lines

from unalike.errors import InputError
from unalike.report import classes, forgotten, impressions, write
from unalike.report.read import read_run

CLASSES = ("cat", "<dog>", "emu")
POOLED = {"accuracy": 0.8, "balanced_accuracy": 0.5, "recall": {"0": 0.9, "2": 0.1}}
FORGETTING = {"mean": 0.105, "rounds": [3, 4], "per_client": {"0": 0.174, "1": 0.036}, "by_round": {"4": 0.1}}


def rewritten(folder: Path, **more: Any) -> Path:
    """A run with more in its summary, and forgetting of two clients in its events."""
    found = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    (folder / "summary.json").write_text(json.dumps(found | more), encoding="utf-8")
    start, *events = (json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines())
    for event in events if "forgetting" in more else []:
        event["forgetting"] = {"test": {"0": 0.1 * event["round"], "1": -0.05}, "validation": {}}
    write_lines(folder / "events.jsonl", [start, *events])
    return folder


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", "fedavg", FEDERATED, classes=CLASSES, rounds=4)


def images(dtype: Any, value: float) -> np.ndarray[Any, Any]:
    """Three images of 4 x 4: two of class 0 and one of class 2; the first pixel of each has `value`."""
    found = np.zeros((3, 1, 4, 4), dtype)
    found[:, :, 0, 0] = value
    return found


def with_images(folder: Path, rounds: int = 2, **more: Any) -> Path:
    (folder / "keepsakes").mkdir()
    for r in range(1, rounds + 1):
        found = {"images": images(np.uint8, 255), "labels": np.array([0, 0, 2]), **more}
        save_file(found, folder / f"keepsakes/round-{r:06d}.safetensors")
    return folder


def headings(markup: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", markup)


def test_each_section_appears_only_with_its_data(plain: Path) -> None:
    run = read_run(plain)
    assert classes.single(run, None) + forgotten.single(run) + impressions.single(run) == ""


def test_on_the_page(plain: Path) -> None:
    page = write(with_images(rewritten(plain, pooled=POOLED, forgetting=FORGETTING))).read_text(encoding="utf-8")
    titles = [classes.TITLE, forgotten.TITLE, impressions.TITLE]
    assert [title for title in headings(page) if title in titles] == titles
    ids = re.findall(r'\bid="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    assert "<dt>lowest recall</dt><dd>0.100 (emu)</dd>" in page
    rows = int(re.search(r'<th scope="row"[^>]*>emu</th><td class="n">(\d+)', page)[1])  # type: ignore[index]
    drawn = json.loads((plain / "partition.json").read_text(encoding="utf-8"))
    assert rows == sum(client["labels"][2] for client in drawn["clients"])
    assert "lowers the global model’s accuracy on all others’ rows by 10.5 points" in page
    assert "the most does client 0’s, by 17.4 points" in page
    assert "Forgetting of 2 clients over rounds; its mean is 0.025 in round 1 and 0.175 in round 4." in page
    assert "Images of 2 classes after rounds 1 and 2: two of each class, a row a class." in page


def test_recalls_that_are_not_told_leave_the_scores(plain: Path) -> None:
    run = read_run(rewritten(plain, pooled={"accuracy": 0.8, "balanced_accuracy": 0.5}))
    told = classes.single(run, None)
    assert "0.800" in told
    assert "<svg" not in told


def test_an_unfinished_run_tells_the_recalls_of_its_best_round(plain: Path) -> None:
    start, *events = (json.loads(line) for line in (plain / "events.jsonl").read_text(encoding="utf-8").splitlines())
    for event in events:
        event["metrics"]["pooled"] = {"test": {**POOLED, "recall": [event["round"] / 10, None, 0.9]}}
    write_lines(plain / "events.jsonl", [start, *events])
    (plain / "summary.json").unlink()
    run = read_run(plain)
    assert run.summary.pooled is not None
    assert run.summary.pooled.recall == {0: run.summary.selected_round / 10, 2: 0.9}  # type: ignore[operator]


# Impressions


def pixels(markup: str) -> Any:
    """The first picture of a page, (height, width, 4)."""
    found = re.search(r'data:image/png;base64,\s*([^"]*)"', markup)
    assert found
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGBA"))


@pytest.mark.parametrize(("dtype", "value"), [(np.uint8, 255), (np.float32, 1.0), (np.float16, 7.0)])
def test_images_lie_in_the_rows_of_their_classes_and_gaps_let_the_page_through(
    plain: Path, dtype: Any, value: float
) -> None:
    """Two rounds, classes 0 and 2: cells of 6 x 12, images of 4 x 4 at 0 and 5; class 2 has no second image."""
    run = read_run(with_images(plain, images=images(dtype, value)))
    shown = pixels(impressions.single(run))
    assert shown.shape == (12, 24, 4)
    white = {(int(y), int(x)) for y, x in np.argwhere((shown == 255).all(axis=2))}
    assert white == {(0, 0), (0, 5), (0, 12), (0, 17), (6, 0), (6, 12)}
    assert (shown[6:10, 5:9, 3] == 0).all()
    assert (shown[0:4, 0:4, 3] == 255).all()
    assert (shown[:, 4, 3] == 0).all()


def test_images_are_not_smoothed(plain: Path) -> None:
    assert "image-rendering:pixelated" in impressions.single(read_run(with_images(plain))).replace(" ", "")


def test_the_rounds_are_spread_over_the_run() -> None:
    assert impressions.spread([3, 5], 8) == [3, 5]
    assert impressions.spread(list(range(1, 101)), 3) == [1, 51, 100]
    assert impressions.spread(list(range(1, 13)), 8)[::7] == [1, 12]


@pytest.mark.parametrize(
    "other",
    [
        {"labels": np.array([0, 0])},
        {"images": np.zeros((3, 4, 4), np.uint8)},
        {"images": np.zeros((3, 2, 4, 4), np.uint8)},
    ],
)
def test_other_keepsakes_are_no_images(plain: Path, other: dict[str, Any]) -> None:
    assert impressions.single(read_run(with_images(plain, **other))) == ""


def test_a_damaged_file_is_named(plain: Path) -> None:
    (with_images(plain) / "keepsakes/round-000002.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match=r"round-000002.safetensors cannot be read"):
        write(plain)


# Comparisons

OVER = {
    "accuracy": {"mean": 0.8, "ci95": None},
    "balanced_accuracy": {"mean": 0.5, "ci95": 0.01},
    "lowest_recall": {"mean": 0.1, "ci95": 0.02},
    "recall": {"0": 0.9, "2": 0.1},
}
OURS = row(
    "ours", [0.9, 0.8], pooled=OVER, forgetting={"mean": -0.03, "ci95": 0.01}, rouge1={"mean": 0.6, "ci95": 0.03}
)
FAR = row("far", [0.8, 0.7], OURS, pooled=OVER, balanced_difference={"to": "ours", "mean": 0.1, "ci95": 0.02})
BARE = row("bare", [0.8, 0.7], OURS)


def test_columns_of_a_comparison(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", [OURS, FAR, BARE], clients=3)
    page = write(folder).read_text(encoding="utf-8")
    assert classes.TITLE in headings(page)
    table = (folder / "compare.md").read_text(encoding="utf-8")
    head = [cell.strip() for cell in table.splitlines()[0].split("|")]
    cells = {line.split("|")[1].strip(): line.split("|") for line in table.splitlines()[2:5]}
    at = {name: head.index(name) for name in ("balanced, all rows", "lowest recall", "ROUGE-1", "forgetting")}
    told = {name: {method: cells[method][place].strip() for method in cells} for name, place in at.items()}
    assert told["balanced, all rows"] == {"ours": "0.500 ± 0.010", "far": "0.500 ± 0.010", "bare": ""}
    assert told["lowest recall"]["far"] == "0.100 ± 0.020"
    assert told["ROUGE-1"] == {"ours": "0.600 ± 0.030", "far": "", "bare": ""}
    assert told["forgetting"] == {"ours": "−0.030 ± 0.010", "far": "", "bare": ""}
    paired = head.index("balanced points to ours")
    assert [cells[m][paired].strip() for m in ("ours", "far", "bare")] == ["reference", "+10.0 ± 2.0", ""]
    assert "| class | ours | far |" in table
    assert "| 2 | 0.100 | 0.100 |" in table
    with (folder / "compare.csv").open(newline="") as file:
        ours, far, bare = csv.DictReader(file)
    assert (ours["forgetting"], far["balanced_difference"], bare["lowest_recall"]) == ("-0.03", "0.1", "")
    assert json.loads(ours["recall"]) == {"0": 0.9, "2": 0.1}


def test_a_comparison_without_them_has_no_such_columns(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path / "c", [row("ours", [0.9, 0.8]), row("far", [0.8, 0.7], OURS)])
    page = write(folder).read_text(encoding="utf-8")
    table = (folder / "compare.md").read_text(encoding="utf-8")
    assert classes.TITLE not in page
    assert not re.search("balanced|recall|forgetting|ROUGE", table)


def test_each_regime_of_a_grid_has_its_recalls_with_the_classes_names(tmp_path: Path) -> None:
    grid = tmp_path / "grid"
    write_comparison(grid / "r01", [{**OURS, "runs": ["ours-seed0"]}, FAR])
    make_run(grid / "r01/ours-seed0", "fedavg", FEDERATED, classes=CLASSES)
    regimes = [{"name": "one", "folder": "r01", "status": "done"}]
    (grid / "grid.json").write_text(json.dumps({"title": "a grid", "regimes": regimes}), encoding="utf-8")
    page = write(grid).read_text(encoding="utf-8")
    assert '<th scope="row" class="w">emu</th><td class="n">0.100</td>' in page
    assert "| emu | 0.100 | 0.100 |" in (grid / "grid.md").read_text(encoding="utf-8")
