"""A sequence of tasks as stages of training, and the loop that trains each stage and scores the tasks after it.

The demo and the benchmark run `learn_sequence`. A workspace has its own loop over the same stages, because there a
stage may be interrupted, or trained but not yet scored, and it ends with a version on disk.
"""

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from datasets import Dataset, concatenate_datasets
from torch import nn

from gorp.evaluation import AccuracyMatrix
from gorp.methods.base import Method
from gorp.progress import Progress
from gorp.training import TaskResult


JOINT = "joint"
"""Name of the single stage of a method that trains on all tasks together."""


class Learnable(Protocol):
    """What the loop needs of a task; the functions that train and score it may use more."""

    @property
    def name(self) -> str:
        """Name in the score matrix and in messages."""
        ...

    @property
    def train(self) -> Dataset | None:
        """Training rows, in the form that the training function expects; None only if the task is already learned."""
        ...


T = TypeVar("T", bound=Learnable)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[T]):
    """One run of training: on one task, or on all tasks for a joint method."""

    name: str
    """Name of the task, or `JOINT`."""
    index: int
    """Number of the stage, from 1."""
    contains: list[str]
    """Names of the tasks that are learned after it; their number is the stage's row of the score matrix."""
    tasks: list[T]
    """The tasks that it trains on."""
    rows: Dataset
    """The training rows of these tasks together."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Result and cost of a sequence."""

    matrix: AccuracyMatrix
    """The score matrix R, (T + 1) x T, filled in the cells that were scored."""
    results: list[TaskResult]
    """The result of each stage."""
    seconds: float
    """Wall-clock time of training and of scoring after each stage, without scoring the base model."""
    scoring_seconds: float
    """Wall-clock time of all scoring, including that of the base model."""


def stages(tasks: Sequence[T], *, joint: bool, seed: int, learned: Sequence[str] = ()) -> list[Stage[T]]:
    """Return the stages that remain: one for each task, or one on the rows of all tasks for a joint method.

    Args:
        tasks: All tasks in the order of training; those that are not learned must have rows.
        joint: Whether the method trains on all tasks at once.
        seed: Seed that shuffles the rows of all tasks for a joint method.
        learned: Names of the tasks that are learned, the first of `tasks`.
    """
    names = [task.name for task in tasks]
    if list(learned) == names:
        return []
    if joint:
        union = concatenate_datasets([_rows(task) for task in tasks]).shuffle(seed=seed, keep_in_memory=True)
        return [Stage(name=JOINT, index=1, contains=names, tasks=list(tasks), rows=union)]
    return [
        Stage(name=task.name, index=index, contains=names[:index], tasks=[task], rows=_rows(task))
        for index, task in enumerate(tasks, 1)
        if index > len(learned)
    ]


def learn_sequence(
    method: Method,
    model: nn.Module,
    tasks: Sequence[T],
    *,
    train: Callable[..., TaskResult],
    score: Callable[[nn.Module, T, int], tuple[float, int]],
    columns: Callable[[int], Sequence[int]],
    seed: int,
    progress: Progress | None = None,
) -> Learned:
    """Train all stages one after another, starting from the base model, and score tasks before and after each.

    Args:
        method: A new method, before its `setup`.
        model: The base model, not changed by any method.
        tasks: The tasks in the order of training, all with rows.
        train: Called with the stage, `folder` for checkpoints (removed afterwards), `callbacks` for the Trainer, and
            `num_tasks`. Returns the stage's result.
        score: Called with the model as it serves, a task, and the row of the score matrix. Returns the score in percent
            and the number of rows that were scored.
        columns: Called with a row of the score matrix (0: the base model). Returns the indices of the tasks to score.
        seed: Seed that shuffles the rows of all tasks for a joint method.
        progress: Shows progress; None shows nothing.

    Raises:
        GorpError: What `method.setup`, `train` and `score` raise.
    """
    progress = progress or Progress()
    method.setup(model)
    matrix, results, scoring = AccuracyMatrix([task.name for task in tasks]), [], 0.0

    def score_row(row: int) -> None:
        nonlocal scoring
        start = time.perf_counter()
        for task in (tasks[column] for column in columns(row)):
            with method.serving(model, task.name) as served:
                matrix.set(row, task.name, *score(served, task, row))
        scoring += time.perf_counter() - start

    score_row(0)
    started = time.perf_counter()
    for stage in stages(tasks, joint=method.joint, seed=seed):
        with (
            tempfile.TemporaryDirectory() as folder,
            progress.training(f"{method.name} on {stage.name}") as callback,
        ):
            results.append(train(stage, folder=Path(folder), callbacks=(callback,), num_tasks=len(tasks)))
        score_row(len(stage.contains))
        progress.matrix(matrix)
    return Learned(matrix=matrix, results=results, seconds=time.perf_counter() - started, scoring_seconds=scoring)


def _rows(task: Learnable) -> Dataset:
    assert task.train is not None, f"task {task.name} must be trained but has no rows"
    return task.train
