"""The hyper-parameters of impressions: fields of FedImpres, and `impressions = "noise(lam=1)"` of other methods."""

from __future__ import annotations

import dataclasses
import difflib
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import InputError
from ..plugins import parse_call
from ..protocol import Count, NonNegative, Positive, Whole
from ..rng import round_half_up

PUBLIC = "public:"
"""How a start begins that is a set of public images."""


@dataclass(frozen=True, kw_only=True)
class Impressions:
    """How impressions are made, sent and trained on, for methods to have beside their own."""

    images: Count = 160
    """M: synthetic images."""
    image_batch: Count = 32
    """B: images that are optimised together; gradients scale with 1/B, so `lr_img` belongs to it."""
    admm: Count = 3
    """Iterations of ADMM: passes over all images, each followed by a step of the multiplier Λ."""
    image_steps: Count = 10
    """Steps of SGD on a batch of images in each iteration."""
    gamma: NonNegative = 0.01
    """γ: weight decay for which the head is to be optimal on the images."""
    rho: Positive = 0.01
    """ρ: penalty of ‖G‖², and step size of Λ."""
    lr_img: NonNegative = 0.0
    """Step size of the images; 0 means found by a search."""
    lam: NonNegative = 1.0
    """λ: what impressions count in the loss, where the client's rows count 1."""
    mix: Positive = 1.0
    """Impressions drawn beside each row of a batch."""
    concat: bool = False
    """Whether all images stand beside every whole batch and each row counts the same, whatever `lam` and `mix` say."""
    syn_bn: Literal["joint", "frozen"] = "joint"
    """Whether impressions move BatchNorm statistics (joint), or pass in evaluation mode (frozen)."""
    warm_up: Whole = 0
    """Rounds before the first impressions; 0 means a fifth of all."""
    labels: Literal["balanced", "prior"] = "balanced"
    """Labels of the images: equally many of each, or as all clients together have them (which they then tell)."""
    start: str = "noise"
    """What images start from: noise, or public:DATA with a name of `unalike data` or a file."""
    transport: Literal["uint8", "float", "regenerate"] = "uint8"
    """How images travel: a byte a number, four, or as a key from which clients make them again."""
    bn: NonNegative = 0.0
    """Weight of the distance to BatchNorm's statistics."""
    tv: NonNegative = 0.0
    """Weight of the total variation."""
    l2: NonNegative = 0.0
    """Weight of the mean square of pixels."""
    gate: bool = True
    """Whether clients refuse impressions that come too near to their own rows, and say so with one bit."""

    def first(self, rounds: int) -> int:
        """The round after which impressions are made for the first time, of a run of so many rounds."""
        return self.warm_up or max(1, round_half_up(rounds / 5))


def read(text: str) -> Impressions:
    """The settings in "noise(images=160, lam=1)"; `InputError` where a name is unknown."""
    start, given = options(text)
    return Impressions(start=start, **given)


def options(text: str) -> tuple[str, dict[str, Any]]:
    """What images start from, and the settings given in parentheses."""
    start, given = parse_call(text)
    known = [f.name for f in dataclasses.fields(Impressions) if f.name != "start"]
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
            raise InputError(f"impressions have no setting {name!r}: {hint}")
    require_start(start)
    return start, given


def require_start(start: str) -> None:
    """Raise `InputError` unless images can start from it."""
    if (start != "noise" and not start.removeprefix(PUBLIC)) or not start.startswith(("noise", PUBLIC)):
        raise InputError(f"impressions cannot start from {start!r}: give noise, or public:DATA")


def written(start: str, given: dict[str, Any]) -> str:
    """The inverse of `options`."""
    arguments = ", ".join(f"{name}={value!r}" for name, value in given.items())
    return f"{start}({arguments})" if arguments else start
