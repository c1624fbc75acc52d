"""Trees as few singular triples: how many, how large, and how near."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from unalike import tree
from unalike.compression import compress, decompress, rank


def with_singular_values(values: list[float], shape: tuple[int, ...]) -> Tensor:
    """A matrix (or a kernel, the first axis against the rest) of which these are the singular values."""
    random = np.random.default_rng(0)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    u, v = (np.linalg.qr(random.normal(size=(n, len(values))))[0] for n in (rows, columns))
    return torch.tensor((u * values) @ v.T, dtype=torch.float32).reshape(shape)


@pytest.mark.parametrize(
    ("energy", "expected"), [(0.0, 1), (0.5, 1), (0.64, 2), (0.7, 2), (0.99, 2), (1.0, 2)], ids=str
)
def test_k_is_the_smallest_whose_share_exceeds_the_energy(energy: float, expected: int) -> None:
    """σ = (8, 6, 0): shares of energy 0.64, 1, 1. Exactly 0.64 does not exceed 0.64; a σ of 0 is never sent."""
    assert rank(torch.tensor([8.0, 6.0, 0.0]), energy) == expected


def test_a_matrix_of_zeros_needs_no_singular_value_and_no_byte() -> None:
    assert rank(torch.zeros(3), 0.95) == 0
    zeros = {"w": torch.zeros(6, 5)}
    packed = compress(zeros, 0.95)
    assert tree.nbytes(packed) == 0
    assert tree.equal(decompress(tree.from_bytes(tree.to_bytes(packed)), zeros), zeros)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (12, 5, 2, 2)], ids=str)
def test_what_is_kept_is_the_best_approximation_of_that_rank(shape: tuple[int, ...]) -> None:
    """σ = (4, 2, 1), energy 21: shares 16/21, 20/21, 1. T = 0.9 keeps two, and what is lost has the norm 1."""
    leaf = {"w": with_singular_values([4.0, 2.0, 1.0], shape)}
    packed = compress(leaf, 0.9)
    rows, columns = shape[0], int(np.prod(shape[1:]))
    assert {name: tuple(t.shape) for name, t in packed["w"].items()} == {"u": (rows, 2), "s": (2,), "v": (2, columns)}
    assert tree.nbytes(packed) == 4 * 2 * (rows + columns + 1)
    found = decompress(packed, leaf)["w"]
    assert found.shape == shape
    assert float((found - leaf["w"]).norm()) == pytest.approx(1.0, rel=1e-5)
    assert torch.allclose(decompress(compress(leaf, 0.9999), leaf)["w"], leaf["w"], atol=1e-5)


def test_leaves_that_factors_would_not_make_smaller_travel_whole() -> None:
    """3 x 3 of rank 1: factors have 1 · (3 + 3 + 1) = 7 < 9 numbers; 2 x 4 of rank 1 has 7 < 8; of 2 x 3 6 = 6."""
    given = {
        "bias": torch.ones(7),
        "count": torch.tensor(3),
        "integers": torch.ones(9, 9, dtype=torch.int64),
        "lost": torch.full((9, 9), torch.nan),
        "no_smaller": torch.ones(2, 3),
        "smaller": torch.ones(3, 3),
    }
    packed = compress({"layer": given}, 0.9)["layer"]
    assert [name for name, leaf in packed.items() if not isinstance(leaf, Tensor)] == ["smaller"]
    assert all(packed[name] is given[name] for name in given if name != "smaller")
    found = decompress({"layer": packed}, {"layer": given})["layer"]
    assert torch.allclose(found["smaller"], given["smaller"], atol=1e-6)


def test_a_module_whose_parameters_are_called_u_s_and_v_is_no_matrix() -> None:
    given = {"extractor": {"u": torch.ones(2, 2), "s": torch.ones(2), "v": torch.ones(2, 2)}}
    assert tree.equal(decompress(compress(given, 1.0), given), given)
