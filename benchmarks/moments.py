"""Compare the rules for a core's moments at a refresh, on tasks of 300 steps and development rows.

    python benchmarks/moments.py run   --data CL15 --out DIR
    python benchmarks/moments.py table --out DIR

It uses the encoder of `encoder.py` and the first two tasks of the order on which learning rates are tuned, with one row
per step. `rotate, no fill` is only the first term of v in `gorp.core.moments`; it is not an option of gorp and is
implemented here.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from encoder import TARGETS, run_encoder_cell
from quality import TUNED_ON, Comparison, say

import gorp.layers.full_rank
from gorp.benchmark import Cell, collect, run_grid


RULES = ("rotate, no fill", "rotate", "keep", "reset")
BRANCHES: dict[str, tuple[Any, Any]] = {
    "core on query and value, no adapter": ("none", TARGETS),
    "adapter and core on query and value": (TARGETS, TARGETS),
}
"""What is trained -> targets of LoRA, targets of the cores."""
RATES = (1e-3,)


def cells(branches: str, rate: float, rule: str, seeds: tuple[int, ...]) -> list[Cell]:
    """Return the cells of one row of the table."""
    lora, full = BRANCHES[branches]
    comparison = Comparison("minilm", training={}, lora={"target_modules": lora}, full=full, tokens=32)
    comparison.training["per_device_train_batch_size"] = 1
    fields: dict[str, Any] = {"order": TUNED_ON[:2], "split": "dev", "cells": "ends"}
    options = {"moments": rule.partition(",")[0]}
    return [comparison.cell("gorp", options, rate, seed=seed, train_rows=300, dev_rows=150, **fields) for seed in seeds]


def folder(out: Path, rule: str) -> Path:
    """Return the folder of a rule's results; `rotate, no fill` is not in the cell's options, so it has its own."""
    return out / ("no-fill" if "," in rule else "trials")


@contextmanager
def ruled(rule: str) -> Iterator[None]:
    """For `rotate, no fill`, rotate the moments without the term for directions outside the old frame."""
    own = gorp.layers.full_rank.rotate_moments

    def without_fill(states: Sequence[dict[str, Any]], kept: Any, old: Any, new: Any) -> None:
        lefts, rights = new.left.mT @ old.left, old.right.mT @ new.right
        for state, left, right in zip(states, lefts, rights, strict=True):
            for key, turn in (("exp_avg", lambda x: x), ("exp_avg_sq", torch.square)):
                if key in state:
                    state[key].copy_(turn(left) @ state[key] @ turn(right))

    gorp.layers.full_rank.rotate_moments = without_fill if "," in rule else own
    try:
        yield
    finally:
        gorp.layers.full_rank.rotate_moments = own


def main() -> None:
    """Parse the arguments and run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["run", "table"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--rates", type=float, nargs="*", default=list(RATES))
    parser.add_argument("--branches", nargs="*", default=list(BRANCHES))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.stage == "run":
        for seed in args.seeds:
            for branches in args.branches:
                for rate in args.rates:
                    for rule in RULES:
                        with ruled(rule):
                            run_grid(
                                cells(branches, rate, rule, (seed,)),
                                folder(args.out, rule),
                                args.data,
                                report=say,
                                run=run_encoder_cell,
                            )
        return
    for branches in args.branches:
        print(f"\n{branches}\n\n| learning rate | moments | AP | BWT | LA | seeds |\n|---|---|---|---|---|---|")
        for rate in args.rates:
            for rule in RULES:
                results = collect(cells(branches, rate, rule, tuple(args.seeds)), folder(args.out, rule))
                if results:
                    ap, bwt, la = (sum(r[key] for r in results) / len(results) for key in ("ap", "bwt", "la"))
                    print(f"| {rate:g} | {rule} | {ap:.1f} | {bwt:+.1f} | {la:.1f} | {len(results)} |")


if __name__ == "__main__":
    main()
