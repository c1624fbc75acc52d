"""Sub-models by depth: the first blocks of a chain and a classifier after each."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from unalike import models, tree
from unalike.models import chain, exits
from unalike.protocol import Spec
from unalike.rng import Key

RESNET, MLP, CNN = (
    Spec("resnet18(width=0.125)", (1, 8, 8), 10),
    Spec("mlp-1", (4,), 3),
    Spec("cnn-5(norm=True, width=0.1)", (1, 8, 8), 10),
)
KEY = Key.root(0)
X = torch.randn(5, 1, 8, 8, generator=KEY.torch())


def test_blocks_are_the_papers_or_the_units() -> None:
    assert exits.cuts(RESNET) == (0, 3, 5, 7, 9)
    assert exits.cuts(MLP) == (0, 1, 2, 3)
    assert [exits.depth(spec) for spec in (RESNET, MLP, CNN)] == [4, 3, 4]


def test_the_last_classifier_is_the_model_and_the_others_see_the_mean_of_their_block() -> None:
    weights = exits.initial(RESNET, KEY)
    found = exits.forward(RESNET, weights, 4, X)
    whole = models.initial(RESNET, KEY)
    assert torch.allclose(found[3], models.logits(RESNET, whole, X), atol=1e-6)
    y = chain.run(RESNET, 0, 5, whole["extractor"], X)
    second = weights["classifiers"]["2"]
    assert second["weight"].shape == (10, 16)
    assert torch.allclose(found[1], F.linear(y.mean((2, 3)), second["weight"], second["bias"]), atol=1e-6)


@pytest.mark.parametrize("spec", [RESNET, MLP, CNN], ids=lambda spec: spec.name)
def test_a_sub_model_is_enough_for_its_depth(spec: Spec) -> None:
    weights, x = exits.initial(spec, KEY), torch.randn(5, *spec.input, generator=KEY.torch())
    full = exits.forward(spec, weights, exits.depth(spec), x)
    for d in range(1, exits.depth(spec) + 1):
        part = tree.from_bytes(tree.to_bytes(exits.part(spec, weights, d)))
        assert set(tree.flatten(part)) == exits.names(spec, d)
        found = exits.forward(spec, part, d, x)
        assert len(found) == d
        assert all(torch.equal(a, b) for a, b in zip(found, full, strict=False))


def test_depths_by_hand() -> None:
    """Of mlp-1, 4-256-128-64: depth 2 has two layers and two classifiers, 256 and 128 wide."""
    part = exits.part(MLP, exits.initial(MLP, KEY), 2)
    assert {name: tuple(leaf.shape) for name, leaf in tree.flatten(part).items()} == {
        "extractor/1.weight": (256, 4),
        "extractor/1.bias": (256,),
        "extractor/3.weight": (128, 256),
        "extractor/3.bias": (128,),
        "classifiers/1/weight": (3, 256),
        "classifiers/1/bias": (3,),
        "classifiers/2/weight": (3, 128),
        "classifiers/2/bias": (3,),
    }
    assert "header/weight" in exits.names(MLP, 3)
    assert "classifiers/3/weight" not in exits.names(MLP, 3)


def test_the_first_weights_are_those_of_the_model_and_of_the_key() -> None:
    assert tree.equal(
        {n: b for n, b in exits.initial(RESNET, KEY).items() if n != "classifiers"}, models.initial(RESNET, KEY)
    )
    one, other = (exits.initial(RESNET, Key.root(seed))["classifiers"]["1"] for seed in (0, 1))
    assert not tree.equal(one, other)
