"""Tasks whose official training rows cannot be had whole, filled up from the further rows that lie beside them."""

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path

from gorp.data.files import read_rows
from gorp.storage import write_atomic


def fill(source: Path, target: Path, per_label: int) -> dict[str, int]:
    """Write a task's folder whose labels have `per_label` training rows each, as far as there are rows.

    Every row of `train.jsonl` is kept; rows of `train_extra*.jsonl` follow, in their order, where a label still has
    fewer. All else is copied.

    Args:
        source: Folder of a task in the flat layout (`gorp.data.cl_benchmark`).
        target: Folder to write; must not exist.
        per_label: Rows of a label that no further row is added to.

    Returns:
        Rows written of each label.

    Raises:
        FileExistsError: The target exists.
        gorp.errors.DataError: A file of rows is missing or cannot be read.
    """
    rows = [row.values for row in read_rows(source / "train.jsonl")]
    counts = Counter(row["label"] for row in rows)
    for path in sorted(source.glob("train_extra*.jsonl")):
        for row in read_rows(path):
            if counts[row.values["label"]] < per_label:
                counts[row.values["label"]] += 1
                rows.append(row.values)
    target.mkdir(parents=True)
    for name in ("labels.json", "task.json", "test.jsonl"):
        shutil.copyfile(source / name, target / name)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(target / "train.jsonl", text.encode())
    return dict(counts)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line of `fill`."""
    parser.add_argument("data", type=Path, help="folder of the CL benchmark, flat layout")
    parser.add_argument("target", type=Path, help="folder to write; finetune reads it as --data")
    parser.add_argument("--tasks", nargs="+", required=True)
    parser.add_argument("--per-label", type=int, default=1000, help="training rows that a label is filled up to")
    parser.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> None:
    for task in args.tasks:
        print(json.dumps({task: fill(args.data / task, args.target / task, args.per_label)}))
