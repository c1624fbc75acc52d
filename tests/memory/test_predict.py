"""Predicted memory: by hand, against real tensors byte for byte, and what cannot be predicted."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import works
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from unalike import local, models, tree
from unalike.errors import InputError
from unalike.memory import work
from unalike.memory.predict import Peak, count, predict
from unalike.protocol import Spec
from unalike.rng import Key

FLOAT, LONG = 4, 8


def test_a_linear_layers_plain_training_is_what_comes_out_by_hand() -> None:
    """At the end of the second backward pass: the gradient of the logits, the loss and its own gradient still live."""
    B, d, K = 32, 100, 10
    weights, logits = (d * K + K) * FLOAT, B * K * FLOAT
    assert predict(works.plain(nn.Linear(d, K), (d,), B, momentum=0.9)) == Peak(
        bytes=3 * weights + B * (d * FLOAT + LONG) + logits + 2 * FLOAT,
        parameters=weights,
        buffers=0,
        batch=B * (d * FLOAT + LONG),
        gradients=weights,
        optimiser=weights,
        activations=logits + 2 * FLOAT,
        workspace=0,
        flops=2 * 2 * B * d * K,  # forward, and the weight's gradient: the input needs none
    )


def test_without_momentum_the_optimiser_keeps_nothing() -> None:
    with_it, without = (predict(works.plain(nn.Linear(100, 10), (100,), 32, momentum=m)) for m in (0.9, 0.0))
    assert without.optimiser == 0
    assert with_it.bytes - without.bytes == with_it.optimiser == 1010 * FLOAT


def test_a_clients_visit_holds_weights_twice_and_copies_gradients() -> None:
    """What arrived and what trains; with decay the optimiser has a copy of the gradients beside momentum."""

    def loss(params: tree.Tree, given: tree.Tree, batch: tree.Tree) -> Tensor:
        return (batch["x"] @ params["w"]["w"]).square().mean()

    arrived = {"w": {"w": torch.empty(50, 3, device="meta"), "~n": torch.empty(7, device="meta")}}
    found = predict(work.sgd(loss, arrived, local.SGD(0.1, 0.9, 1e-3), work.rows((50,), 4)))
    assert (found.parameters, found.gradients, found.optimiser) == (2 * 600, 600, 2 * 600)
    assert found.buffers == 2 * 7 * FLOAT
    assert found.batch == 4 * (50 * FLOAT + LONG)


def test_evaluation_keeps_no_activation_but_the_last_two() -> None:
    """Linear, ReLU, Linear without gradients: at most an input and an output of one layer live at once."""
    module = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64))
    found = predict(work.module_evaluation(module, work.rows((10,), 8)))
    assert found.activations == 2 * 8 * 64 * FLOAT
    assert found.gradients == found.optimiser == 0


def test_parameters_that_are_frozen_get_neither_gradient_nor_momentum() -> None:
    module = nn.Sequential(nn.Linear(10, 64), nn.Linear(64, 3))
    module[0].requires_grad_(False)
    found = predict(works.plain(module, (10,), 2, momentum=0.9))
    assert found.gradients == found.optimiser == (64 * 3 + 3) * FLOAT


CASES: dict[str, Callable[[], work.Work]] = {
    "resnet": works.whole,
    "vgg": functools.partial(works.whole, "vgg11(width=0.1)"),
    "vit": functools.partial(works.whole, "vit-tiny(width=0.25, depth=2)"),
    "cnn with dropout": functools.partial(works.whole, "cnn-5(dropout=0.5)"),
    "step 1": functools.partial(works.step, 1),
    "step 3": functools.partial(works.step, 3),
    "step 3, frozen in training mode": functools.partial(works.step, 3, frozen_train=True),
    "mapping": functools.partial(works.mapping, 2),
    "mapping with header": functools.partial(works.mapping, 4),
    "evaluation": works.evaluated,
    "transformer": lambda: works.plain(
        nn.Sequential(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten(), nn.Linear(80, 3)),
        (5, 16),
        4,
    ),
    "adam": lambda: work.module_training(
        nn.Linear(9, 3), works.cross_entropy, functools.partial(torch.optim.Adam, lr=0.1), work.rows((9,), 4)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_prediction_is_what_real_tensors_take_to_the_byte(name: str) -> None:
    case = CASES[name]()
    assert predict(case) == count(case)


def test_operations_are_those_of_torchs_counter() -> None:
    case = works.step(2)
    with FlopCounterMode(display=False) as counter:
        case.run(work.materialised(case, torch.device("cpu")), work.nothing)
    assert predict(case).flops == counter.get_total_flops() // 2 > 0


def test_nothing_is_allocated() -> None:
    """Forty gigabytes of weights, three times."""
    module = nn.Linear(100_000, 100_000, device="meta")
    found = predict(works.plain(module, (100_000,), 2, momentum=0.9))
    assert found.bytes > 3 * 40e9


def test_models_work_as_before_after_a_prediction() -> None:
    """Skeletons that a prediction has bound to fake tensors are bound anew, and caches hold real ones."""
    spec = Spec("cnn-5(dropout=0.25)", (3, 16, 16), 4)
    predict(works.whole(spec.name))
    weights = models.initial(spec, Key.root(0))
    assert models.logits(spec, weights, torch.zeros(2, 3, 16, 16)).isfinite().all()
    assert models.width(spec) == 500
    assert type(next(iter(weights["header"].values()))) is Tensor


def test_a_number_read_from_a_tensor_is_one() -> None:
    def run(held: Any, mark: work.Mark) -> None:
        assert float(held["weights"]["w"].sum()) == 1.0

    predict(work.Work({"weights": {"w": torch.zeros(3)}}, run))


def test_shapes_that_depend_on_values_are_refused() -> None:
    case = work.evaluation(lambda weights, batch: batch["x"][batch["x"] > 0], {}, work.rows((3,), 2))
    with pytest.raises(InputError, match=r"memory cannot be predicted: .*depends on the values"):
        predict(case)
    assert count(case).bytes > 0


def test_cuda_is_refused_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backward pass of fake CUDA tensors would end the process there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="only where CUDA is"):
        predict(works.whole(), device="cuda")


def test_a_captured_tensor_is_refused() -> None:
    mean = torch.zeros(3)
    with pytest.raises(InputError, match="a tensor that is not among those it holds"):
        predict(work.evaluation(lambda weights, batch: batch["x"] - mean, {}, work.rows((3,), 2)))


def test_an_lstm_on_a_cpu_is_refused() -> None:
    case = work.module_evaluation(nn.LSTM(3, 4), work.rows((5, 3), 2))
    with pytest.raises(InputError, match="an LSTM on a CPU cannot be predicted"):
        predict(case)
