"""Many cells: what is finished is skipped, what was killed is run again, several processes share one folder."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
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
    """Run every cell that has no result in `folder` and that no other living process is running.

    A cell is claimed by a file holding the process id; the claim of a process that is gone counts for nothing.
    """
    for number, cell in enumerate(cells):
        path = folder / f"{cell.key()}.json"
        if path.exists() or not _claim(path.with_suffix(".claim")):
            continue
        try:
            result = run(cell, data)
            write_json(path, result)
            report(number, cell, result)
        finally:
            path.with_suffix(".claim").unlink(missing_ok=True)


def collect(cells: Iterable[Cell], folder: Path) -> list[dict[str, Any]]:
    """The results there are, in the order of `cells`."""
    paths = [folder / f"{cell.key()}.json" for cell in cells]
    return [read_json(path) for path in paths if path.exists()]


def best_trial(results: Sequence[dict[str, Any]], score: str = "ap") -> dict[str, Any]:
    """The trial with the highest `score`, averaged over seeds where a setting was run with several."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        setting = {key: value for key, value in result["cell"].items() if key != "seed"}
        groups.setdefault(json.dumps(setting, sort_keys=True), []).append(result)
    return max(groups.values(), key=lambda group: sum(r[score] for r in group) / len(group))[0]


def _claim(path: Path) -> bool:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        try:
            os.kill(int(path.read_text() or 0) or os.getpid(), 0)
            return False
        except (ProcessLookupError, FileNotFoundError, ValueError):
            path.write_text(str(os.getpid()))
            return True
    with os.fdopen(descriptor, "w") as file:
        file.write(str(os.getpid()))
    return True
