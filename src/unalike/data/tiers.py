"""Which model each client has, and whether models and data go together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .. import models
from ..errors import InputError
from ..multimodal import MODALITIES, is_multimodal
from ..plugins import absolute
from ..plugins import label as label_of
from ..pretrained import is_language
from ..protocol import ClientInfo, Spec
from . import Source, vqa
from .partition import Partition


def require_models(source: Source, names: Sequence[str]) -> None:
    """Raise `InputError` unless texts meet language models, questions models of images and questions, and only they."""
    if source.kind == "text" and not names:
        model = "--models lm:HuggingFaceTB/SmolLM2-135M-Instruct"
        raise InputError(f"{source.name} holds texts: say which language model is to answer them, such as {model}")
    if source.kind == "vqa" and not names:
        model = "--models vl:dandelin/vilt-b32-mlm"
        raise InputError(f"{source.name} asks about images: say which model is to answer, such as {model} or vl:tiny")
    for name in names:
        if is_multimodal(name) != (source.kind == "vqa"):
            what = "takes questions about images only" if is_multimodal(name) else "takes none; one named vl:... does"
            raise InputError(f"{source.name} is of kind {source.kind}: model {name} {what}")
        if is_language(name) != (source.kind == "text"):
            what = "takes texts only" if is_language(name) else "takes no texts; a language model lm:... does"
            raise InputError(f"{source.name} is of kind {source.kind}: model {name} {what}")


def models_of(
    n: int, names: Sequence[str], model_map: Mapping[int, str], like: Spec
) -> tuple[list[str], dict[str, Spec]]:
    """The tier of each of n clients, who take `names` in turn unless `model_map` says otherwise, and each tier's model.

    Args:
        like: input, classes and feature width of all of them.

    Raises:
        InputError: a client that there is not, two files' models of one name, or a model that does not fit the data.
    """
    for client in model_map:
        if not 0 <= client < n:
            raise InputError(f"--model-map names client {client}; the clients are 0 to {n - 1}")
    given = [absolute(model_map.get(k, names[k % len(names)])) for k in range(n)]
    specs = {label_of(name): replace(like, name=name) for name in dict.fromkeys(given)}
    for name in given:
        if specs[label_of(name)].name != name:
            raise InputError(
                f"two models are called {label_of(name)}, in {name} and {specs[label_of(name)].name}: rename one"
            )
    for spec in specs.values():
        models.check(spec)
    return [label_of(name) for name in given], specs


def asked(
    source: Source,
    partition: Partition,
    infos: Sequence[ClientInfo],
    specs: Mapping[str, Spec],
    has: Mapping[int, tuple[str, ...]],
) -> tuple[tuple[ClientInfo, ...], dict[str, Spec]]:
    """Clients of questions, and their models: each has as many outputs as its client has answers of its own.

    Every row of theirs is held against what its client's model takes.
    """
    found, tiers = [], {}
    for info in infos:
        spec = specs[info.tier]
        own = len(own_classes(source, partition, info.id))
        tier = f"{info.tier}, {own} answers"
        tiers[tier] = replace(spec, classes=own)
        found.append(replace(info, tier=tier, modalities=has.get(info.id, ())))
        vqa.require_readable(source, partition.of(info.id), spec.name, has.get(info.id, MODALITIES), info.id)
    return tuple(found), tiers


def own_classes(source: Source, partition: Partition, client: int) -> np.ndarray:
    """Ascending numbers of the classes that a client's own rows have, of all parts."""
    return np.unique(source.y[partition.of(client)])
