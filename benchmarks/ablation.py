"""What each choice inside gorp's strict mode is worth: one option changed at a time, on development rows.

    python benchmarks/ablation.py run   --data CL15 --out DIR [--rate 3e-3]
    python benchmarks/ablation.py table --out DIR

On the encoder of `encoder.py`, in the order that learning rates are tuned on, so that the reported order stays unseen.
The defaults of `GorpConfig` were set from this.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from encoder import TARGETS, run_encoder_cell
from quality import TUNED_ON, Comparison, say

from gorp.benchmark import Cell, collect, run_grid


CHANGES: dict[str, dict[str, Any]] = {
    "defaults": {},
    "energy 0.80": {"energy": 0.80},
    "energy 0.90": {"energy": 0.90},
    "energy 0.99": {"energy": 0.99},
    "sketch, energy 0.90": {"memory_source": "sketch", "energy": 0.90},
    "sketch, energy 0.97": {"memory_source": "sketch", "energy": 0.97},
    "sketch of 128 rows, energy 0.995, budget 0.95": {
        "memory_source": "sketch",
        "sketch_size": 128,
        "energy": 0.995,
        "budget": 0.95,
    },
    "no core": {"full_modules": "none"},
    "core on every linear layer": {"full_modules": ("query", "key", "value", "dense")},
    "core learning rate x 0.3": {"core_learning_rate": 0.3},
    "core learning rate x 3": {"core_learning_rate": 3.0},
    "core 16 x 16": {"rank": 16},
    "moments kept": {"moments": "keep"},
    "frames every 5 steps": {"refresh_every": 5},
    "frames every 40 steps": {"refresh_every": 40},
}
"""Name -> options; `core_learning_rate` here is a factor of the learning rate."""


def cells(rate: float, seeds: tuple[int, ...]) -> dict[str, list[Cell]]:
    """The runs of each change."""
    comparison = Comparison(
        "minilm", training={"bf16": True}, lora={"target_modules": TARGETS}, full=TARGETS, tokens=64
    )
    fields: dict[str, Any] = {"order": TUNED_ON, "split": "dev", "cells": "ends", "train_rows": 300, "dev_rows": 150}
    runs = {}
    for name, change in CHANGES.items():
        options = dict(change)
        if "core_learning_rate" in options:
            options["core_learning_rate"] = round(options["core_learning_rate"] * rate, 8)
        runs[name] = [comparison.cell("gorp", options, rate, seed=seed, **fields) for seed in seeds]
    return runs


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    runs = cells(args.rate, tuple(args.seeds))
    if args.stage == "run":
        by_seed = [run[i] for i in range(len(args.seeds)) for run in runs.values()]
        run_grid(by_seed, args.out / "trials", args.data, report=say, run=run_encoder_cell)
        return
    print("| change | AP | BWT | LA | capacity, mean | seeds |\n|---|---|---|---|---|---|")
    for name, run in runs.items():
        results = collect(run, args.out / "trials")
        if results:
            ap, bwt, la = (sum(r[key] for r in results) / len(results) for key in ("ap", "bwt", "la"))
            capacity = sum(r["facts"]["capacity_mean"] for r in results) / len(results)
            print(f"| {name} | {ap:.1f} | {bwt:+.1f} | {la:.1f} | {100 * capacity:.0f} % | {len(results)} |")


if __name__ == "__main__":
    main()
