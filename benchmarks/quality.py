"""Compare the methods on a real sequence of tasks: tune on development rows, report on test rows.

    python benchmarks/quality.py tune  --model MODEL --data CL15 --out DIR      trials, scored on development rows
    python benchmarks/quality.py final --model MODEL --data CL15 --out DIR      best trial of each method, 3 seeds
    python benchmarks/quality.py table --model MODEL --out DIR                  Markdown, from the existing results

Run the first two in as many processes as there are cores; the processes share the work. Trials use another order of the
same tasks than the reported one, and one seed. Every method gets the same learning rates; a method with a `strength`
gets additional trials over its values.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from gorp.benchmark import Cell, best_trial, collect, run_cell, run_grid
from gorp.evaluation import AccuracyMatrix
from gorp.methods import METHODS
from gorp.report import comparison_markdown


REPORTED = ("dbpedia", "yelp", "agnews", "QQP", "amazon", "SST-2")
TUNED_ON = ("SST-2", "agnews", "amazon", "dbpedia", "QQP", "yelp")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FULL_RATES = (1e-5, 3e-5, 1e-4, 3e-4)
SEEDS = (0, 1, 2)
BATCH = {"per_device_train_batch_size": 16}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential_full": ("sequential_full", {}),
    "sequential_lora": ("sequential_lora", {}),
    "incremental_lora": ("incremental_lora", {}),
    "ewc": ("ewc", {}),
    "olora": ("olora", {}),
    "gorp": ("gorp", {}),
    "gorp_moment": ("gorp", {"memory_source": "moment", "energy": 0.97}),
    "gorp_paper": ("gorp", {"mode": "paper"}),
    "multi_task": ("multi_task", {}),
}
"""Name in the table -> method and options."""


STRENGTHS: dict[str, tuple[float, ...]] = {"ewc": (0.1, 1.0)}
"""Values of `strength` in addition to the method's default, each tried with the two middle learning rates."""


def trials(name: str) -> Iterator[tuple[dict[str, Any], float]]:
    """Yield (method options, learning rate) of each trial of a method."""
    method, options = VARIANTS[name]
    for rate in FULL_RATES if method == "sequential_full" else RATES:
        yield options, rate
    for strength in STRENGTHS.get(name, ()):
        for rate in RATES[1:3]:
            yield {**options, "strength": strength}, rate


class Comparison:
    """The cells of the comparison for one model.

    Args:
        model: Folder or hub id.
        training: Added to every cell's `training` block.
        lora: The `lora` block of every method that uses LoRA.
        full: `full_modules` of gorp; None for the default of the model's family.
        tokens: Most tokens of a prompt.
    """

    def __init__(self, model: str, *, training: dict[str, Any], lora: dict[str, Any], full: Any, tokens: int) -> None:
        self.model, self.training, self.lora, self.full, self.tokens = model, training, lora, full, tokens

    def cell(self, method: str, options: Mapping[str, Any], rate: float, **fields: Any) -> Cell:
        """Return one cell of the comparison."""
        if method == "gorp" and self.full is not None:
            options = {"full_modules": self.full, **options}
        training = {"learning_rate": rate, **BATCH, **self.training}
        lora = self.lora if METHODS[method].uses_lora else {}
        return Cell(
            method=method,
            options=options,
            training=training,
            lora=lora,
            model=self.model,
            max_prompt_tokens=self.tokens,
            **fields,
        )

    def tuning(self, name: str) -> list[Cell]:
        """Return the trials of one method: development rows, one seed, another order."""
        method = VARIANTS[name][0]
        fields: dict[str, Any] = {
            "order": TUNED_ON,
            "split": "dev",
            "cells": "ends",
            "train_rows": 300,
            "dev_rows": 150,
        }
        return [self.cell(method, options, rate, **fields) for options, rate in trials(name)]

    def final(self, name: str, out: Path) -> list[Cell]:
        """Return the reported cells of one method: its best trial on test rows, for each seed; [] before tuning."""
        results = collect(self.tuning(name), out / "trials")
        if not results:
            return []
        best = best_trial(results)["cell"]
        rate = best["training"]["learning_rate"]
        return [
            self.cell(best["method"], best["options"], rate, order=REPORTED, seed=seed, train_rows=300, eval_rows=150)
            for seed in SEEDS
        ]


def main(
    *,
    run: Callable[[Cell, Path], dict[str, Any]] = run_cell,
    model: str | None = None,
    training: dict[str, Any] | None = None,
    lora: dict[str, Any] | None = None,
    full: Any = None,
    tokens: int = 128,
) -> None:
    """Parse the arguments and run the stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "final", "table"])
    parser.add_argument("--model", default=model, required=model is None)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    lora = lora or {"target_modules": "auto"}
    comparison = Comparison(args.model, training=training or {}, lora=lora, full=full, tokens=tokens)
    if args.stage == "tune":
        run_grid(
            [c for m in args.methods for c in comparison.tuning(m)], args.out / "trials", args.data, report=say, run=run
        )
    elif args.stage == "final":
        cells = [cell for name in args.methods for cell in comparison.final(name, args.out)]
        run_grid(sorted(cells, key=lambda c: c.seed), args.out / "final", args.data, report=say, run=run)
    else:
        rows = {name: collect(comparison.final(name, args.out), args.out / "final") for name in args.methods}
        print(
            comparison_markdown(
                {name: [AccuracyMatrix.from_dict(r["matrix"]) for r in rs] for name, rs in rows.items() if rs}
            )
        )


def say(number: int, cell: Cell, result: dict[str, Any]) -> None:
    """Print one line about a finished cell."""
    bwt = "" if result["bwt"] is None else f"{result['bwt']:5.1f}"
    print(
        f"{number:3d} {cell.method:17s} lr {cell.training['learning_rate']:<7g} seed {cell.seed} {dict(cell.options)} "
        f"AP {result['ap']:5.1f} BWT {bwt} LA {result['la'] or 0:5.1f} ({result['seconds']:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


if __name__ == "__main__":
    main()
