"""What a tiny model is worth: each task learned alone from it, and from random weights of the same shape.

A task is learned by LoRA (r 8 on the queries and values) in one epoch of its training rows. The learning rate is the
best of some on rows cut from the training rows; the test rows see only the seeds of that one. Exact match of the
generated answer, in per cent. Every run is one JSON file, so a call goes on where the last one stopped.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from gorp.benchmark import Cell, best_trial, collect, run_grid
from gorp.storage import write_atomic, write_json
from scripts.pretrain.card import with_learned


TASKS = ("dbpedia", "agnews", "SST-2", "yelp")
RATES = (5e-4, 1e-3, 2e-3)
"""Tried when none are named. The Llama wants twice these."""
SEEDS = (0, 1, 2)
TRAINING = {"lr_scheduler_type": "linear", "per_device_train_batch_size": 4, "bf16": True}
"""Four rows a step: two adapters of rank 8 a layer need the steps more than the average."""
ALL_ROWS = 1_000_000
"""A limit that no task reaches."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One model on one task."""

    model: str
    """Folder of the model."""
    task: str
    """Name of the task in the data folder."""
    random_weights: bool
    """Whether the model's weights are drawn anew."""
    rates: tuple[float, ...] = RATES
    """Learning rates to choose from."""
    train_rows: int = ALL_ROWS
    """Training rows, after the development rows are cut off."""
    dev_rows: int = 200
    """Rows cut from the training rows, for the choice of the learning rate."""
    eval_rows: int = 1000
    """Test rows."""
    tokens: int = 256
    """Longest prompt: 64 % of dbpedia's and 66 % of yelp's have over 128 tokens, and lose their middle there."""

    def cell(self, rate: float, seed: int, split: Literal["dev", "eval"]) -> Cell:
        """Describe one run."""
        return Cell(
            method="incremental_lora",
            lora={"r": 8},
            training={"learning_rate": rate, **TRAINING},
            model=self.model,
            order=(self.task,),
            train_rows=self.train_rows,
            dev_rows=self.dev_rows,
            eval_rows=self.eval_rows,
            split=split,
            cells="ends",
            max_prompt_tokens=self.tokens,
            random_weights=self.random_weights,
            seed=seed,
        )

    def trials(self) -> list[Cell]:
        """Give the runs that choose the learning rate, on development rows."""
        return [self.cell(rate, 0, "dev") for rate in self.rates]

    def final(self, seeds: Sequence[int], results: Path) -> list[Cell]:
        """Give the runs on test rows with the chosen rate; none before all trials are there."""
        done = collect(self.trials(), results)
        if len(done) < len(self.rates):
            return []
        rate = best_trial(done)["cell"]["training"]["learning_rate"]
        return [self.cell(rate, seed, "eval") for seed in seeds]


def questions(args: argparse.Namespace) -> Iterator[Question]:
    """List what is asked: every task from the pretrained weights, then from random ones."""
    for random_weights in (False, True):
        for task in args.tasks:
            yield Question(
                model=str(args.model),
                task=task,
                random_weights=random_weights,
                rates=tuple(args.rates),
                train_rows=args.train_rows,
                dev_rows=args.dev_rows,
                eval_rows=args.eval_rows,
            )


def finetune(args: argparse.Namespace) -> None:
    """Run what is missing, write `table.json` and print the table."""
    torch.set_num_threads(args.threads)
    card = args.model / "README.md"
    if args.card and not card.is_file():
        raise FileNotFoundError(
            f"{card} is not there: --card writes the table into it. Leave --card away, or export the model first."
        )
    asked = list(questions(args))
    for question in asked:
        run_grid(question.trials(), args.out, args.data, report=_say)
        run_grid(question.final(args.seeds, args.out), args.out, args.data, report=_say)
    rows = table(asked, args.seeds, args.out)
    write_json(args.out / "table.json", rows)
    if args.card:
        run = asked[0].cell(args.rates[0], args.seeds[0], "eval")
        write_atomic(card, with_learned(card.read_text(), rows, args.rates, run).encode())
    print("| task | weights | rate | exact match | seeds | seconds of training |\n|---|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row['task']} | {row['weights']} | {row['rate']:g} | {row['mean']:.1f} ± {row['deviation']:.1f} "
            f"| {row['seeds']} | {row['seconds']:.0f} |"
        )


def table(asked: Sequence[Question], seeds: Sequence[int], results: Path) -> list[dict[str, Any]]:
    """Sum up the finished runs.

    Args:
        asked: What was asked.
        seeds: Seeds of the runs on test rows.
        results: Folder of the results.

    Returns:
        One row for each question with a result on test rows: mean and standard deviation of the exact match over the
        seeds (per cent), the seconds that the training took on average, the threads it had.
    """
    rows = []
    for question in asked:
        done = collect(question.final(seeds, results), results)
        if not done:
            continue
        scores = [result["ap"] for result in done]
        rows.append(
            {
                "task": question.task,
                "weights": "random" if question.random_weights else "pretrained",
                "rate": done[0]["cell"]["training"]["learning_rate"],
                "mean": statistics.mean(scores),
                "deviation": statistics.pstdev(scores),
                "seeds": len(done),
                "seconds": statistics.mean(result["train_seconds"] for result in done),
                "threads": done[0]["environment"]["threads"],
            }
        )
    return rows


def _say(number: int, cell: Cell, result: dict[str, Any]) -> None:
    weights = "random" if cell.random_weights else "pretrained"
    rate = cell.training["learning_rate"]
    print(
        f"{cell.order[0]:8s} {weights:10s} lr {rate:<6g} seed {cell.seed} {cell.split:4s} {result['ap']:5.1f} "
        f"({result['train_seconds']:.0f} s)",
        file=sys.stderr,
        flush=True,
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `finetune`."""
    parser.add_argument("model", type=Path, help="model folder")
    parser.add_argument("--data", type=Path, required=True, help="folder of the CL benchmark")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--rates", nargs="+", type=float, default=list(RATES))
    parser.add_argument("--train-rows", type=int, default=ALL_ROWS, help="training rows of a task (all)")
    parser.add_argument("--dev-rows", type=int, default=200, help="rows cut from them to choose the learning rate")
    parser.add_argument("--eval-rows", type=int, default=1000, help="test rows of a task")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--card", action="store_true", help="write the table into the model's README.md too")
    parser.set_defaults(command=finetune)
