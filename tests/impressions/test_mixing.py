"""Batches of a client's rows with impressions beside them: how many, which, how heavy."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from unalike import models, tree
from unalike.data.federation import Federation
from unalike.impressions.exchange import beside
from unalike.impressions.settings import Impressions
from unalike.local import LocalTraining, batches
from unalike.rng import Key
from unalike.tasks import Classification

KEY = Key.root(0)
ROWS = {"x": torch.arange(10.0)[:, None], "y": torch.arange(10) % 3}
SYNTHETIC = torch.arange(100.0, 106.0)[:, None], torch.arange(6) % 3


def cut(size: int = 4, epochs: int = 1, rows: Any = ROWS, **settings: Any) -> list[Any]:
    return list(batches(beside(Impressions(**settings), rows, *SYNTHETIC), size, epochs, KEY))


def own(batch: Any) -> Any:
    return batch["x"][:, 0] < 100


def test_the_clients_rows_come_as_they_would_alone_and_others_after_them() -> None:
    plain = list(batches(ROWS, 4, 2, KEY))
    for batch, alone in zip(cut(epochs=2), plain, strict=True):
        n = len(alone["y"])
        assert batch["x"][:n].equal(alone["x"])
        assert batch["y"][:n].equal(alone["y"])
        assert bool((batch["x"][n:] >= 100).all())
        assert (batch["x"][n:, 0].long() % 100 % 3).equal(batch["y"][n:])


@pytest.mark.parametrize(("mix", "beside"), [(1.0, [4, 4, 2]), (0.5, [2, 2, 1]), (2.5, [10, 10, 5]), (0.01, [1, 1, 1])])
def test_as_many_stand_beside_as_the_settings_say(mix: float, beside: list[int]) -> None:
    """4, 4 and 2 rows."""
    assert [int((~own(b)).sum()) for b in cut(mix=mix)] == beside


def test_each_is_drawn_once_before_any_is_drawn_again() -> None:
    """Of 6, beside 10 + 10 rows: 20 = 3 · 6 + 2."""
    drawn = torch.cat([b["x"][~own(b), 0] for b in cut(epochs=2)])
    for start in (0, 6, 12):
        assert sorted(drawn[start : start + 6].tolist()) == list(range(100, 106))
    assert len(drawn) == 20


@pytest.mark.parametrize("lam", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("mix", [0.5, 1.0, 3.0])
def test_the_loss_is_the_papers(lam: float, mix: float) -> None:
    """(mean CE of the rows + λ · mean CE of the impressions) / (1 + λ), whatever their numbers."""
    logits = torch.randn(30, 3, generator=KEY.torch())
    for batch in cut(mix=mix, lam=lam):
        f, n = logits[: len(batch["y"])], int(own(batch).sum())
        expected = (F.cross_entropy(f[:n], batch["y"][:n]) + lam * F.cross_entropy(f[n:], batch["y"][n:])) / (1 + lam)
        assert float(Classification(3).loss(f, batch)) == pytest.approx(float(expected), rel=1e-5)


def test_rows_that_have_weights_keep_them() -> None:
    weights = torch.arange(1.0, 11.0)
    for batch in cut(rows={**ROWS, "weight": weights}, lam=2.0):
        mine = own(batch)
        assert batch["weight"][mine].equal(weights[batch["x"][mine, 0].long()])
        assert float(batch["weight"][~mine].sum()) == pytest.approx(2 * float(batch["weight"][mine].sum()))


def test_concat_is_one_mean_over_all_of_them_beside_a_whole_batch() -> None:
    """6 beside 4 rows, each once, and 3 beside the last 2: of λ and mix nothing is left."""
    found = cut(concat=True, lam=7.0, mix=3.0)
    assert [int((~own(b)).sum()) for b in found] == [6, 6, 3]
    logits = torch.randn(10, 3, generator=KEY.torch())
    for batch in found:
        f = logits[: len(batch["y"])]
        assert float(Classification(3).loss(f, batch)) == pytest.approx(float(F.cross_entropy(f, batch["y"])), rel=1e-5)
    assert sorted(found[0]["x"][4:, 0].tolist()) == list(range(100, 106))


def test_lam_5_is_the_authors_32_rows_and_160_impressions() -> None:
    rows = {"x": torch.arange(32.0)[:, None], "y": torch.zeros(32, dtype=torch.long)}
    images, labels = torch.zeros(160, 1), torch.zeros(160, dtype=torch.long)
    (one,) = batches(beside(Impressions(concat=True), rows, images, labels), 32, 1, KEY)
    (other,) = batches(beside(Impressions(lam=5.0), rows, images, labels), 32, 1, KEY)
    share = [float(b["weight"][:32].sum() / b["weight"].sum()) for b in (one, other)]
    assert share == pytest.approx([1 / 6, 1 / 6])


def test_a_visit_takes_its_rows_from_a_mixture_too() -> None:
    mixed = beside(Impressions(), ROWS, *SYNTHETIC)
    assert [len(b["y"]) for b in LocalTraining(local_epochs=2, batch_size=4).visits(mixed, KEY)] == [8, 8, 4] * 2
    assert {name: rows[:3] for name, rows in mixed.items()}.keys() == ROWS.keys(), "uncut it is the client's rows"
    assert mixed["x"] is ROWS["x"]


def test_frozen_impressions_move_no_statistic_and_are_judged_by_them(
    small: Federation, trained: dict[str, Any]
) -> None:
    spec, rows = small.models[small.clients[0].tier], small.data(0, "train")
    images, labels = torch.rand(8, 1, 8, 8, generator=KEY.torch()), torch.arange(8)
    few = {name: column[:8] for name, column in rows.items()}
    losses, weights = {}, {}
    for how in ("joint", "frozen"):
        (batch,) = batches(beside(Impressions(syn_bn=how), few, images, labels), 8, 1, KEY)  # type: ignore[arg-type]
        weights[how] = {"model": tree.clone(trained)}
        losses[how] = models.supervised_loss(spec, small.task, weights[how], {}, batch)
    alone = {"model": tree.clone(trained)}
    (batch,) = batches(few, 8, 1, KEY)
    own = models.supervised_loss(spec, small.task, alone, {}, batch)
    assert tree.equal(weights["frozen"], alone)
    assert not tree.equal(weights["joint"], alone)
    evaluated = F.cross_entropy(models.logits(spec, alone["model"], images), labels)
    assert float(losses["frozen"]) == pytest.approx(float(own + evaluated) / 2, rel=1e-5)
    assert float(losses["joint"]) != pytest.approx(float(losses["frozen"]), rel=1e-3)
