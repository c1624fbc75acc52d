"""A client's complete personal model: taken out of a run, kept in one file, used on new data.

The file is safetensors: what the client keeps ("state/...") and what it was last sent ("down/..."), with everything
needed to rebuild the model as JSON in the header. Its methods and models are names; those that stand for code outside
of unalike are imported only when the caller says that the file is to be trusted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from . import config, runs, tasks, tree
from .algorithms import ALGORITHMS, build, find, parameters_of
from .data import text, vqa
from .data.federation import Federation
from .data.preprocess import Preprocess
from .data.resize import resized
from .engines.checkpoint import Checkpoints
from .engines.site import Setup, Site
from .errors import InputError
from .files import with_tuples, write_atomically
from .models import MODELS
from .multimodal import Foundation, reader
from .plugins import FOUNDATIONS, parse_call
from .protocol import Algorithm, ClientInfo, Ready, Spec
from .rng import Key

FORMAT = "unalike-personal-1"


@dataclass(frozen=True, eq=False)
class PersonalModel:
    """One client's model with its preprocessing: raw rows in, class probabilities out."""

    algorithm: Algorithm[Any, Any, Any]
    method: str
    info: ClientInfo
    preprocess: Preprocess
    down: Mapping[str, Any]
    state: Mapping[str, Any]
    round: int

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs."""
        return self.preprocess.classes

    def ready_on(self, device: str) -> Ready:
        """What the method's `predict` takes, with all tensors on `device`."""
        empty = {"x": torch.empty(0, *self.preprocess.shape), "y": torch.empty(0, dtype=torch.long)}
        down, state, data = (tree.to(part, torch.device(device)) for part in (self.down, self.state, empty))
        return self.algorithm.prepare(self.info, down, state, data, Key.root(0))

    @torch.no_grad()
    def logits(self, x: np.ndarray, device: str = "cpu", size: int = 512) -> Tensor:
        """Outputs (n, classes) for raw rows `x` (n, *shape), scaled as in training; computed on `device`."""
        if self.preprocess.kind == "text":
            raise InputError("the model answers instructions: it has `answers`, and neither classes nor logits")
        if self.preprocess.kind == "vqa":
            raise InputError("the model answers questions about images: `ask` it, it takes no rows of numbers")
        x = np.asarray(x)
        if x.shape[1:] != tuple(self.preprocess.shape):
            raise InputError(f"the model takes rows of shape {self.preprocess.shape}; these have {x.shape[1:]}")
        if not len(x):
            raise InputError("there is no row to predict")
        rows, ready = torch.from_numpy(self.preprocess(x)).to(device), self.ready_on(device)
        parts = [self.algorithm.predict(ready, {"x": rows[i : i + size]}) for i in range(0, len(rows), size)]
        return torch.cat(parts).cpu()

    def predict(self, x: np.ndarray, device: str = "cpu") -> np.ndarray:
        """Class probabilities (n, classes) for raw rows `x` (n, *shape)."""
        found: np.ndarray = self.logits(x, device).softmax(1).numpy()
        return found

    @torch.no_grad()
    def answers(self, instructions: Sequence[str], device: str = "cpu") -> list[str]:
        """What a language model answers to each of some instructions."""
        if not isinstance(self.algorithm.task, tasks.Instruction):
            raise InputError(f"the model takes rows of kind {self.preprocess.kind}, no instructions")
        if not instructions:
            raise InputError("there is no instruction to answer")
        x = torch.from_numpy(self.preprocess(text.packed(instructions))).to(device)
        return self.algorithm.task.tokens.texts(self.algorithm.predict(self.ready_on(device), {"x": x}).cpu())

    @torch.no_grad()
    def ask(
        self,
        questions: Sequence[str],
        images: np.ndarray | None = None,
        pictured: np.ndarray | None = None,
        device: str = "cpu",
        size: int = 512,
    ) -> np.ndarray:
        """Probabilities (n, answers) of what the client can answer, in the order of `classes`.

        Args:
            questions: n of them, an empty one for a row that has none.
            images: uint8 (n, 3, height, width) of any size; None where no row has one.
            pictured: (n,) which rows have their image; None: all, where there are images.
        """
        if self.preprocess.kind != "vqa":
            raise InputError(f"the model takes rows of kind {self.preprocess.kind}, no questions about images")
        read_by = reader(Foundation.read(self.preprocess.model).model)
        for i, question in enumerate(questions):
            if len(read_by.ids(question)) > read_by.longest:
                raise InputError(f"question {i + 1} is longer than the {read_by.longest} tokens that the model takes")
        n, side, ready = len(questions), read_by.side, self.ready_on(device)
        asked = {"x": read_by.questions(questions)}
        if side:
            shown = np.full(n, images is not None) if pictured is None else pictured
            blank = np.zeros((n, 3, side, side), np.uint8)
            pixels = blank if images is None else np.rint(resized(images, side, side)).astype(np.uint8)
            asked |= {"image": torch.from_numpy(pixels), "pictured": torch.from_numpy(shown.astype(bool))}
        rows = {name: column.to(device) for name, column in asked.items()}
        parts = ({name: column[i : i + size] for name, column in rows.items()} for i in range(0, n, size))
        found: np.ndarray = torch.cat([self.algorithm.predict(ready, part) for part in parts]).softmax(1).cpu().numpy()
        return found

    def answered(self, file: Path, device: str = "cpu") -> list[dict[str, Any]]:
        """Instructions of a file, or questions about images, each with what the model answers, as JSON values."""
        if self.preprocess.kind == "text":
            asked = text.read_instructions(file)
            return [{"instruction": a, "answer": b} for a, b in zip(asked, self.answers(asked, device), strict=True)]
        sees = reader(Foundation.read(self.preprocess.model).model).side > 0
        questions, images, shown = vqa.unanswered(file, sees)
        found = self.ask(questions, images, shown, device)
        return [
            {"question": question, "answer": self.classes[p.argmax()], "probability": round(float(p.max()), 4)}
            for question, p in zip(questions, found, strict=True)
        ]

    def save(self, path: Path) -> Path:
        """Write the model as one safetensors file."""
        about = {
            "format": FORMAT,
            "method": self.method,
            "parameters": parameters_of(self.algorithm, config.parameters_of(find(self.method))),
            "info": asdict(self.info),
            "models": {tier: asdict(self.algorithm.models[tier]) for tier in self._tiers()},
            "task": tasks.describe(self.algorithm.task),
            "preprocess": self.preprocess.describe(),
            "round": self.round,
        }
        tensors = tree.flatten({"down": self.down, "state": self.state})
        content = save({n: t.clone() for n, t in tensors.items()}, metadata={"unalike": json.dumps(about)})
        write_atomically(path, content)
        return path

    def save_onnx(self, path: Path) -> Path:
        """Write the model with its scaling as ONNX (extra `onnx`): "x" raw float32 in, "logits" out, any batch size."""
        if self.preprocess.kind == "text":
            raise InputError("a language model is no part of this file, which holds adapters: ONNX has no place for it")
        if self.preprocess.kind == "vqa":
            raise InputError(
                "the frozen model is no part of this file, which holds what is tuned: ONNX has no place for it"
            )
        try:
            import onnx  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError:
            raise InputError("ONNX export needs the extra `onnx`: pip install 'unalike[onnx]'") from None
        import logging
        import warnings

        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        example = torch.zeros(2, *self.preprocess.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                _Raw(self),
                (example,),
                input_names=["x"],
                output_names=["logits"],
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
                dynamo=True,
                verbose=False,
            )
        assert program is not None
        write_atomically(path, program.model_proto.SerializeToString())
        return path

    def _tiers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys((self.info.tier, self.algorithm.shared_model)))


class _Raw(nn.Module):
    """A personal model as a module of raw rows, for export."""

    def __init__(self, model: PersonalModel) -> None:
        super().__init__()
        self.model, self.ready = model, model.ready_on("cpu")
        scale = model.preprocess
        tail = (1,) * (len(scale.shape) - 1) if scale.kind != "image" else ()
        for name in ("mean", "std", "fill"):
            values = torch.tensor(getattr(scale, name), dtype=torch.float32).reshape(-1, *tail)
            self.register_buffer(name, values)

    def forward(self, x: Tensor) -> Tensor:
        mean, std, fill = (self.get_buffer(name) for name in ("mean", "std", "fill"))
        if fill.numel():
            x = torch.where(torch.isnan(x), fill, x)
        return self.model.algorithm.predict(self.ready, {"x": (x - mean) / std})


def extract(folder: Path, client: int, last: bool = False, given: Federation | None = None) -> PersonalModel:
    """Client `client` of a run: of the round that was best on validation, or of the last one."""
    prepared = runs.reopen(folder, given)
    found, e = prepared.federation, prepared.experiment
    if not 0 <= client < len(found.clients):
        raise InputError(f"{folder} has no client {client}: its clients are 0 to {len(found.clients) - 1}")
    checkpoints = Checkpoints(folder / "checkpoint")
    index = checkpoints.read()
    if not last and index.best_round:
        index = checkpoints.read(index.best_round)
    info = found.clients[client]
    site = Site(
        Setup(e.method, prepared.parameters, "", str(checkpoints.clients), (Key.root(e.seed) / "init").digest.hex()),
        found,
    )
    state = site.state(client, *index.state(client))
    down = prepared.algorithm.broadcast(checkpoints.server(index), info, index.round)
    key = Key.root(e.seed) / "round" / index.round / "evaluate" / client
    ready = prepared.algorithm.prepare(info, down, state, found.data(client, "train"), key)
    return PersonalModel(
        algorithm=prepared.algorithm,
        method=e.method,
        info=info,
        preprocess=found.preprocess(client),
        down=ready["down"] if isinstance(ready, Mapping) and "down" in ready else down,
        state=state,
        round=index.round,
    )


def load(
    path: str | Path,
    client: int | None = None,
    *,
    federation: Federation | None = None,
    trust_code: bool = False,
) -> PersonalModel:
    """A personal model from its file, or straight out of a run folder (then `client` tells whose).

    Args:
        path: a file written by `save` or `unalike export`, or a run folder.
        client: whose model, for a run folder.
        federation: what the run was given, where its data were arrays in memory.
        trust_code: import methods and models that are no part of unalike, as the file names them. Importing runs them.

    Raises:
        InputError: the path is neither, the file is no personal model of ours, or it names code that is not trusted.
    """
    path = Path(path)
    if path.is_dir():
        if client is None:
            raise InputError(f"{path} is a run folder: say whose model with --client, or client= in Python")
        return extract(path, client, given=federation)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["unalike"])
            tensors = tree.unflatten({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        if about["format"] != FORMAT:
            raise KeyError
    except Exception as error:
        raise InputError(f"{path} is no personal model written by `unalike export`") from error
    _require_known([about["method"], *(spec["name"] for spec in about["models"].values())], path, trust_code)
    specs = {tier: Spec(**with_tuples(spec)) for tier, spec in about["models"].items()}
    return PersonalModel(
        algorithm=build(about["method"], about["parameters"], models=specs, task=tasks.restore(about["task"])),
        method=about["method"],
        info=ClientInfo(**with_tuples(about["info"])),
        preprocess=Preprocess.restore(about["preprocess"]),
        down=tensors.get("down", {}),
        state=tensors.get("state", {}),
        round=about["round"],
    )


def _require_known(names: Sequence[str], path: Path, trusted: bool) -> None:
    known = {*ALGORITHMS, *MODELS}
    foreign = [name for name in names if parse_call(name)[0] not in known and not name.startswith(FOUNDATIONS)]
    if foreign and not trusted:
        raise InputError(
            f"{path} names code of its own, {foreign[0]}: if you trust it, add --trust-code (trust_code=True)"
        )
