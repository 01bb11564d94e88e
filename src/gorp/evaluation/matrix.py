"""The score matrix R: the score on every task, after every task of a sequence."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gorp.errors import CheckpointError, nearest
from gorp.storage import write_atomic


BASE = "base"
"""Name of row 0 in files and tables: the base model, before the first task."""


class AccuracyMatrix:
    """Score matrix: R[i, j] is the score, in percent, on task j of the model that has learned tasks 1 to i.

    Row 0 is the base model, row i the model after task i, so R is (T + 1) x T, float64; NaN means not measured. Columns
    follow the order in which the tasks are learned: with arrays counted from zero, task j is column j - 1.

    Attributes:
        tasks: Names of the tasks, in that order.
        R: The scores, (T + 1) x T.
        rows: For each measured task, the number of evaluation rows of its latest score.

    Example:
        >>> from gorp import AccuracyMatrix
        >>> matrix = AccuracyMatrix(["october", "november"])
        >>> matrix.set(1, "october", 90.0, rows=50)
        >>> matrix.set(2, "october", 87.0, rows=50)
        >>> matrix.set(2, "november", 80.0, rows=50)
        >>> matrix.R.shape
        (3, 2)
    """

    def __init__(self, tasks: Sequence[str]):
        """Create an empty matrix for `tasks`; raise `ValueError` if there are none or a name occurs twice."""
        self.tasks = list(tasks)
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks: got {self.tasks}; wanted at least one name, each once")
        self.R = np.full((len(self.tasks) + 1, len(self.tasks)), np.nan)
        self.rows: dict[str, int] = {}

    def set(self, row: int, task: str, score: float, rows: int) -> None:
        """Set the score on `task` of the model after task `row` (0 for the base model).

        Args:
            row: 0 to T.
            task: One of `tasks`.
            score: Percent, 0 to 100.
            rows: Number of evaluation rows, at least 1.

        Raises:
            ValueError: If an argument is outside its range or the task is not one of `tasks`.
        """
        if task not in self.tasks:
            raise ValueError(
                f"task: the matrix has no column `{task}`; wanted one of {self.tasks}." + nearest(task, self.tasks)
            )
        if not 0 <= row <= len(self.tasks):
            raise ValueError(f"row: got {row}; wanted 0 (the base model) to {len(self.tasks)} (after the last task)")
        if not 0.0 <= score <= 100.0:
            raise ValueError(f"score: got {score} for `{task}`; wanted percent, 0 to 100")
        if rows < 1:
            raise ValueError(f"rows: got {rows} for `{task}`; wanted the number of evaluation rows, at least 1")
        self.R[row, self.tasks.index(task)] = score
        self.rows[task] = rows

    def row_names(self) -> list[str]:
        """Return the name of each row: `base`, then the task that was learned last."""
        return [BASE, *self.tasks]

    def to_csv(self, path: Path) -> None:
        """Write the scores as CSV: a header of `after` and the tasks, then one line per row; empty if not measured.

        Reading the numbers gives exactly the same floats. Row counts are not in this file.
        """
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["after", *self.tasks])
        for name, scores in zip(self.row_names(), self.R, strict=True):
            writer.writerow([name, *("" if np.isnan(score) else repr(float(score)) for score in scores)])
        write_atomic(path, text.getvalue().encode())

    def to_dict(self) -> dict[str, Any]:
        """Return the matrix as JSON values: `tasks`, `R` with None for an entry not measured, `rows`."""
        scores = [[None if np.isnan(score) else float(score) for score in line] for line in self.R]
        return {"tasks": list(self.tasks), "R": scores, "rows": dict(self.rows)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "AccuracyMatrix":
        """Return the matrix of which `to_dict` made `value`.

        Raises:
            CheckpointError: If a key is missing, or the shape of R does not fit `tasks`.
        """
        try:
            matrix = cls(value["tasks"])
            matrix.R = np.array(value["R"], dtype=np.float64).reshape(matrix.R.shape)
            matrix.rows = {str(task): int(count) for task, count in value["rows"].items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(
                f"not a score matrix ({type(error).__name__}: {error}). Wanted `tasks`, `R` with one row more than"
                " tasks, and `rows`. Check whether another version of gorp wrote the file."
            ) from None
        return matrix
