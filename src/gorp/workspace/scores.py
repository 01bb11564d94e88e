"""Scores of a workspace: each with what it was measured on, so that none is measured twice and none is mixed up."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gorp.errors import CheckpointError
from gorp.evaluation import AccuracyMatrix
from gorp.storage import read_json, write_atomic, write_json
from gorp.workspace.store import Version


if TYPE_CHECKING:
    from gorp.evaluation import TaskScore


class Scores:
    """`eval/scores.json`: version -> task -> score, rows, metric and key.

    Args:
        folder: The `eval` folder of a workspace; it need not exist.

    Raises:
        CheckpointError: If the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "scores.json"
        self.cells: dict[str, dict[str, dict[str, Any]]] = read_json(path) if path.exists() else {}
        if not isinstance(self.cells, dict):
            raise CheckpointError(f"{path}: not a table of scores. Remove it; `gorp train` measures again.")

    def find(self, version: str, task: str, key: str) -> dict[str, Any] | None:
        """The score of `version` on `task`, if it was measured under `key`."""
        cell = self.cells.get(version, {}).get(task)
        return cell if cell is not None and cell["key"] == key else None

    def enter(self, version: str, score: "TaskScore", key: str) -> dict[str, Any]:
        """Keep a score and its answers on disk."""
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in score.samples)
        write_atomic(self.samples(version, score.task), lines.encode())
        cell = {"score": score.score, "rows": score.rows, "metric": score.metric, "key": key}
        self.cells.setdefault(version, {})[score.task] = cell
        write_json(self.folder / "scores.json", self.cells)
        return cell

    def samples(self, version: str, task: str) -> Path:
        """The file of the answers that `version` gave on `task`."""
        return self.folder / "samples" / f"{version}-{task}.jsonl"

    def matrix(self, lineage: Sequence[Version], tasks: Sequence[str]) -> AccuracyMatrix:
        """R of a line of versions: the row of a version is the number of tasks it has learned."""
        matrix = AccuracyMatrix(tasks)
        for version in lineage:
            for task, cell in self.cells.get(version.name, {}).items():
                if task in matrix.tasks:
                    matrix.set(len(version.contains), task, cell["score"], cell["rows"])
        return matrix


def cell_key(*parts: Any) -> str:
    """SHA-256 of everything that decides a score."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def learned_part(matrix: AccuracyMatrix, count: int) -> AccuracyMatrix | None:
    """R of the first `count` tasks alone, for the measures of a sequence that is not at its end; None for no task."""
    if count == 0:
        return None
    part = AccuracyMatrix(matrix.tasks[:count])
    part.R = np.array(matrix.R[: count + 1, :count])
    part.rows = {task: matrix.rows[task] for task in part.tasks if task in matrix.rows}
    return part
