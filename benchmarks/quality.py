"""What each method keeps and learns on a real sequence of tasks: learning rates tuned on dev rows, then test rows, seeds.

    python benchmarks/quality.py tune  --model MODEL --data CL15 --out DIR      trials, scored on development rows
    python benchmarks/quality.py final --model MODEL --data CL15 --out DIR      the best trial of each method, 3 seeds, test rows
    python benchmarks/quality.py table --model MODEL --out DIR                  Markdown, from what is there

Run the first two in as many processes as there are cores; they share the work. Trials use another order of the same
tasks than the one reported, one seed, and the same number of settings for every method.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from gorp.benchmark import Cell, best_trial, collect, run_grid


REPORTED = ("dbpedia", "yelp", "agnews", "QQP", "amazon", "SST-2")
TUNED_ON = ("SST-2", "agnews", "amazon", "dbpedia", "QQP", "yelp")
RATES = (3e-4, 1e-3, 3e-3, 1e-2)
FULL_RATES = (3e-5, 1e-4, 3e-4, 1e-3)
SEEDS = (0, 1, 2)
BATCH = {"per_device_train_batch_size": 16}

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "sequential_full": ("sequential_full", {}),
    "sequential_lora": ("sequential_lora", {}),
    "incremental_lora": ("incremental_lora", {}),
    "ewc": ("ewc", {}),
    "olora": ("olora", {}),
    "gorp": ("gorp", {}),
    "gorp_paper": ("gorp", {"mode": "paper"}),
    "multi_task": ("multi_task", {}),
}
"""Name in the table -> method and options."""


def trials(name: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(method options, training block) of each of a method's trials: learning rate, and the main strength if it has one."""
    method, options = VARIANTS[name]
    for rate in FULL_RATES if method == "sequential_full" else RATES:
        yield options, {"learning_rate": rate, **BATCH}


def tuning_cells(name: str, model: str) -> list[Cell]:
    """The trials of one method."""
    method, _ = VARIANTS[name]
    return [
        Cell(
            method=method, options=options, training=training, model=model, order=TUNED_ON, split="dev", cells="ends",
            train_rows=500,
        )
        for options, training in trials(name)
    ]  # fmt: skip


def final_cells(name: str, model: str, out: Path) -> list[Cell]:
    """The reported runs of one method: the best trial, each seed."""
    results = collect(tuning_cells(name, model), out / "trials")
    if not results:
        return []
    best = best_trial(results)["cell"]
    return [
        Cell(
            method=best["method"], options=best["options"], training=best["training"], model=model, order=REPORTED, seed=seed,
        )
        for seed in SEEDS
    ]  # fmt: skip


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["tune", "final", "table"])
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--methods", nargs="*", default=list(VARIANTS))
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    def say(number: int, cell: Cell, result: dict[str, Any]) -> None:
        rate = cell.training["learning_rate"]
        print(
            f"{number:3d} {cell.method:17s} lr {rate:<7g} seed {cell.seed} {dict(cell.options)}  AP {result['ap']:5.1f} "
            f"BWT {result['bwt'] if result['bwt'] is None else round(result['bwt'], 1)} LA {result['la']:5.1f} "
            f"({result['seconds']:.0f} s)",
            file=sys.stderr,
            flush=True,
        )

    if args.stage == "tune":
        cells = [cell for name in args.methods for cell in tuning_cells(name, args.model)]
        run_grid(cells, args.out / "trials", args.data, report=say)
    elif args.stage == "final":
        cells = [cell for name in args.methods for cell in final_cells(name, args.model, args.out)]
        run_grid(sorted(cells, key=lambda c: c.seed), args.out / "final", args.data, report=say)
    else:
        print(table(args.model, args.out, args.methods))


def table(model: str, out: Path, names: list[str]) -> str:
    """Mean and spread over seeds, one line a method."""
    from gorp.report import comparison_markdown

    rows = {name: collect(final_cells(name, model, out), out / "final") for name in names}
    return comparison_markdown({name: results for name, results in rows.items() if results})


if __name__ == "__main__":
    main()
