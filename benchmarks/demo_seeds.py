"""The demonstration over seeds, with pFedAFM's ablations, as a table.

    python benchmarks/demo_seeds.py LINES.jsonl --seeds 0,1,2 [--methods pfedafm,standalone,fedavg] [--page PAGE.md]

Each seed draws its own partition, models and batches. Every finished run is a line of LINES.jsonl and is not repeated;
`--page` writes all lines found as Markdown, one table for each list of seeds given with `--group NAME=0,1,2`.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import unalike
from unalike.demo import COMMON, METHODS
from unalike.runs import commit, processor
from unalike.summary import half_width

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, dict(own)) for name, own in METHODS.items()},
    "pfedafm, alpha fixed at its start": ("pfedafm", {**METHODS["pfedafm"], "mixing": "fixed"}),
    **{
        f"pfedafm, alpha fixed at {a}": ("pfedafm", {**METHODS["pfedafm"], "alpha0": a, "mixing": "fixed"})
        for a in (0.0, 0.5, 1.0)
    },
    "pfedafm, alpha starting at 1": ("pfedafm", {**METHODS["pfedafm"], "alpha0": 1.0}),
    "pfedafm, joint training": ("pfedafm", {**METHODS["pfedafm"], "training": "joint"}),
    "pfedafm, G alone predicts": ("pfedafm", {**METHODS["pfedafm"], "prediction": "shared"}),
    **{f"{name}, twice the epochs": (name, {**METHODS[name], "local_epochs": 2}) for name in ("standalone", "fedavg")},
    **{f"{name}, 40 rounds": (name, {**own, "rounds": 40}) for name, own in METHODS.items()},
}


def measure(variant: str, seed: int, engine: str) -> dict[str, Any]:
    """One run; test scores at the round best on validation."""
    method, own = VARIANTS[variant]
    with tempfile.TemporaryDirectory() as scratch:
        keys = {**COMMON, **own, "seed": seed, "engine": engine}
        result = unalike.run(method, out=Path(scratch) / "run", report=False, **keys)
        found = result.summary
        alphas = [
            u["alpha_mean"]
            for event in result.events()
            if event["event"] == "round" and event["round"] == found["selected_round"]
            for u in event["updates"].values()
            if "alpha_mean" in u
        ]
    return {
        "variant": variant,
        "seed": seed,
        **{k: found["accuracy"][k] for k in ("mean", "std", "worst", "worst_decile")},
        "validation": found["validation"]["accuracy"]["mean"],
        "selected_round": found["selected_round"],
        "alpha_mean": sum(alphas) / len(alphas) if alphas else None,
        "bytes_up": found["bytes"]["up"],
        "flops": found["flops"],
        "seconds": found["seconds"],
        "state_sha256": found["state_sha256"],
        "settings": {k: v for k, v in keys.items() if k not in ("seed", "engine")},
        "commit": commit(),
        "machine": f"{processor()}, {os.cpu_count()} cores, torch {unalike.tree.torch.__version__}",
    }


def table(lines: Sequence[dict[str, Any]], seeds: Sequence[int]) -> str:
    """Markdown: a row a variant, means over seeds, the worst client of each seed."""
    head = "| method | mean accuracy | worst client, mean | worst client by seed | mean alpha | sent up | TFLOP |"
    rows = [head, "|---|---|---|---|---|---|---|"]
    for variant in VARIANTS:
        found = {line["seed"]: line for line in lines if line["variant"] == variant and line["seed"] in seeds}
        if set(found) != set(seeds):
            continue
        ordered = [found[s] for s in seeds]
        means, worst = [line["mean"] for line in ordered], [line["worst"] for line in ordered]
        width = half_width(means)
        alphas = [line["alpha_mean"] for line in ordered if line["alpha_mean"] is not None]
        alpha = f"{sum(alphas) / len(alphas):.3f}" if alphas else ""
        sent = f"{sum(line['bytes_up'] for line in ordered) / len(ordered) / 2**20:.0f} MiB"
        flops = f"{sum(line['flops'] for line in ordered) / len(ordered) / 1e12:.2f}"
        mean = f"{sum(means) / len(means):.3f}" + (f" ± {width:.3f}" if width is not None else "")
        by_seed = ", ".join(f"{w:.3f}" for w in worst)
        rows.append(f"| {variant} | {mean} | {sum(worst) / len(worst):.3f} | {by_seed} | {alpha} | {sent} | {flops} |")
    return "\n".join(rows)


def page(lines: Sequence[dict[str, Any]], groups: dict[str, list[int]], intro: str) -> str:
    """All tables, with where they come from."""
    parts = [intro.rstrip()]
    parts += [
        f"## {name}: seeds {', '.join(map(str, seeds))}\n\n{table(lines, seeds)}" for name, seeds in groups.items()
    ]
    commits, machines = ({line[k] for line in lines} for k in ("commit", "machine"))
    parts.append(f"Commit {', '.join(map(str, sorted(commits)))}; {', '.join(sorted(machines))}.")
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lines", type=Path)
    parser.add_argument("--seeds", default="", help="comma-separated; none: only write the page")
    parser.add_argument("--methods", default=";".join(VARIANTS), help="variants, separated by semicolons")
    parser.add_argument("--engine", default="serial")
    parser.add_argument("--page", type=Path, help="Markdown file whose part from the first ## on is written anew")
    parser.add_argument("--group", action="append", default=[], help="NAME=0,1,2")
    arguments = parser.parse_args()
    known = [json.loads(line) for line in arguments.lines.read_text().splitlines()] if arguments.lines.exists() else []
    done = {(line["variant"], line["seed"]) for line in known}
    for seed in map(int, filter(None, arguments.seeds.split(","))):
        for variant in arguments.methods.split(";"):
            if (variant, seed) not in done:
                known.append(measure(variant, seed, arguments.engine))
                with arguments.lines.open("a") as file:
                    file.write(json.dumps(known[-1]) + "\n")
                print(variant, seed, {k: round(known[-1][k], 3) for k in ("mean", "worst", "validation")}, flush=True)
    groups = {n: [int(s) for s in v.split(",")] for n, _, v in (g.partition("=") for g in arguments.group)}
    for seeds in groups.values():
        print(table(known, seeds))
    if arguments.page:
        intro = arguments.page.read_text().partition("\n## ")[0] if arguments.page.exists() else "# The demonstration"
        arguments.page.write_text(page(known, groups, intro))


if __name__ == "__main__":
    main()
