"""Local training and evaluation, against hand-computed values and torch's own optimiser."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from unalike import tree
from unalike.local import (
    SGD,
    LocalTraining,
    Step,
    balanced_weights,
    batches,
    means_by_label,
    rows_by_label,
    sgd,
    squared_distance,
    squared_gradients,
    train,
    trainable,
)
from unalike.rng import Key
from unalike.tasks import Classification

KEY = Key.root(0)
DATA = {"x": torch.arange(7.0).reshape(7, 1), "y": torch.arange(7)}


def square(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
    return 0.5 * (params["w"] ** 2).sum()


def once() -> list[tree.Tree]:
    return [{"x": torch.zeros(1, 1)}]


def test_sgd_by_hand_with_momentum_and_decay() -> None:
    """w=1: g=1+.1=1.1, b=1.1, w=.89; then g=.89+.089=.979, b=.99+.979=1.969, w=.6931."""
    tuned, _ = sgd(square, {"w": torch.tensor([1.0])}, SGD(0.1, 0.9, 0.1), once() * 2, Key.root(0))
    assert tuned["w"].item() == pytest.approx(0.6931)


def test_clipping_scales_the_whole_gradient() -> None:
    """w = (3, 4): g = (3, 4) has norm 5, clipped to 1 it is (.6, .8)."""
    tuned, _ = sgd(square, {"w": torch.tensor([3.0, 4.0])}, SGD(1.0, clip=1.0), once(), Key.root(0))
    assert tuned["w"].tolist() == pytest.approx([2.4, 3.2], abs=1e-5)


@pytest.mark.parametrize(("momentum", "decay"), [(0.0, 0.0), (0.9, 0.0), (0.0, 1e-2), (0.9, 1e-2)])
def test_sgd_is_bit_for_bit_torchs(momentum: float, decay: float) -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(20, 4), torch.arange(20) % 3
    weights = {name.replace(".", "_"): p.detach().clone() for name, p in net.named_parameters()}

    def loss(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        hidden = torch.relu(batch["x"] @ params["0_weight"].T + params["0_bias"])
        return nn.functional.cross_entropy(
            nn.functional.linear(hidden, params["2_weight"], params["2_bias"]), batch["y"]
        )

    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=momentum, weight_decay=decay)
    visits = list(batches({"x": x, "y": y}, 6, 3, Key.root(1)))
    for batch in visits:
        hidden = torch.relu(batch["x"] @ net[0].weight.T + net[0].bias)
        expected = nn.functional.cross_entropy(nn.functional.linear(hidden, net[2].weight, net[2].bias), batch["y"])
        optimiser.zero_grad()
        expected.backward()
        optimiser.step()
    tuned, _ = sgd(loss, weights, SGD(0.1, momentum, decay), visits, Key.root(2))
    for name, p in net.named_parameters():
        assert torch.equal(tuned[name.replace(".", "_")], p), name


def test_inputs_are_not_changed_and_nothing_is_shared() -> None:
    params = {"w": torch.tensor([1.0])}
    tuned, _ = sgd(square, params, SGD(0.1), once(), Key.root(0))
    assert params["w"].item() == 1.0
    assert not params["w"].requires_grad
    assert not tuned["w"].requires_grad
    assert not tree.shares_storage(params, tuned)


def test_steps_alternate_within_a_batch_and_see_each_others_result() -> None:
    """First a ← a − ½·a = 1; then b ← b − (b − a) with the new a: b = 1, not 2."""

    def first(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        return 0.5 * params["a"] ** 2

    def second(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        return 0.5 * (params["b"] - params["a"]) ** 2

    steps = [Step(first, {"a": SGD(0.5)}), Step(second, {"b": SGD(1.0)})]
    tuned, mean = train(steps, {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}, {}, once(), Key.root(0))
    assert (tuned["a"].item(), tuned["b"].item(), mean) == (1.0, 1.0, 2.0)


def test_a_step_tells_later_ones_columns_which_are_constants() -> None:
    """b follows what a was before its step: b ← b − (b − 2) = 2, not 1; and no gradient of b's loss reaches a."""

    def first(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> tuple[Tensor, tree.Batch]:
        return 0.5 * params["a"] ** 2, {"told": params["a"].reshape(1)}

    def second(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        assert not batch["told"].requires_grad
        return 0.5 * (params["b"] - batch["told"][0]) ** 2

    steps = [Step(first, {"a": SGD(0.5)}), Step(second, {"b": SGD(1.0)})]
    rows = once()
    tuned, mean = train(steps, {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}, {}, rows, Key.root(0))
    assert (tuned["a"].item(), tuned["b"].item(), mean) == (1.0, 2.0, 2.0)
    assert all("told" not in batch for batch in rows)


def test_steps_that_train_one_branch_share_its_memory() -> None:
    """Momentum ½ on gradients 1, 2: w ← 0 − 1 − (½ · 1 + 2); with a memory each it would be −1 − 2."""

    def pushed(by: float) -> Callable[..., Tensor]:
        return lambda params, given, batch: by * params["w"].sum()

    steps = [Step(pushed(by), {"w": SGD(1.0, 0.5)}) for by in (1.0, 2.0)]
    tuned, _ = train(steps, {"w": torch.zeros(1)}, {}, once(), Key.root(0))
    assert tuned["w"].item() == -3.5


def test_what_no_step_trains_stays_and_momentum_does_not_move_it() -> None:
    params = {"a": torch.tensor(2.0), "b": torch.tensor(5.0)}
    step = Step(lambda p, g, b: 0.5 * (p["a"] - p["b"]) ** 2, {"a": SGD(0.1, 0.9, 0.1)})
    tuned, _ = train([step], params, {}, once() * 3, Key.root(0))
    assert tuned["b"].item() == 5.0
    assert tuned["a"].item() != 2.0


def test_a_projection_holds_after_every_update() -> None:
    def clamp(params: tree.Tree) -> None:
        params["w"].clamp_(0.95, 1.0)

    step = Step(square, {"w": SGD(0.5)}, clamp)
    tuned, _ = train([step], {"w": torch.tensor([1.0])}, {}, once() * 2, Key.root(0))
    assert tuned["w"].item() == pytest.approx(0.95)


def test_buffers_are_not_trained() -> None:
    step = Step(lambda p, g, b: (p["m"]["w"] * p["m"]["~b"]).sum(), {"m": SGD(1.0)})
    tuned, _ = train([step], {"m": {"w": torch.ones(1), "~b": torch.ones(1)}}, {}, once(), Key.root(0))
    assert (tuned["m"]["w"].item(), tuned["m"]["~b"].item()) == (0.0, 1.0)


def test_a_step_that_trains_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no trainable leaf"):
        train([Step(square, {"model": SGD(1.0)})], {"w": torch.ones(1)}, {}, once(), Key.root(0))


def test_batches_cover_every_row_once_an_epoch() -> None:
    seen = [batch["y"].tolist() for batch in batches(DATA, 3, 2, Key.root(0))]
    assert [len(b) for b in seen] == [3, 3, 3, 3]  # the seventh row would be alone: it is left out
    assert len({*seen[0], *seen[1]}) == 6
    whole = torch.cat([batch["y"] for batch in batches(DATA, 4, 1, Key.root(0))]).tolist()
    assert sorted(whole) == list(range(7))
    assert whole != list(range(7))


def test_batches_are_the_keys_and_rows_stay_together() -> None:
    a, b = (list(batches(DATA, 4, 1, Key.root(k))) for k in (0, 1))
    assert [x["y"].tolist() for x in a] == [x["y"].tolist() for x in batches(DATA, 4, 1, Key.root(0))]
    assert [x["y"].tolist() for x in a] != [x["y"].tolist() for x in b]
    assert all(torch.equal(batch["x"][:, 0].long(), batch["y"]) for batch in a)


def test_a_single_row_is_still_a_batch() -> None:
    assert len(list(batches({"x": torch.zeros(1, 2)}, 4, 3, Key.root(0)))) == 3


@pytest.mark.parametrize(
    ("rows", "size", "kept", "dropped"),
    [
        (7, 4, [4, 3], [4]),
        (7, 3, [3, 3], [3, 3]),  # a lone last row is left out in any case
        (6, 3, [3, 3], [3, 3]),
        (4, 4, [4], [4]),
        (3, 4, [3], [3]),  # fewer rows than a batch: PyTorch would train on nothing
        (1, 4, [1], [1]),
        (3, 1, [1, 1, 1], [1, 1, 1]),
    ],
)
def test_a_smaller_last_batch_is_dropped_where_it_is_asked_for(
    rows: int, size: int, kept: list[int], dropped: list[int]
) -> None:
    data = {"y": torch.arange(rows)}
    whole, some = ([batch["y"].tolist() for batch in batches(data, size, 2, KEY, drop)] for drop in (False, True))
    assert [len(batch) for batch in whole] == 2 * kept
    assert [len(batch) for batch in some] == 2 * dropped
    assert [batch for batch in whole if len(batch) in dropped] == some  # the same permutations
    if rows >= size:
        loader = DataLoader(torch.arange(rows), size, drop_last=True)  # type: ignore[arg-type]
        assert [len(batch) for batch in loader] == dropped


def test_a_visit_drops_where_the_method_says_so() -> None:
    sizes = {
        drop: [len(b["y"]) for b in LocalTraining(local_epochs=1, batch_size=4, drop_last=drop).visits(DATA, KEY)]
        for drop in (False, True)
    }
    assert sizes == {False: [4, 3], True: [4]}
    assert LocalTraining().drop_last is False


def test_no_batch_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to train on"):
        sgd(square, {"w": torch.ones(1)}, SGD(0.1), [], Key.root(0))


def test_rows_count_by_their_weight_in_the_loss() -> None:
    task, y = Classification(3), torch.tensor([0, 1, 2])
    logits = torch.randn(3, 3, generator=torch.Generator().manual_seed(0))
    each = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    weighted = task.loss(logits, {"y": y, "weight": torch.tensor([1.0, 3.0, 0.0])})
    assert torch.allclose(weighted, (each[0] + 3 * each[1]) / 4)
    assert torch.allclose(task.loss(logits, {"y": y, "weight": torch.ones(3)}), task.loss(logits, {"y": y}))


def test_scores_are_exact_over_uneven_batches() -> None:
    """5 rows, 3 right: classes 0 (2 of 3), 1 (1 of 1), 2 (0 of 1), 3 absent: balanced (2/3 + 1 + 0) / 3."""
    task = Classification(4)
    logits = torch.eye(4)[torch.tensor([0, 0, 1, 1, 1])] * 10
    y = torch.tensor([0, 0, 0, 1, 2])
    parts = [task.tally(logits[s], {"y": y[s]}) for s in (slice(0, 4), slice(4, 5))]
    found = task.scores({name: parts[0][name] + parts[1][name] for name in parts[0]})
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["balanced_accuracy"] == pytest.approx(5 / 9)
    hit, miss = math.log(1 + 3 * math.exp(-10)), 10 + math.log(1 + 3 * math.exp(-10))
    assert found["loss"] == pytest.approx((3 * hit + 2 * miss) / 5, rel=1e-5)


@pytest.mark.parametrize("size", [1, 2, 4, 512])
def test_means_by_label_are_exact_over_uneven_batches_and_leave_out_absent_labels(size: int) -> None:
    """Label 0: (1 + 2 + 6) / 3 = 3, label 2: (4 + 10) / 2 = 7, and twice as much in the second column."""
    data = {"x": torch.tensor([[1.0], [4.0], [2.0], [10.0], [6.0]]), "y": torch.tensor([0, 2, 0, 2, 0])}
    found = means_by_label(lambda x: torch.cat([x, 2 * x], 1), data, 4, size)
    assert {label: mean.tolist() for label, mean in found.items()} == {"0": [3.0, 6.0], "2": [7.0, 14.0]}
    assert not tree.shares_storage({"0": found["0"]}, {"2": found["2"]})


def test_rows_by_label_fill_in_what_is_missing() -> None:
    named = {"10": torch.tensor([5.0]), "2": torch.tensor([3.0])}
    assert rows_by_label(named, 11, torch.tensor([-1.0])).flatten().tolist() == [
        -1,
        -1,
        3,
        -1,
        -1,
        -1,
        -1,
        -1,
        -1,
        -1,
        5,
    ]


def test_visits_are_e_epochs_unless_told_otherwise() -> None:
    training = LocalTraining(local_epochs=3, batch_size=4)
    assert [len(list(training.visits(DATA, Key.root(0), epochs))) for epochs in (None, 0, 1, 5)] == [6, 6, 2, 10]


def test_the_squared_distance_of_weights_leaves_out_buffers() -> None:
    """(1 − 3)² + (5 − 4)² + (0 − 2)² = 9, without the running mean and the counter."""
    a = {"x": {"w": torch.tensor([1.0, 5.0]), "~mean": torch.tensor([7.0])}, "b": torch.tensor([0.0])}
    b = {"x": {"w": torch.tensor([3.0, 4.0]), "~mean": torch.tensor([1.0])}, "b": torch.tensor([2.0])}
    counters = {"n": torch.tensor(3)}
    assert squared_distance({**a, **counters}, {**b, **counters}).item() == 9.0
    assert list(trainable({**a, **counters})) == ["b", "x/w"]


def test_class_balanced_weights_by_hand() -> None:
    """3 rows of label 0 and 1 of label 2: E = (1 − 0.5³) / 0.5 = 1.75 and 1; 1 / E = 4/7, 4/7, 4/7, 1 of mean 19/28."""
    y = torch.tensor([0, 2, 0, 0])
    expected = torch.tensor([4 / 7, 1.0, 4 / 7, 4 / 7]) / (19 / 28)
    assert torch.allclose(balanced_weights(y, 0.5), expected)
    assert torch.allclose(balanced_weights(y, 1.0), torch.tensor([2 / 3, 2.0, 2 / 3, 2 / 3]))  # 1 / (classes · share)
    assert torch.allclose(balanced_weights(y, 1 - 1e-9), balanced_weights(y, 1.0))
    assert torch.allclose(balanced_weights(y, 1e-9), torch.ones(4))


def test_visits_weigh_rows_where_a_class_balance_is_asked_for() -> None:
    data = {"x": torch.arange(6.0), "y": torch.tensor([0, 0, 0, 0, 1, 1])}
    training = LocalTraining(local_epochs=1, batch_size=4, class_balance=1.0)
    [*found] = training.visits(data, Key.root(0))
    assert len(found) == 2
    for batch in found:
        assert torch.allclose(batch["weight"], torch.tensor([0.75, 1.5])[batch["y"]])
    weighed = training.weighed({**data, "weight": torch.full((6,), 0.5)})
    assert torch.allclose(weighed["weight"], torch.tensor([0.375, 0.75])[data["y"]])
    plain = LocalTraining(local_epochs=1, batch_size=4)
    assert plain.weighed(data) is data
    assert all(batch.keys() == data.keys() for batch in plain.visits(data, Key.root(0)))


def test_squared_gradients_by_hand() -> None:
    """The gradient of w x is x: (1 + 9) / 2 = 5; by weights 3 and 1 it is (3 · 1 + 1 · 9) / 4 = 3; 0 where w is not."""

    def loss(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        return (params["w"] * batch["x"]).mean()

    params = {"w": torch.tensor([7.0]), "unused": torch.ones(2), "~steps": torch.tensor(3.0)}
    data = {"x": torch.tensor([1.0, 3.0])}
    assert tree.equal(squared_gradients(loss, params, data), {"unused": torch.zeros(2), "w": torch.tensor([5.0])})
    weighted = squared_gradients(loss, params, {**data, "weight": torch.tensor([3.0, 1.0])})
    assert weighted["w"].item() == 3.0
    assert not params["w"].requires_grad
