"""Run many cells: skip finished ones, run killed ones again, and let several processes share one folder."""

import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gorp.benchmark.cell import Cell, run_cell
from gorp.storage import read_json, write_json


def run_grid(
    cells: Sequence[Cell],
    folder: Path,
    data: Path,
    *,
    report: Callable[[int, Cell, dict[str, Any]], None],
    run: Callable[[Cell, Path], dict[str, Any]] = run_cell,
) -> None:
    """Run every cell that has no result in `folder` and is not being run by another process.

    A process claims a cell with a lock on a file next to its result. The operating system releases the lock when the
    process ends, also when it is killed, so a leftover file blocks nothing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for number, cell in enumerate(cells):
        path = folder / f"{cell.key()}.json"
        if path.exists():
            continue
        with _claim(path.with_suffix(".claim")) as mine:
            if mine and not path.exists():  # another process may have finished it before the claim
                result = run(cell, data)
                write_json(path, result)
                report(number, cell, result)


def collect(cells: Iterable[Cell], folder: Path) -> list[dict[str, Any]]:
    """Return the existing results, in the order of `cells`."""
    paths = [folder / f"{cell.key()}.json" for cell in cells]
    return [read_json(path) for path in paths if path.exists()]


def best_trial(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the trial with the highest AP, averaged over the seeds of a setting."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        setting = {key: value for key, value in result["cell"].items() if key != "seed"}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(result)
    return max(groups.values(), key=lambda group: sum(r["ap"] for r in group) / len(group))[0]


@contextmanager
def _claim(path: Path) -> Iterator[bool]:
    """Lock the file at `path`; yield whether that succeeded. A locked file is removed afterwards."""
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = os.path.samestat(os.fstat(file.fileno()), os.stat(path))
        except (
            BlockingIOError,
            FileNotFoundError,
        ):  # locked by another process, or removed by it between open and lock
            mine = False
        try:
            yield mine
        finally:
            if mine:
                path.unlink(missing_ok=True)
