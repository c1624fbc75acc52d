"""What answers in words are worth: loss, right answers, ROUGE-1, and sums of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from unalike import tasks
from unalike.pretrained import Tokeniser, tokeniser
from unalike.tasks import Instruction, is_right, options, rouge1

LISTED = "Is it so?\n\nOPTIONS:\n- Yes\n- No\n- No, but soon"


@pytest.fixture(scope="module")
def task(tiny_lm: Path) -> Instruction:
    return Instruction(str(tiny_lm))


@pytest.fixture(scope="module")
def words(tiny_lm: Path) -> Tokeniser:
    return tokeniser(str(tiny_lm))


def rows(words: Tokeniser, asked: Sequence[str], right: Sequence[str]) -> dict[str, Tensor]:
    return {"x": words.prompts(asked, 64), "y": words.answers(right)}


def test_the_loss_is_of_answers_only_their_end_included(task: Instruction, words: Tokeniser) -> None:
    """Two answers of 1 and 2 words: 5 tokens with their ends. All logits 0 but the right one's log 3: of V words it has
    3 / (V + 2)."""
    batch = rows(words, ["say fox .", "say fox lamp ."], ["fox", "fox lamp"])
    assert batch["y"].shape == (2, 3)
    logits = torch.zeros(2, 3, 200)
    logits.scatter_(2, batch["y"][..., None], math.log(3.0))
    assert float(task.loss(logits, batch)) == pytest.approx(math.log(202 / 3))
    logits[0, 2] = torch.randn(200)  # what stands where the shorter answer is filled up
    assert float(task.loss(logits, batch)) == pytest.approx(math.log(202 / 3))
    logits[0, 1] = 0.0  # at its end
    assert float(task.loss(logits, batch)) == pytest.approx((4 * math.log(202 / 3) + math.log(200)) / 5)


def test_rows_count_by_their_weight(task: Instruction, words: Tokeniser) -> None:
    batch = rows(words, ["say fox ."] * 2, ["fox", "lamp"])
    logits = torch.randn(2, 2, 200, generator=torch.Generator().manual_seed(0))
    first = {name: part[:1] for name, part in batch.items()}
    weighed = task.loss(logits, {**batch, "weight": torch.tensor([1.0, 0.0])})
    assert float(weighed) == pytest.approx(float(task.loss(logits[:1], first)))


def test_an_answer_is_right_but_for_case_and_space() -> None:
    assert is_right("What?", " The  Fox", "the fox")
    assert not is_right("What?", "the fox runs", "the fox")


def test_of_listed_options_it_is_the_longest_that_an_answer_begins_with() -> None:
    assert options(LISTED) == ["yes", "no", "no, but soon"]
    assert is_right(LISTED, "Yes, he did.", "yes")
    assert is_right(LISTED, "no way", "No")
    assert is_right(LISTED, "No, but soon", "No, but soon")
    assert not is_right(LISTED, "No, but soon", "No")
    assert not is_right(LISTED, "Nothing", "No")
    assert not is_right(LISTED, "I say yes", "yes")
    assert not is_right("Is it so?", "Yes, he did.", "yes"), "without a list it has to be the whole answer"
    assert is_right(LISTED, "maybe", "Maybe"), "an answer that is not listed is held against the whole answer"


def test_rouge_1_by_hand() -> None:
    """Written 3 words, right 2, both share 2: precision 2/3, recall 1, F = 2 · 2/3 / (5/3)."""
    assert rouge1("the red fox", "red fox") == pytest.approx(0.8)
    assert rouge1("fox", "lamp") == 0.0
    assert rouge1("", "fox") == 0.0
    assert rouge1("(a)", "A") == 1.0


def test_scores_by_hand_and_sums_in_any_order(task: Instruction, words: Tokeniser) -> None:
    """Right: 1 of 3. ROUGE-1: 1, 2 of 2 words in a third one's way (0.8), 0."""
    batch = rows(words, ["say fox .", "say red fox .", "say lamp ."], ["fox", "red fox", "lamp"])
    written = words.answers(["fox", "red fox bell", "bell"])
    whole = task.tally(written, batch)
    scores = task.scores(whole)
    assert scores == {"accuracy": pytest.approx(1 / 3), "rouge1": pytest.approx(0.6), "n": 3.0}
    parts = [task.tally(written[[i]], {n: part[[i]] for n, part in batch.items()}) for i in (2, 0, 1)]
    added = {name: sum((part[name] for part in parts), torch.tensor(0)) for name in whole}
    assert all(torch.equal(added[name], whole[name]) for name in whole)
    assert all(not count.is_floating_point() for count in whole.values())


def test_a_task_is_written_down_and_restored(task: Instruction) -> None:
    assert tasks.restore(tasks.describe(task)) == task


def test_answering_counts_rows_whose_answer_is_not_in_the_list_as_wrong_and_gives_them_no_loss() -> None:
    task, y = tasks.Answering(), torch.tensor([1, -1, 0, 2])
    outputs = torch.tensor([[0.0, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    each = [-float(outputs[row].log_softmax(0)[place]) for row, place in ((0, 1), (2, 0), (3, 2))]
    assert float(task.loss(outputs, {"y": y})) == pytest.approx(sum(each) / 3)
    weighed = {"y": y, "weight": torch.tensor([1.0, 9.0, 2.0, 3.0])}
    assert float(task.loss(outputs, weighed)) == pytest.approx((each[0] + 2 * each[1] + 3 * each[2]) / 6)
    halves = [task.tally(outputs[part], {"y": y[part]}) for part in (slice(0, 2), slice(2, 4))]
    scores = task.scores({name: halves[0][name] + halves[1][name] for name in halves[0]})
    assert scores == {"accuracy": 0.5, "loss": pytest.approx(sum(each) / 3), "n": 4.0}
    assert tasks.restore(tasks.describe(task)) == task


def test_answering_rows_none_of_which_can_be_right_has_finite_scores() -> None:
    task, y = tasks.Answering(), torch.tensor([-1, -1])
    assert task.scores(task.tally(torch.ones(2, 3), {"y": y})) == {"accuracy": 0.0, "loss": 0.0, "n": 2.0}
    assert float(task.loss(torch.ones(2, 3), {"y": y})) == 0
