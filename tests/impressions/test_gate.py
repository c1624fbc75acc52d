"""The gate finds planted near-copies of a client's own images and lets others pass."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from unalike.errors import InputError
from unalike.impressions import gate
from unalike.impressions.gate import calibrate, near_copies, neighbours, refuses

Plant = Callable[[Tensor, torch.Generator], Tensor]


def shifted(x: Tensor, g: torch.Generator) -> Tensor:
    """Each image by one pixel in one of eight directions; the edge is repeated."""
    steps = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    wide = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    h, w = x.shape[-2:]
    chosen = [steps[i] for i in torch.randint(8, (len(x),), generator=g).tolist()]
    return torch.stack([wide[i, :, 1 + b : 1 + b + h, 1 + a : 1 + a + w] for i, (b, a) in enumerate(chosen)])


PLANTS: dict[str, Plant] = {
    "exact": lambda x, g: x,
    "shifted": shifted,
    "brightened": lambda x, g: (x + 0.3).clamp(-1, 1),
    "less contrast": lambda x, g: 0.7 * x - 0.1,
    "quantised": lambda x, g: ((x + 1) * 7.5).round() / 7.5 - 1,
    "noise": lambda x, g: (x + 0.1 * torch.randn(x.shape, generator=g)).clamp(-1, 1),
}


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """In random order, on the scale -1..1 of a model's input."""
    x = torch.from_numpy(load_digits().images).float()[:, None] / 8 - 1
    return x[np.random.default_rng(0).permutation(len(x))]


@pytest.fixture
def g() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("kind", PLANTS)
def test_planted_copies_are_found(kind: str, digits: Tensor, g: torch.Generator) -> None:
    train, held_out = digits[:600], digits[600:750]
    planted = PLANTS[kind](train[:160], g)
    assert near_copies(planted, train, held_out).float().mean() >= 0.95


def test_held_out_images_pass(digits: Tensor) -> None:
    """Over four divisions, on images that the gate was not calibrated on."""
    alarms = []
    for turn in range(4):
        x = digits.roll(400 * turn, 0)
        alarms.append(near_copies(x[750:1750], x[:600], x[600:750]).float().mean())
    assert sum(alarms) / 4 <= 0.05


def test_noise_and_constant_images_pass(digits: Tensor, g: torch.Generator) -> None:
    train, held_out = digits[:300], digits[300:400]
    noise = torch.rand(160, 1, 8, 8, generator=g) * 2 - 1
    flat = torch.linspace(-1, 1, 9)[:, None, None, None].expand(9, 1, 8, 8)
    assert not near_copies(noise, train, held_out).any()
    assert not near_copies(flat, train, held_out).any()
    assert not near_copies(flat, torch.cat([train, flat]), held_out).any()
    assert not refuses(noise, train, held_out)
    assert refuses(torch.cat([noise, train[:1]]), train, held_out)


def test_images_that_are_all_constant_do_no_harm() -> None:
    flat = torch.zeros(5, 3, 16, 16)
    assert not near_copies(flat, flat, flat).any()
    assert not near_copies(torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(1)), flat, flat).any()


@pytest.mark.parametrize("held_out", [0, 20, 150])
def test_a_copy_is_found_where_every_image_is_held_twice(held_out: int, digits: Tensor, g: torch.Generator) -> None:
    """The next training image is not the same one over again, and a row that is there twice is no measure of others."""
    train, others = digits[:300].repeat(2, 1, 1, 1), digits[600 : 600 + held_out]
    for kind, plant in PLANTS.items():
        assert near_copies(plant(digits[:100], g), train, others).float().mean() >= 0.9, kind
    assert near_copies(digits[800:1100], train, others).float().mean() <= 0.05


@pytest.mark.parametrize(("train", "held_out"), [(1, 0), (1, 1), (2, 0), (3, 1), (12, 0), (30, 5)])
def test_tiny_clients(train: int, held_out: int, digits: Tensor, g: torch.Generator) -> None:
    """Copies are found wherever there is an image to copy; a strict limit stands in for what is not known."""
    own, others, new = digits[:train], digits[train : train + held_out], digits[100:260]
    found = calibrate(own, others)
    assert found.near_copies(own).all()
    assert found.near_copies(shifted(own, g)).float().sum() >= 0.9 * train
    assert found.near_copies(new).float().mean() <= 0.05


def test_a_client_without_images_refuses_nothing(digits: Tensor) -> None:
    none = digits[:0]
    assert not refuses(digits[:9], none, none)
    assert not refuses(digits[:9], none, digits[9:12])
    assert near_copies(none, digits[:20], digits[20:30]).shape == (0,)


@pytest.mark.parametrize("shape", [(1, 28, 20), (3, 32, 32), (3, 9, 17), (1, 4, 4)])
def test_other_shapes(shape: tuple[int, ...], g: torch.Generator) -> None:
    """Smooth random pictures, with a colour of their own in each channel."""
    small = torch.randn(160, shape[0], 4, 4, generator=g)
    x = torch.nn.functional.interpolate(small, shape[1:], mode="bilinear", align_corners=True).clamp(-2, 2) / 2
    train, held_out, new = x[:60], x[60:100], x[100:]
    for kind, plant in PLANTS.items():
        if kind != "shifted" or gate.reach(x):
            assert near_copies(plant(train, g), train, held_out).float().mean() >= 0.95, kind
    assert near_copies(new, train, held_out).float().mean() <= 0.1


def test_the_distance_is_one_minus_the_largest_correlation(digits: Tensor, g: torch.Generator) -> None:
    """On 8x8 images all frequencies of the inner 6x6 pixels count: compared with numpy's corrcoef, shift by shift."""
    train, images = digits[:3], digits[20:23]
    found = neighbours(images, train)
    for image, places, distances in zip(images, found.indices, found.distances, strict=True):
        for place, distance in zip(places[:3].tolist(), distances[:3].tolist(), strict=True):
            inner, other = image[0, 1:7, 1:7].flatten(), train[place, 0]
            windows = [other[y : y + 6, x : x + 6].flatten() for y in range(3) for x in range(3)]
            best = max(np.corrcoef(inner, window)[0, 1] for window in windows)
            assert distance == pytest.approx(1 - max(best, 0), abs=1e-5)
    assert (found.distances[:, 3] == 1).all()


def test_an_image_can_be_left_out_and_chunks_change_nothing(digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    train = digits[:100]
    own = torch.arange(100)
    found = neighbours(train, train, without=own)
    assert (found.indices != own[:, None]).all()
    assert (neighbours(train, train).nearest < 1e-5).all()
    monkeypatch.setattr(gate, "ROWS", 33)
    again = neighbours(train, train, without=own)
    assert torch.allclose(again.distances, found.distances, atol=1e-6)


def test_it_is_deterministic_and_changes_nothing(digits: Tensor, g: torch.Generator) -> None:
    received, train, held_out = digits[:200], digits[100:500], digits[500:600]
    before = [x.clone() for x in (received, train, held_out)]
    state = torch.get_rng_state()
    first, second = (calibrate(train, held_out) for _ in range(2))
    assert first.threshold == second.threshold
    found = neighbours(received, train)
    assert torch.equal(first.margins(found), second.margins(neighbours(received, train)))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(map(torch.equal, before, (received, train, held_out)))


def test_brightness_contrast_and_scale_do_not_matter(digits: Tensor) -> None:
    received, train, held_out = digits[:50], digits[40:240], digits[300:400]
    found = near_copies(received, train, held_out)
    assert found.sum() == 10
    assert torch.equal(near_copies(3 * received + 1, train, held_out), found)
    assert torch.equal(near_copies(*((x + 1) * 127.5 for x in (received, train, held_out))), found)


def test_images_of_another_shape_are_refused_in_words(digits: Tensor) -> None:
    with pytest.raises(InputError, match=r"one shape.*\(3, 8, 8\) were received, \(1, 8, 8\) were trained on"):
        near_copies(torch.zeros(2, 3, 8, 8), digits[:20], digits[20:30])
