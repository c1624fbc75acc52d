"""Networks for rows of a table and for windows of sensor readings, in five sizes like the CNNs."""

from __future__ import annotations

import itertools

from torch import nn

from .cnn import assemble, scaled

MLP_WIDTHS = {1: (256, 128), 2: (128, 128), 3: (128,), 4: (64, 64), 5: (64,)}
CNN1D_WIDTHS = {1: (64, 128, 128), 2: (64, 64, 64), 3: (32, 64), 4: (32, 32), 5: (16, 32)}
MLP_FEATURES = 64
CNN1D_FEATURES = 128


def mlp(number: int, input: tuple[int, ...], classes: int, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """MLP-`number` for tables: linear layers with ReLU down to 64 features, a linear header. `input`: (features,).

    `width` is a factor on the widths of all layers.
    """
    sizes = [input[0], *(scaled(n, width) for n in (*MLP_WIDTHS[number], MLP_FEATURES))]
    layers = [layer for a, b in itertools.pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
    drop = [nn.Dropout(dropout)] if dropout else []
    return assemble(nn.Sequential(nn.Flatten(), *layers, *drop), nn.Linear(sizes[-1], classes))


def cnn1d(number: int, input: tuple[int, ...], classes: int, dropout: float = 0.0, width: float = 1.0) -> nn.Module:
    """CNN1D-`number` for sensor windows: convolutions of width 5 with ReLU and pool, averaged over time.

    `input`: (channels, time), any length from 1 on. `width` is a factor on the channels and the features.
    """
    channels, layers, features = input[0], list[nn.Module](), scaled(CNN1D_FEATURES, width)
    for filters in (scaled(n, width) for n in CNN1D_WIDTHS[number]):
        layers += [nn.Conv1d(channels, filters, 5, padding=2), nn.ReLU(), nn.MaxPool1d(2, ceil_mode=True)]
        channels = filters
    layers += [nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, features), nn.ReLU()]
    drop = [nn.Dropout(dropout)] if dropout else []
    return assemble(nn.Sequential(*layers, *drop), nn.Linear(features, classes))
