"""A model as a chain of units: what is a unit, what is a block, and where a chain breaks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from unalike import models
from unalike.errors import InputError
from unalike.models import chain
from unalike.plugins import absolute
from unalike.protocol import Spec
from unalike.rng import Key

RESNET = Spec("resnet18(width=0.125)", (3, 16, 16), 4)
KEY = Key.root(1)

USERS = """
from collections import OrderedDict
from torch import nn

def plain(input, classes):
    return nn.Sequential(
        nn.Dropout(0.1), nn.Sequential(nn.Conv2d(input[0], 4, 3), nn.BatchNorm2d(4), nn.ReLU()), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 4 * 4, 7), nn.ReLU(), nn.Linear(7, classes),
    )

class Own(nn.Module):
    def __init__(self, input, classes):
        super().__init__()
        self.a, self.b, self.fc = nn.Flatten(), nn.Linear(3 * 14 * 14, 8), nn.Linear(8, classes)
    def forward(self, x):
        return self.fc(self.b(self.a(x)))

def single(input, classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 8), nn.ReLU(), nn.Linear(8, classes))

class OfFirst(nn.Linear):
    def forward(self, x):
        return super().forward(x[0])

def pair(input, classes):
    return nn.Sequential(nn.Flatten(), nn.LSTM(3 * 14 * 14, 8), OfFirst(8, 5), nn.ReLU(), nn.Linear(5, classes))

def tied(input, classes):
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    b.weight = a.weight
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * 14 * 14, 4), a, b, nn.Linear(4, classes))
"""


@pytest.fixture
def users(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(USERS)
    return tmp_path


def spec(users: Path, name: str) -> Spec:
    return Spec(absolute(f"nets.py:{name}", users), (3, 14, 14), 10)


def test_resnet_has_nine_units_and_the_papers_four_blocks() -> None:
    assert chain.cuts(RESNET) == (0, 3, 5, 7, 9)
    assert chain.blocks(RESNET)[:2] == (("stem", "stage1_1", "stage1_2"), ("stage2_1", "stage2_2"))
    assert chain.shapes(RESNET)[2:5] == ((8, 16, 16), (16, 8, 8), (16, 8, 8))
    assert chain.shapes(RESNET)[-1] == (64,)
    assert chain.widths(RESNET) == (8, 8, 8, 16, 16, 32, 32, 64, 64)


@pytest.mark.parametrize(("cut", "expected"), [(2, (0, 4, 13)), (3, (0, 7, 13))])
def test_vgg_is_cut_after_its_second_or_third_pool(cut: int, expected: tuple[int, ...]) -> None:
    assert chain.cuts(Spec(f"vgg16(width=0.1, cut={cut})", (3, 32, 32), 4)) == expected


@pytest.mark.parametrize("name", ["resnet18(width=0.125)", "vgg11(width=0.1)", "vit-tiny(width=0.25)", "cnn-5"])
def test_a_chain_run_in_parts_is_the_extractor(name: str) -> None:
    of = Spec(name, (3, 16, 16), 4)
    weights = models.initial(of, KEY)["extractor"]
    x = torch.randn(3, 3, 16, 16)
    middle = len(chain.units(of)) // 2
    parts = [chain.part(of, weights, 0, middle), chain.part(of, weights, middle, 99)]
    y = chain.run(of, middle, 99, parts[1], chain.run(of, 0, middle, parts[0], x))
    assert torch.equal(y, models.features(of, weights, x))
    assert parts[0].keys() | parts[1].keys() == weights.keys()
    assert parts[0].keys().isdisjoint(parts[1])


def test_units_of_a_users_sequential_begin_at_weights_that_are_no_norm(users: Path) -> None:
    """The flattening goes with the linear layer after it, so that the unit before still emits maps."""
    of = spec(users, "plain")
    assert chain.units(of) == ("1.0", "3", "6")
    assert chain.shapes(of) == ((4, 6, 6), (6, 4, 4), (7,))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("Own", "the chain breaks at its extractor, a Own with a forward of its own"),
        ("single", r"a single unit with weights \(1\)"),
        ("pair", "the chain breaks at unit 1, which emits a tuple"),
        ("tied", "the chain breaks at unit 3, which shares a weight with 2"),
    ],
)
def test_what_cannot_be_cut_says_where_the_chain_breaks(users: Path, name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        chain.shapes(spec(users, name))


@pytest.mark.parametrize("cuts", [(0, 3), (0, 3, 3, 9), (1, 9), (0, 5, 3, 9), (0, 9, 10), ()])
def test_cuts_rise_from_nothing_to_all_units(cuts: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="has 9 units: cuts must rise from 0 to 9"):
        chain.blocks(RESNET, cuts)


def test_a_model_without_cuts_of_its_own_says_so() -> None:
    with pytest.raises(InputError, match="brings no cuts of its own"):
        chain.cuts(Spec("vit-tiny", (3, 16, 16), 4))
