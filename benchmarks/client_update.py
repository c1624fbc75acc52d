"""What the contract costs: one client's `client_update` against a bare PyTorch loop that takes the same steps.

    python benchmarks/client_update.py [--repeats 5] [--out FILE.jsonl]

Both run in one process on one thread, interleaved, after a warm-up; the figure is the ratio of the pair. Workloads:

    W1       the classic CNN (582k parameters) at 1x28x28, 600 rows, SGD .05, batch 32, one epoch: FedAvg
    W2       an MLP 784-32-10, the same: FedAvg; dispatch-bound, so every Python call counts
    pfedafm  CNN-1 beside the extractor of CNN-5 at 1x28x28, 256 rows, both steps, momentum, decay and clipping

The bare loop of W1 and W2 is the leanest one: `autograd.grad` and one `_foreach_add_`, no optimiser object. That of
pfedafm is written with modules and `torch.optim.SGD`, as one would by hand.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from unalike import models
from unalike.algorithms.fedavg import FedAvg
from unalike.algorithms.pfedafm import PFedAFM
from unalike.local import batches
from unalike.models.cnn import assemble
from unalike.protocol import ClientInfo, Job, Spec
from unalike.rng import Key
from unalike.runs import commit, processor
from unalike.tasks import Classification

HERE = Path(__file__).resolve()
KEY = Key.root(0)
Run = Callable[[], object]


def w1(input: tuple[int, ...], classes: int) -> nn.Module:
    body = [nn.Conv2d(1, 32, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 5), nn.ReLU(), nn.MaxPool2d(2)]
    return assemble(nn.Sequential(*body, nn.Flatten(), nn.Linear(1024, 512), nn.ReLU()), nn.Linear(512, classes))


def w2(input: tuple[int, ...], classes: int) -> nn.Module:
    return assemble(nn.Sequential(nn.Flatten(), nn.Linear(784, 32), nn.ReLU()), nn.Linear(32, classes))


def rows(n: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, 28, 28, generator=generator)
    return {"x": x, "y": torch.randint(0, 10, (n,), generator=generator)}


def fedavg_pair(net: str) -> tuple[Run, Run]:
    spec = Spec(f"{HERE}:{net}", (1, 28, 28), 10)
    method = FedAvg(
        local_epochs=1,
        lr=0.05,
        momentum=0.0,
        weight_decay=0.0,
        clip=math.inf,
        shared_model="net",
        models={"net": spec},
        task=Classification(10),
    )
    data, server = rows(600), method.init_server(KEY)
    job: Job[Any, Any] = Job(ClientInfo(0, "net", 600), 1, server, {}, data, KEY)
    module = globals()[net]((1, 28, 28), 10)
    parameters, start = list(module.parameters()), [p.detach().clone() for p in module.parameters()]

    def bare() -> None:
        for p, s in zip(parameters, start, strict=True):
            p.data.copy_(s)
        order = torch.randperm(600)
        x, y = data["x"][order], data["y"][order]
        for i in range(0, 600, 32):
            g = torch.autograd.grad(F.cross_entropy(module(x[i : i + 32]), y[i : i + 32]), parameters)
            torch._foreach_add_([p.data for p in parameters], g, alpha=-0.05)

    return lambda: method.client_update(job), bare


def pfedafm_pair() -> tuple[Run, Run]:
    shape, data = (1, 28, 28), rows(256)
    method = PFedAFM(
        local_epochs=1,
        shared_model="cnn-5",
        models={name: Spec(name, shape, 10) for name in ("cnn-1", "cnn-5")},
        task=Classification(10),
    )
    info = ClientInfo(0, "cnn-1", 256)
    job: Job[Any, Any] = Job(info, 1, method.init_server(KEY), method.init_client(info, KEY), data, KEY)
    own, shared = models.cnn(1, shape, 10), models.cnn(5, shape, 10).extractor
    start = [p.detach().clone() for net in (own, shared) for p in net.parameters()]

    def bare() -> None:
        everything = [p for net in (own, shared) for p in net.parameters()]
        for p, s in zip(everything, start, strict=True):
            p.data.copy_(s)
        alpha = torch.full((500,), 0.5, requires_grad=True)
        optimiser = torch.optim.SGD(own.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-3)
        gate = torch.optim.SGD([alpha], lr=0.1, momentum=0.9, weight_decay=1e-3)
        for batch in batches(data, 32, 1, KEY):
            with torch.no_grad():
                g = shared(batch["x"])
            mixed = alpha * own.extractor(batch["x"]) + (1 - alpha) * g
            optimiser.zero_grad(), gate.zero_grad()
            F.cross_entropy(own.header(mixed), batch["y"]).backward()
            nn.utils.clip_grad_norm_(own.parameters(), 50.0)
            optimiser.step(), gate.step()
            with torch.no_grad():
                alpha.clamp_(0, 1)
        own.requires_grad_(False)
        optimiser = torch.optim.SGD(shared.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-3)
        for batch in batches(data, 32, 1, KEY):
            optimiser.zero_grad()
            F.cross_entropy(own.header(shared(batch["x"])), batch["y"]).backward()
            nn.utils.clip_grad_norm_(shared.parameters(), 50.0)
            optimiser.step()
        own.requires_grad_(True)

    return lambda: method.client_update(job), bare


def measure(ours: Run, bare: Run, repeats: int, times: int) -> list[float]:
    """Ratios ours / bare of `repeats` interleaved pairs, each the sum of `times` alternations."""
    ratios = []
    for repeat in range(repeats + 1):
        spent = [0.0, 0.0]
        for _ in range(times):
            for which, run in enumerate((ours, bare)):
                started = time.perf_counter()
                run()
                spent[which] += time.perf_counter() - started
        if repeat:
            ratios.append(spent[0] / spent[1])
    return ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pairs = {"W1": (fedavg_pair("w1"), 5), "W2": (fedavg_pair("w2"), 40), "pfedafm": (pfedafm_pair(), 4)}
    for name, (pair, times) in pairs.items():
        found = measure(*pair, arguments.repeats, times)
        line = {
            "workload": name,
            "ratio_median": round(statistics.median(found), 3),
            "ratios": [round(r, 3) for r in found],
            "torch": torch.__version__,
            "processor": processor(),
            "commit": commit(),
        }
        print(json.dumps(line))
        if arguments.out:
            with arguments.out.open("a") as file:
                file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
