"""The scores of a workspace, each with the conditions it was measured under, so that a valid score is reused."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gorp.disk import disk_errors
from gorp.errors import CheckpointError
from gorp.evaluation import AccuracyMatrix
from gorp.storage import file_sha256, read_json, remove_leftovers, write_atomic, write_json
from gorp.workspace.ledger import VERSION_NAME
from gorp.workspace.lock import briefly
from gorp.workspace.seal import SEAL, is_whole, sealed
from gorp.workspace.version import TASK_NAME, Version


if TYPE_CHECKING:
    from gorp.evaluation import TaskScore


KEYS = ("score", "rows", "metric", "key", "conditions", "samples")
"""Keys of a score's entry, besides its digest; gorp 0.1.0 wrote neither the last two nor a digest."""

SCORES_LOCK = "scores.lock"
"""File in `eval` that is locked while something in that folder is written."""


class Scores:
    """`eval/scores.json`: version -> task -> score, rows, metric, key, conditions, SHA-256 of the samples, digest.

    `conditions` is a digest of the rows, the prompts and limits, and the numeric precision; `key` is a digest of the
    conditions and the weights. Two scores are comparable if their conditions are equal.

    Several processes may write: an entry is added to the table as it is on disk at that moment.

    Args:
        folder: The `eval` folder of a workspace; it need not exist.

    Raises:
        CheckpointError: If the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells: dict[str, dict[str, dict[str, Any]]] = self._read()

    def find(self, version: str, task: str, key: str) -> dict[str, Any] | None:
        """Return the score of `version` on `task` if it was measured under `key`, else None."""
        cell = self.cells.get(version, {}).get(task)
        return cell if cell is not None and cell["key"] == key else None

    def add(self, version: str, score: "TaskScore", key: str, conditions: str) -> dict[str, Any]:
        """Save a score and its answers.

        Raises:
            CheckpointError: If the disk cannot be written, or the file on it is damaged.
        """
        lines = "".join(json.dumps(sample, ensure_ascii=False) + "\n" for sample in score.samples).encode()
        cell = {"score": score.score, "rows": score.rows, "metric": score.metric, "key": key, "conditions": conditions}
        cell = sealed(cell | {"samples": hashlib.sha256(lines).hexdigest()}, version, score.task)
        with self.writing():
            write_atomic(self.samples(version, score.task), lines)
            self.cells = self._read()
            self.cells.setdefault(version, {})[score.task] = cell
            write_json(self._path, self.cells)
        return cell

    def drop(self, versions: Collection[str]) -> None:
        """Remove the scores and the answers of versions that no longer exist.

        The scores go first: an answer without a score has no effect, and the next call removes it.

        Raises:
            CheckpointError: If the disk cannot be written, or the file on it is damaged.
        """
        with self.writing():
            self.cells = self._read()
            kept = {version: row for version, row in self.cells.items() if version not in versions}
            if kept != self.cells:
                self.cells = kept
                write_json(self._path, self.cells)
            with disk_errors(self.folder):
                for path in self.samples_of(versions):
                    path.unlink(missing_ok=True)

    def samples_of(self, versions: Collection[str]) -> list[Path]:
        """Return the files of what `versions` answered, and of their losses on the guard text."""
        found = sorted((self.folder / "samples").glob("v*-*.jsonl"))
        answers = [path for path in found if path.name.partition("-")[0] in versions]
        return answers + [path for path in sorted((self.folder / "guard").glob("v*.json")) if path.stem in versions]

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the folder while the block runs; other processes wait."""
        with briefly(self.folder / SCORES_LOCK):
            for folder in (self.folder, self.folder / "samples", self.folder / "guard"):
                remove_leftovers(folder)
            yield

    def changed(self) -> list[Path]:
        """Return the files of answers that were changed after they were written; removed files are not included."""
        return [path for path, digest in self._digests().items() if path.is_file() and file_sha256(path) != digest]

    def removed(self) -> list[Path]:
        """Return the files of answers that were removed after they were written."""
        return [path for path in self._digests() if not path.is_file()]

    def lost(self, lineage: Sequence[Version]) -> list[str]:
        """Return a sentence if scores.json is missing although the versions were scored, else nothing."""
        if self._path.is_file() or not any(self._measured(version) for version in lineage):
            return []
        return [f"{self._path}: missing, so there are no scores. Restore it from a copy, or `gorp train` measures all"]

    def _measured(self, version: Version) -> bool:
        return not version.is_protection and bool(version.record.get("metrics", {}).get("scores"))

    def _digests(self) -> dict[Path, str]:
        """Return the files of all answers, each with its SHA-256."""
        return {
            self.samples(version, task): cell["samples"]
            for version, row in self.cells.items()
            for task, cell in row.items()
            if "samples" in cell
        }

    def samples(self, version: str, task: str) -> Path:
        """Return the file of the answers of `version` on `task`."""
        return self.folder / "samples" / f"{version}-{task}.jsonl"

    def answers(self, version: str, task: str) -> list[dict[str, Any]]:
        """Return the recorded answers of `version` on `task`, in the order of the rows.

        Raises:
            CheckpointError: If there are none, or their file was changed after it was written.
        """
        cell, path = self.cells.get(version, {}).get(task), self.samples(version, task)
        again = f"`gorp eval --version {version}`"
        if cell is None or not path.is_file():
            missing = next((f"{each}: missing: " for each in (self._path, path) if not each.is_file()), "")
            where = missing or f"{self._path}: "
            raise CheckpointError(f"{where}{version} has no recorded answers on {task}. {again} answers them.")
        if file_sha256(path) != cell.get("samples"):
            raise CheckpointError(
                f"{path}: damaged or changed: its SHA-256 differs from the one in scores.json. {again} writes it again."
            )
        with open(path, encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def matrix(self, lineage: Sequence[Version], tasks: Sequence[str]) -> AccuracyMatrix:
        """Return the score matrix R of a lineage; a version's row is the number of tasks it has learned.

        A column has only the scores with the same conditions as its newest one; the others are not comparable.
        """
        matrix = AccuracyMatrix(tasks)
        for task in tasks:
            column, _ = self._column(lineage, task)
            for version, cell in column:
                matrix.set(len(version.contains), task, cell["score"], cell["rows"])
        return matrix

    def left_out(self, lineage: Sequence[Version], tasks: Sequence[str]) -> list[str]:
        """Return a line for each task of which `matrix` leaves out scores."""
        others = {task: self._column(lineage, task)[1] for task in tasks}
        return [
            f"{task}: the scores of {', '.join(names)} are left out, because they were measured on other rows or with "
            "other settings than the newest score; `gorp train` measures them again"
            for task, names in others.items()
            if names
        ]

    def _column(self, lineage: Sequence[Version], task: str) -> tuple[list[tuple[Version, dict[str, Any]]], list[str]]:
        """Return the entries of a task that are comparable with the newest, and the versions whose entries are not."""
        cells = [(version, cell) for version in lineage if (cell := self.cells.get(version.name, {}).get(task))]
        newest = cells[-1][1].get("conditions") if cells else None
        alike = [(version, cell) for version, cell in cells if cell.get("conditions") == newest]
        return alike, [version.name for version, cell in cells if cell.get("conditions") != newest]

    @property
    def _path(self) -> Path:
        return self.folder / "scores.json"

    def _read(self) -> dict[str, dict[str, dict[str, Any]]]:
        advice = "Restore it from a copy, or remove it: `gorp train` measures all scores again."
        table = read_json(self._path) if self._path.exists() else {}
        if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
            raise CheckpointError(f"{self._path}: damaged: not a table of scores. {advice}")
        for version, row in table.items():
            for task, cell in row.items():
                named = VERSION_NAME.fullmatch(version) and TASK_NAME.fullmatch(task)
                if not named or not _is_cell(cell) or not is_whole(cell, version, task):
                    raise CheckpointError(
                        f"{self._path}: the score of {version} on {task} is damaged or changed. {advice}"
                    )
        return table


def _is_cell(cell: Any) -> bool:
    """Whether `cell` has the keys of an entry, and numbers for score and rows."""
    if not isinstance(cell, dict) or set(cell) not in ({*KEYS, SEAL}, {*KEYS[:4]}):
        return False
    numbers = (cell["score"], cell["rows"])
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)


def learned_part(matrix: AccuracyMatrix, count: int) -> AccuracyMatrix | None:
    """Return R of the first `count` tasks alone, for the measures of an unfinished sequence; None if `count` is 0."""
    if count == 0:
        return None
    part = AccuracyMatrix(matrix.tasks[:count])
    part.R = np.array(matrix.R[: count + 1, :count])
    part.rows = {task: matrix.rows[task] for task in part.tasks if task in matrix.rows}
    return part
