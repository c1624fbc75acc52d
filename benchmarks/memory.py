"""Peak training memory, predicted beside measured: the profiler's figure, and VmHWM in a fresh process (Linux).

    python benchmarks/memory.py [--out docs/benchmarks/memory] [--only WORD]

Adds lines to OUT.jsonl, one a piece of work, leaves out what it has already, and writes OUT.md from all of them. Works
are those of a client: `local.train`, two batches on one thread, SGD with momentum and weight decay, weights as they
arrived held beside the copies that train. ResNet-18 is measured in full, in the four steps of its paper's cuts and in
the steps of its partition by memory, with mapping and evaluation; beside it other models, and PyTorch's plain loop. A
second table predicts ProFL's largest need for four models and measures that step and the full model by the profiler.
About half an hour on one core.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unalike.local import SGD
from unalike.memory import stages
from unalike.memory.measure import load, measure, profiled
from unalike.memory.partition import Partition, best, costs, step_cost
from unalike.memory.predict import count, predict
from unalike.memory.work import Work, module_training, rows
from unalike.models import build, chain
from unalike.models.progressive import SubModel
from unalike.protocol import Batch, Spec
from unalike.rng import Key
from unalike.runs import commit, processor
from unalike.tasks import Classification

HERE = Path(__file__).resolve()
TASK, OPTIMISER = Classification(10), SGD(0.01, 0.9, 5e-4)
MOST = 6
"""Blocks of the partition by memory, at most."""
LSTM, NONE = "LSTM", {"counted": "-", "profiler": "-"}
FOUR = ("resnet18", "resnet34", "vgg11", "vgg16")


def spec(model: str) -> Spec:
    return Spec(model, (3, 32, 32), 10)


def whole(model: str = "resnet18", n: int = 64) -> Work:
    return stages.whole(spec(model), TASK, OPTIMISER, n)


def step(t: int, cuts: Sequence[int], model: str = "resnet18", n: int = 64) -> Work:
    return stages.step(SubModel(spec(model), tuple(cuts), t), TASK, OPTIMISER, n)


def mapping(t: int, cuts: Sequence[int], n: int = 64) -> Work:
    return stages.mapping(SubModel(spec("resnet18"), tuple(cuts), t), OPTIMISER, n)


def evaluated(cuts: Sequence[int], n: int = 64) -> Work:
    return stages.evaluated(SubModel(spec("resnet18"), tuple(cuts), len(cuts) - 1), n)


def plain(model: str = "resnet18", n: int = 64) -> Work:
    """PyTorch's own loop: parameters are there once, and `torch.optim.SGD` keeps no copy of gradients."""
    module = build(spec(model), Key.root(0)).train()
    optimiser = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=5e-4)
    return module_training(module, cross_entropy, optimiser, rows((3, 32, 32), n))


class Windows(nn.Module):
    """A two-layer LSTM over windows (B, 64, 64)."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent, self.header = nn.LSTM(64, 256, 2, batch_first=True), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.header(self.recurrent(x)[0][:, -1])
        return logits


def cross_entropy(outputs: Tensor, batch: Batch) -> Tensor:
    return F.cross_entropy(outputs, batch["y"])


def lstm(n: int = 64) -> Work:
    optimiser = functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9)
    return module_training(Windows(), cross_entropy, optimiser, rows((64, 64), n))


def works(paper: Sequence[int], ours: Sequence[int]) -> Iterator[tuple[str, str]]:
    """What is said of each piece of work, and its name for a fresh process."""
    yield "ResNet-18, full", "whole()"
    for t in range(1, len(paper)):
        yield f"ResNet-18, paper's step {t}", f"step(t={t}, cuts={tuple(paper)})"
    for t in range(2, len(paper)):
        yield f"ResNet-18, mapping of block {t}", f"mapping(t={t}, cuts={tuple(paper)})"
    yield "ResNet-18, evaluation, 64 rows", f"evaluated(cuts={tuple(paper)})"
    yield "ResNet-18, evaluation, 512 rows", f"evaluated(cuts={tuple(paper)}, n=512)"
    for t in range(1, len(ours)):
        yield f"ResNet-18, step {t} of {len(ours) - 1} by memory", f"step(t={t}, cuts={tuple(ours)})"
    yield "ResNet-18, full, plain PyTorch", "plain()"
    yield "ViT-tiny, full", 'whole(model="vit-tiny")'
    yield "CNN-1, full", 'whole(model="cnn-1")'
    yield "VGG-11, full", 'whole(model="vgg11")'


def measured(name: str) -> dict[str, Any]:
    found = measure(f"{HERE}:{name}")
    peak, resident = found.predicted, found.resident
    parts = {part: getattr(peak, part) for part in peak.__dataclass_fields__ if part not in ("bytes", "flops")}
    return {
        "name": name,
        "predicted": peak.bytes,
        "profiler": found.profiler,
        "resident": None if resident is None else resident.bytes,
        "errors": {kind: round(error, 4) for kind, error in found.errors().items()},
        "parts": parts,
        "flops": peak.flops,
        "seconds": None if resident is None else round(resident.seconds, 2),
    }


def reduction(model: str, n: int) -> dict[str, Any]:
    """ProFL's largest need with the paper's cuts, and with those by memory where units are few, against the full."""
    of = spec(model)
    line: dict[str, Any] = {"model": model, "batch": n}
    full = {"predicted": predict(whole(model, n)).bytes, "profiler": profiled(whole(model, n))}
    line |= {"full": full, "paper": largest(model, n, costs(of, chain.cuts(of), TASK, OPTIMISER, n))}
    if len(chain.units(of)) <= 9:
        line["by memory"] = largest(model, n, best_of(model, n))
    return line


@functools.cache
def best_of(model: str, n: int) -> Partition:
    """The partition of the least peak among those of 2 to `MOST` blocks, fewer blocks on a tie."""
    cost, units = step_cost(spec(model), TASK, OPTIMISER, n), len(chain.units(spec(model)))
    return min((best(units, cost, k) for k in range(2, MOST + 1)), key=lambda found: found.peak)


def largest(model: str, n: int, cuts: Partition) -> dict[str, Any]:
    t = cuts.costs.index(cuts.peak) + 1
    return {
        "cuts": cuts.cuts,
        "step": t,
        "predicted": cuts.peak,
        "profiler": profiled(step(t, cuts.cuts, model, n)),
    }


def table(lines: Sequence[dict[str, Any]]) -> list[str]:
    kinds = "weights, gradients, optimiser, activations, kernel"
    head = f"| work | predicted | profiler | error | VmHWM | error | GFLOPs a step | at the peak: {kinds} |"
    found = [head, "|---|---|---|---|---|---|---|---|"]
    return found + [_row(line) for line in lines]


def _row(line: dict[str, Any]) -> str:
    errors, parts = line["errors"], line["parts"]
    kinds = ("parameters", "gradients", "optimiser", "activations", "workspace")
    system = f"{mib(line['resident'])} | {errors['resident']:+.1%}" if line["resident"] else "- | -"
    profiler = f"{mib(line['profiler'])} | {errors['profiler']:+.1%}"
    split = ", ".join(mib(parts[kind]) for kind in kinds)
    return (
        f"| {line['work']} | {mib(line['predicted'])} | {profiler} | {system} | {line['flops'] / 1e9:.1f} | {split} |"
    )


def reductions_table(lines: Sequence[dict[str, Any]]) -> list[str]:
    found = [
        "| model | batch | full | cuts | largest step | predicted | measured | predicted saving | measured saving |"
    ]
    found.append("|---|---|---|---|---|---|---|---|---|")
    for line in lines:
        for kind in ("paper", "by memory"):
            if kind in line:
                found.append(_reduction_row(line, kind))
    return found


def _reduction_row(line: dict[str, Any], kind: str) -> str:
    full, cut = line["full"], line[kind]
    savings = " | ".join(f"{cut[how] / full[how] - 1:+.1%}" for how in ("predicted", "profiler"))
    return (
        f"| {line['model']} | {line['batch']} | {mib(full['profiler'])} | {kind}: {cut['cuts']} | {cut['step']} "
        f"| {mib(cut['predicted'])} | {mib(cut['profiler'])} | {savings} |"
    )


def mib(bytes: float) -> str:
    return f"{bytes / 2**20:.1f}"


PAGE = """# Training memory: predicted and measured

`python benchmarks/memory.py`, commit {commit}, torch {torch}, {processor}, one thread. Figures are MiB.
Batches of 64 rows of 3x32x32 unless said otherwise; SGD with momentum 0.9 and weight decay. Works are a client's: the
weights that arrived are held beside the copies that train, and the optimiser keeps a copy of the gradients beside
momentum. Errors are those of the prediction, as a share of what was measured.

Largest errors: {worst}.

{works}

VmHWM is the growth of the resident set in a fresh process beyond imports and held tensors, plus the latter; code that
oneDNN generates at first use, a few MiB, is in it and in no prediction.

An LSTM on a CPU is refused by `predict`: its kernel keeps a workspace that depends on oneDNN. Two layers of 256 on 64
windows of 64 x 64: tensors counted {counted}, profiler {profiler}.

## The largest need of a whole training

Over all training steps of ProFL, against training the full model; the full model and the largest step are measured by
the profiler. By memory: the cuts of least peak in at most {most} blocks, for chains of up to nine units.

{reductions}
"""


def page(lines: Sequence[dict[str, Any]]) -> str:
    single = [line for line in lines if "errors" in line]
    worst = {
        kind: max((abs(line["errors"][kind]), line["work"]) for line in single if kind in line["errors"])
        for kind in ("profiler", "resident")
    }
    said = "; ".join(f"{'VmHWM' if k == 'resident' else k} {e:.1%} ({w})" for k, (e, w) in worst.items())
    origin = {k: ", ".join(sorted({str(line[k]) for line in lines})) for k in ("torch", "processor", "commit")}
    lstm = next(({k: mib(line[k]) for k in ("counted", "profiler")} for line in lines if line["work"] == LSTM), NONE)
    tables = {"works": table(single), "reductions": reductions_table([line for line in lines if "full" in line])}
    return PAGE.format(worst=said, most=MOST, **{k: "\n".join(t) for k, t in tables.items()}, **lstm, **origin)


def jobs() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """All there is to measure, by its description."""
    for said, name in works(chain.cuts(spec("resnet18")), best_of("resnet18", 64).cuts):
        yield said, functools.partial(measured, name)
    yield LSTM, recurrent
    for model, n in itertools.product(FOUR, (64, 128)):
        yield f"{model}, {n} rows, largest need", functools.partial(reduction, model, n)


def recurrent() -> dict[str, Any]:
    work = load(f"{HERE}:lstm()")
    return {"counted": count(work).bytes, "profiler": profiled(work)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE.parents[1] / "docs/benchmarks/memory")
    parser.add_argument("--only", default="", help="measure only what has this word in its description")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = arguments.out.with_suffix(".jsonl")
    lines = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    known = {line["work"] for line in lines}
    origin = {"torch": torch.__version__, "processor": processor(), "commit": commit()}
    for said, measure_it in jobs():
        if arguments.only in said and said not in known:
            lines.append({"work": said, **measure_it(), **origin})
            print(json.dumps(lines[-1]), flush=True)
            with kept.open("a") as file:
                file.write(json.dumps(lines[-1]) + "\n")
    arguments.out.with_suffix(".md").write_text(page(lines))


if __name__ == "__main__":
    main()
