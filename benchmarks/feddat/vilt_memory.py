"""One client update of FedDAT with ViLT at its full size: how long it takes, and how much memory beside the prediction.

    python benchmarks/feddat/vilt_memory.py [--rows 8] [--batch 4] [--answers 100] [--folder FOLDER]

The model is a ViltModel as transformers configures it (12 layers of 768, images of 384 x 384), with random weights:
what it answers does not matter here. It is written into FOLDER, or into one that is removed in the end. The whole
update, `FedDAT.client_update` from what was sent and kept to what is sent and kept, is predicted on fake tensors, then
seen by the allocator (torch's profiler), and run in a fresh process whose largest resident set the system tells.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

from unalike.algorithms import build
from unalike.memory import foundation
from unalike.memory.measure import measure
from unalike.memory.predict import predict
from unalike.memory.work import Mark, Work, shapes_of
from unalike.models import multimodal
from unalike.protocol import ClientInfo, Job, Spec
from unalike.rng import Key
from unalike.tasks import Answering
from unalike.telemetry.progress import human_bytes

HERE, KEY = Path(__file__).resolve(), Key.root(0)
TOKENS = 20
"""Of a question."""


def write_model(folder: Path) -> None:
    """ViLT as it is configured by default, and a tokeniser that knows its special words only."""
    with KEY.scope():
        transformers.ViltModel(transformers.ViltConfig()).save_pretrained(folder)
    special = {name: i for i, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]"))}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(special, unk_token="[UNK]"))
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **named).save_pretrained(folder)


def parts(folder: str, rows: int, batch: int, answers: int) -> tuple[Any, ClientInfo, dict[str, Any]]:
    """The method, a client, and the shapes of what it is sent, keeps and has as rows."""
    spec = Spec(f"vl:{folder}", (3, 384, 384), answers)
    parameters = {"batch_size": batch, "shared_model": "vilt"}
    method = build("feddat", parameters, models={"vilt": spec}, task=Answering())
    info = ClientInfo(0, "vilt", rows)
    sent = method.broadcast(method.init_server(KEY), info, 1)
    held = {"down": shapes_of(sent), "state": shapes_of(method.init_client(info, KEY))}
    return method, info, held | {"batch": foundation.rows(spec, rows, TOKENS)}


def update(folder: str, rows: int = 8, batch: int = 4, answers: int = 100) -> Work:
    """`FedDAT.client_update` of a client's first round."""
    method, info, held = parts(folder, rows, batch, answers)

    def run(held: Mapping[str, Any], mark: Mark) -> object:
        return method.client_update(Job(info, 1, held["down"], held["state"], held["batch"], KEY))

    return foundation.around(method.shared, Work(held, run))


def visit(folder: str, rows: int = 8, batch: int = 4, answers: int = 100) -> Work:
    """The training in it, whose tensors say what they are for."""
    method, info, held = parts(folder, batch, batch, answers)
    sent, state = held["down"]["adapter"], held["state"]
    params = {"shared": sent, "local": state["adapter"], "head": state["head"]}
    return foundation.training(method.shared, method.steps(info, 1.0), params, {"copy": sent}, held["batch"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="keep the model here, or take the one that is here")
    for name, default in (("rows", 8), ("batch", 4), ("answers", 100)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="vilt-") as scratch:
        folder = (asked.folder or Path(scratch)).resolve()
        if not (folder / "config.json").is_file():
            write_model(folder)
        how = {"folder": str(folder), "rows": asked.rows, "batch": asked.batch, "answers": asked.answers}
        found = measure(f"{HERE}:update({', '.join(f'{name}={value!r}' for name, value in how.items())})")
        by_role = predict(visit(**how))
        spec = Spec(f"vl:{folder}", (3, 384, 384), asked.answers)
        adapter, base = multimodal.parameters(spec), multimodal.base(spec)
    frozen = sum(leaf.numel() for leaf in base.model.parameters())
    print(f"ViLT of {frozen:,} weights, an adapter of {adapter:,}; {asked.rows} rows in batches of {asked.batch}")
    print(f"predicted          {human_bytes(found.predicted.bytes):>10}")
    rows = {"seen by allocator": found.profiler}
    if found.resident:
        rows["resident set"] = found.resident.bytes
        print(f"seconds            {found.resident.seconds:>10.1f}")
    for name, bytes in rows.items():
        print(f"{name:<18} {human_bytes(bytes):>10}   predicted / measured {found.predicted.bytes / bytes:.3f}")
    told = {n: getattr(by_role, n) for n in ("parameters", "buffers", "gradients", "optimiser", "activations")}
    print("of a batch:        " + ", ".join(f"{name} {human_bytes(value)}" for name, value in told.items()))


if __name__ == "__main__":
    main()
