"""Ablation of gorp's strict mode: change one option at a time, and score on development rows.

    python benchmarks/ablation.py run   --data CL15 --out DIR [--rate 3e-3]
    python benchmarks/ablation.py table --out DIR

It uses the encoder of `encoder.py` and the task order on which learning rates are tuned, so that the reported order is
not used for choices. The defaults of `GorpConfig` were set from these results.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from encoder import TARGETS, run_encoder_cell
from quality import TUNED_ON, Comparison, say

from gorp.benchmark import Cell, collect, run_grid


EVERY = ("query", "key", "value", "dense")
ON_TARGETS: dict[str, Any] = {"full_modules": TARGETS}
MOMENT: dict[str, Any] = {**ON_TARGETS, "memory_source": "moment", "energy": 0.97, "budget": 0.5}
SKETCH: dict[str, Any] = {**ON_TARGETS, "memory_source": "sketch", "energy": 0.995, "budget": 0.95, "sketch_size": 128}

CHANGES: dict[str, dict[str, Any]] = {
    "S from the first moment, energy 0.97": MOMENT,
    "energy 0.80": {**MOMENT, "energy": 0.80},
    "energy 0.90": {**MOMENT, "energy": 0.90},
    "energy 0.99": {**MOMENT, "energy": 0.99},
    "no core": {**MOMENT, "full_modules": "none"},
    "core on every linear layer": {**MOMENT, "full_modules": EVERY},
    "core learning rate x 0.3": {**MOMENT, "core_learning_rate": 0.3},
    "core learning rate x 3": {**MOMENT, "core_learning_rate": 3.0},
    "core 16 x 16": {**MOMENT, "rank": 16},
    "moments kept": {**MOMENT, "moments": "keep"},
    "frames every 5 steps": {**MOMENT, "refresh_every": 5},
    "frames every 40 steps": {**MOMENT, "refresh_every": 40},
    "S from a sketch of 128 rows, energy 0.995": SKETCH,
    "sketch of 64 rows, energy 0.90": {**SKETCH, "sketch_size": 64, "energy": 0.90, "budget": 0.5},
    "sketch of 64 rows, energy 0.97": {**SKETCH, "sketch_size": 64, "energy": 0.97, "budget": 0.5},
    "sketch of 128 rows, core on every linear layer": {**SKETCH, "full_modules": EVERY},
    "sketch of 128 rows, core on every linear layer, no adapter": {**SKETCH, "full_modules": EVERY, "lora": "none"},
    "the same, core learning rate x 3": {
        **SKETCH,
        "full_modules": EVERY,
        "lora": "none",
        "core_learning_rate": 3.0,
    },
    "sketch of 128 rows, core on every linear layer, adapter's learning rate x 0.3": {
        **SKETCH,
        "full_modules": EVERY,
        "core_learning_rate": 1.0,
        "learning_rate": 0.3,
    },
    "sketch of 128 rows, core and adapter on every linear layer": {**SKETCH, "full_modules": EVERY, "lora": EVERY},
    "sketch of 128 rows, adapter on every linear layer, no core": {**SKETCH, "full_modules": "none", "lora": EVERY},
}
"""Name -> options. Both learning rates are factors of `--rate` here; `lora` names the layers with adapters."""


def cells(rate: float, seeds: tuple[int, ...]) -> dict[str, list[Cell]]:
    """Return the cells of each change."""
    fields: dict[str, Any] = {"order": TUNED_ON, "split": "dev", "cells": "ends", "train_rows": 300, "dev_rows": 150}
    runs = {}
    for name, change in CHANGES.items():
        options = dict(change)
        lora = {"target_modules": options.pop("lora", TARGETS)}
        comparison = Comparison("minilm", training={"bf16": True}, lora=lora, full=None, tokens=64)
        if "core_learning_rate" in options:
            options["core_learning_rate"] = round(options["core_learning_rate"] * rate, 8)
        adapter_rate = round(options.pop("learning_rate", 1.0) * rate, 8)
        runs[name] = [comparison.cell("gorp", options, adapter_rate, seed=seed, **fields) for seed in seeds]
    return runs


def main() -> None:
    """Parse the arguments and run the stage."""
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
