"""Networks as pure functions of their weights.

A network is named by a `Spec`, built once per process as a skeleton, and evaluated as `features(spec, weights, x)`
and `head(spec, weights, r)`. Weights are trees {"extractor": {...}, "header": {...}}; a leaf is named as in the
module, with "~" before the name of a buffer: buffers travel and are averaged with their layer, and are never trained.
A parameter that its module has frozen (`requires_grad` is False) counts as a buffer.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from .. import tree
from ..errors import InputError
from ..multimodal import is_multimodal
from ..plugins import load_object, parse_call
from ..pretrained import is_language
from ..protocol import Batch, Spec
from ..rng import Key
from ..tasks import Task
from ..tree import Tree
from .cnn import WIDTHS, assemble, cnn
from .mlp import CNN1D_WIDTHS, MLP_WIDTHS, cnn1d, mlp
from .resnet import DEPTHS, resnet
from .vgg import STAGES, vgg
from .vit import vit

__all__ = [
    "DEFAULTS",
    "MODELS",
    "Skeleton",
    "check",
    "features",
    "has_linear_header",
    "head",
    "initial",
    "leaves_of",
    "logits",
    "normalisation",
    "parameters",
    "require_equal_headers",
    "require_equal_widths",
    "smallest",
    "supervised_loss",
    "width",
]

MODELS: Mapping[str, Callable[..., nn.Module]] = {
    **{f"cnn-{i}": functools.partial(cnn, i) for i in WIDTHS},
    **{f"mlp-{i}": functools.partial(mlp, i) for i in MLP_WIDTHS},
    **{f"cnn1d-{i}": functools.partial(cnn1d, i) for i in CNN1D_WIDTHS},
    **{f"resnet{i}": functools.partial(resnet, i) for i in DEPTHS},
    **{f"vgg{i}": functools.partial(vgg, i) for i in STAGES},
    "vit-tiny": vit,
}
"""Name to constructor(input, classes, **options) of a module with an `extractor` and a `header`."""

DEFAULTS: Mapping[str, tuple[str, ...]] = {
    "image": tuple(f"cnn-{i}" for i in WIDTHS),
    "table": tuple(f"mlp-{i}" for i in MLP_WIDTHS),
    "window": tuple(f"cnn1d-{i}" for i in CNN1D_WIDTHS),
}
"""The models that clients get in turn when none are asked for, by the kind of data."""


Found = TypeVar("Found", bound=Callable[..., Any])


class Skeleton:
    """A module without weights of its own: each call binds the tensors it is given.

    Binding is skipped when the very same mapping is given again, so a training loop binds once. A pure function of
    (weights, x) as long as mappings are not changed after their first use.
    """

    def __init__(self, module: nn.Module, names: Mapping[int, str] | None = None) -> None:
        """`names`: those of the tensors by `id`, where `module` is a part whose leaves are named as in the whole."""
        self.module = module.train(False)  # every submodule in the mode that `training` of the root tells
        names = leaf_names(module) if names is None else names
        self._slots = [
            (table, leaf, names[id(value)])
            for owner in module.modules()
            for table in (owner._parameters, owner._buffers)
            for leaf, value in table.items()
            if value is not None
        ]
        self._recurrent = [m for m in module.modules() if isinstance(m, nn.RNNBase)]
        self._bound: Tree | None = None

    def weights(self) -> dict[str, Tensor]:
        """Copies of the tensors bound now, by name."""
        return {name: table[leaf].detach().clone() for table, leaf, name in self._slots}  # type: ignore[union-attr]

    def __call__(self, weights: Tree, x: Tensor, train: bool = False) -> Tensor:
        if self._bound is not weights:
            for table, leaf, name in self._slots:
                table[leaf] = weights[name]
            for module in self._recurrent:
                module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
            self._bound = weights
        if self.module.training != train:
            self.module.train(train)
        outputs: Tensor = self.module(x)
        return outputs


def leaf_names(module: nn.Module) -> dict[int, str]:
    """`id` of each parameter and buffer to the name of its leaf."""
    names = {id(p): name if p.requires_grad else _as_buffer(name) for name, p in module.named_parameters()}
    return names | {id(b): _as_buffer(name) for name, b in module.named_buffers()}


def _as_buffer(name: str) -> str:
    return f"~{name}"


def on_real_tensors(function: Found) -> Found:
    """The same function, outside of whatever follows tensors or feigns them around the call: for what is cached."""

    @functools.wraps(function)
    def called(*arguments: Any, **named: Any) -> Any:
        with _disable_current_modes():
            return function(*arguments, **named)

    return called  # type: ignore[return-value]


@functools.lru_cache(maxsize=64)
@on_real_tensors
def _skeletons(spec: Spec) -> dict[str, Skeleton]:
    module = build(spec, Key.root(0))
    skeletons = {name: Skeleton(getattr(module, name)) for name in ("extractor", "header")}
    module.to("meta")  # weights are bound at each call: the first ones would only take memory
    return skeletons


def build(spec: Spec, key: Key) -> nn.Module:
    """The model, initialised by `key`: built in the middle of training it draws none of that training's numbers."""
    with key.scope():
        return _build(spec)


def initial(spec: Spec, key: Key) -> dict[str, Any]:
    """First weights {"extractor", "header"}: PyTorch's own initialisation, seeded by `key`.

    Asked again it returns the same tensors, so that a thousand clients of one architecture start without a thousand
    builds. Like all trees they are not to be written into.
    """
    return tree.map_leaves(lambda leaf: leaf, _initial(spec, key))


@functools.lru_cache(maxsize=16)
@on_real_tensors
def _initial(spec: Spec, key: Key) -> dict[str, Any]:
    module = build(spec, key)
    return {name: Skeleton(getattr(module, name)).weights() for name in ("extractor", "header")}


def features(spec: Spec, weights: Tree, x: Tensor, train: bool = False) -> Tensor:
    """F_ex(x): (B, *spec.input) to (B, d), with `weights` the "extractor" branch."""
    return _skeletons(spec)["extractor"](weights, x, train)


def head(spec: Spec, weights: Tree, r: Tensor, train: bool = False) -> Tensor:
    """The header: features (B, d) to outputs (B, spec.classes), with `weights` the "header" branch."""
    return _skeletons(spec)["header"](weights, r, train)


def logits(spec: Spec, weights: Tree, x: Tensor, train: bool = False) -> Tensor:
    """header(F_ex(x)): (B, *spec.input) to (B, spec.classes)."""
    return head(spec, weights["header"], features(spec, weights["extractor"], x, train), train)


def supervised_loss(spec: Spec, task: Task, params: Tree, given: Tree, batch: Batch) -> Tensor:
    """The task's loss of the whole model, weights in params["model"]."""
    return task.loss(_training_logits(spec, params["model"], batch), batch)


def _training_logits(spec: Spec, weights: Tree, batch: Batch) -> Tensor:
    """Outputs in training mode, but for the rows at the end that the column "frozen" (B,) marks: by evaluation's."""
    if "frozen" not in batch:
        return logits(spec, weights, batch["x"], train=True)
    n = int(batch["frozen"].sum())
    own, frozen = batch["x"][:-n], batch["x"][-n:]  # in this order: training mode writes what evaluation mode reads
    return torch.cat([logits(spec, weights, own, train=True), logits(spec, weights, frozen)])


def _of_others(spec: Spec) -> Any:
    """The module for models of this kind that others have trained; None for networks."""
    name = "language" if is_language(spec.name) else "multimodal" if is_multimodal(spec.name) else ""
    return importlib.import_module(f".{name}", __name__) if name else None


def _zero_weights(spec: Spec) -> dict[str, Any]:
    return _initial(spec, Key.root(0))


def parameters(spec: Spec, part: str | None = None) -> int:
    """Number of scalars of the model, or of one part of it ("extractor", "header"), buffers left out; of a model that
    others have trained those of an adapter."""
    if found := _of_others(spec):
        return int(found.parameters(spec))
    weights = _zero_weights(spec)
    leaves = tree.flatten(weights if part is None else weights[part])
    return sum(leaf.numel() for name, leaf in leaves.items() if not name.rpartition("/")[2].startswith("~"))


@functools.lru_cache(maxsize=64)
def leaves_of(spec: Spec, *kinds: type[nn.Module]) -> frozenset[str]:
    """Weights and buffers of layers of these kinds: "extractor/1.weight", "extractor/~1.running_var", ..."""
    found = set[str]()
    for part, skeleton in _skeletons(spec).items():
        layers = {name for name, module in skeleton.module.named_modules() if isinstance(module, kinds)}
        leaves = _zero_weights(spec)[part]
        found |= {f"{part}/{leaf}" for leaf in leaves if leaf.removeprefix("~").rpartition(".")[0] in layers}
    return frozenset(found)


def has_linear_header(spec: Spec) -> bool:
    """Whether the header is one linear layer, and nothing else."""
    return type(_skeletons(spec)["header"].module) is nn.Linear


def normalisation(spec: Spec) -> frozenset[str]:
    """The leaves of BatchNorm layers."""
    return leaves_of(spec, nn.modules.batchnorm._BatchNorm)


@functools.lru_cache(maxsize=64)
@on_real_tensors
def width(spec: Spec) -> int:
    """The number of features d that the extractor emits."""
    with torch.no_grad():
        return int(features(spec, _zero_weights(spec)["extractor"], torch.zeros(2, *spec.input)).shape[1])


def smallest(models: Mapping[str, Spec]) -> str:
    """The tier with the fewest parameters, the later name on a tie."""
    return max(models, key=lambda tier: (-parameters(models[tier]), tier))


def check(spec: Spec) -> None:
    """Build the model and run two rows of zeros through it; raise `InputError` that says where it does not fit.

    A model that others have trained is loaded: whether it has the layers that adapters are to go into is known then.
    """
    if found := _of_others(spec):
        found.base(spec)
        return
    skeletons, where = _skeletons(spec), f"model {spec.name}"
    with torch.no_grad():
        try:
            r = skeletons["extractor"](_zero_weights(spec)["extractor"], torch.zeros(2, *spec.input))
        except Exception as error:
            raise InputError(f"{where} cannot take an input of shape {spec.input}: {_line(error)}") from error
        if r.ndim != 2:
            raise InputError(f"{where}: its extractor must emit (batch, features), not {tuple(r.shape)}: flatten it")
        try:
            outputs = skeletons["header"](_zero_weights(spec)["header"], r)
        except Exception as error:
            emitted = f"its extractor emits {r.shape[1]} features, which its header cannot take"
            raise InputError(f"{where}: {emitted}: {_line(error)}") from error
    if not tree.flatten(_zero_weights(spec)["extractor"]):
        raise InputError(f"{where} is a single layer: methods need weights below its last linear layer to work on")
    if tuple(outputs.shape) != (2, spec.classes):
        found = tuple(outputs.shape)[1:]
        raise InputError(f"{where} has {found} outputs a sample; the data has {spec.classes} classes")


def require_equal_widths(method: str, tiers: Sequence[str], models: Mapping[str, Spec]) -> None:
    """Raise `InputError` unless the extractors of all `tiers` emit equally many features."""
    expected = width(models[tiers[0]])
    for tier in tiers[1:]:
        if (found := width(models[tier])) != expected:
            raise InputError(
                f"{method} needs one feature width, but model {tier} emits {found} and {tiers[0]} emits {expected}: "
                f"give models of equal feature width, or pool them with --feature-width {expected}"
            )


def require_equal_headers(method: str, tiers: Sequence[str], models: Mapping[str, Spec]) -> None:
    """Raise `InputError` unless the headers of all `tiers` have tensors of the same names and shapes."""
    require_equal_widths(method, tiers, models)
    expected = _header_shapes(models[tiers[0]])
    for tier in tiers[1:]:
        if (found := _header_shapes(models[tier])) != expected:
            raise InputError(
                f"{method} averages headers, but that of model {tier} has {found} and that of {tiers[0]} {expected}: "
                "give models whose headers are the same"
            )


def _header_shapes(spec: Spec) -> str:
    return ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in _zero_weights(spec)["header"].items())


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def constructor_of(name: str) -> Callable[..., nn.Module]:
    """What a model's name stands for, written without its options."""
    if name in MODELS:
        return MODELS[name]
    if ":" not in name:
        raise InputError(f"unknown model {name!r}: it is none of {', '.join(MODELS)}, nor package.module:function")
    found: Callable[..., nn.Module] = load_object(name)
    return found


def _build(spec: Spec) -> nn.Module:
    name, options = parse_call(spec.name)
    constructor = constructor_of(name)
    try:
        module = constructor(**_arguments(constructor, spec), **options)
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"model {spec.name} cannot be built for input {spec.input}: {_line(error)}") from error
    if not isinstance(module, nn.Module):
        raise InputError(f"model {spec.name} returned a {type(module).__name__}, not a torch.nn.Module")
    return _pool(_split(module, spec), spec)


def _arguments(constructor: Callable[..., nn.Module], spec: Spec) -> dict[str, Any]:
    """Input shape and class count under the names the constructor has for them."""
    accepted = inspect.signature(constructor).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    offered = {"input": spec.input, "input_shape": spec.input, "classes": spec.classes, "num_classes": spec.classes}
    given = {name: value for name, value in offered.items() if name in accepted}
    if open_ended and not given.keys() & {"classes", "num_classes"}:
        given["num_classes"] = spec.classes
    return given


def _split(module: nn.Module, spec: Spec) -> nn.Module:
    """The module in its two parts: its own ones, or cut before its last linear layer onto the classes."""
    whole = _outputs(module, spec)
    parts = [getattr(module, name, None) for name in ("extractor", "header")]
    if all(isinstance(part, nn.Module) for part in parts):
        cut = assemble(*parts)  # type: ignore[arg-type]
    else:
        cut = _cut_before_last_linear(module, spec)
    again = None if whole is None else _outputs(cut, spec)
    if whole is not None and (again is None or not torch.allclose(whole, again, rtol=1e-4, atol=1e-5)):
        raise InputError(
            f"model {spec.name} computes more than header(extractor(x)), a softmax after its last linear layer, say: "
            "return logits, or a module with .extractor and .header that is no more than the two"
        )
    return cut


def _cut_before_last_linear(module: nn.Module, spec: Spec) -> nn.Module:
    linear = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.Linear) and m.out_features == spec.classes]
    if not linear or not linear[-1][0]:
        raise InputError(
            f"model {spec.name} has no final torch.nn.Linear with {spec.classes} outputs to be the header: "
            "return a module with .extractor and .header"
        )
    name, header = linear[-1]
    owner, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(owner), leaf, nn.Identity())
    return assemble(module, header)


def _example(spec: Spec) -> Tensor:
    return torch.linspace(-1, 1, 2 * math.prod(spec.input)).reshape(2, *spec.input)


def _outputs(module: nn.Module, spec: Spec) -> Tensor | None:
    """Outputs for two rows, None where the module cannot take them: `check` says why."""
    try:
        with torch.no_grad():
            outputs = module.eval()(_example(spec))
    except Exception:
        return None
    return outputs if isinstance(outputs, Tensor) and outputs.shape == (2, spec.classes) else None


def _pool(module: nn.Module, spec: Spec) -> nn.Module:
    if spec.features is None:
        return module
    with torch.no_grad():
        found = int(module.eval().extractor(torch.zeros(2, *spec.input)).shape[1])  # type: ignore[operator]
    if found == spec.features:
        return module
    pooled = nn.Sequential(module.extractor, nn.AdaptiveAvgPool1d(spec.features))  # type: ignore[arg-type]
    return assemble(pooled, nn.Linear(spec.features, spec.classes))
