"""A sequence of tasks: the trainings that it consists of, and the loop that runs them and scores the tasks after each.

The demo and the benchmark run `learn_sequence`. A workspace runs the same stages through its own loop, since there a
stage may be half done, or trained and not yet scored, and ends with a version on disk.
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
"""What the one training of a method on all tasks together is called."""


class Learnable(Protocol):
    """What the loop must know of a task; the rest is for the functions that train and score it."""

    @property
    def name(self) -> str:
        """In the matrix, and in messages."""
        ...

    @property
    def train(self) -> Dataset | None:
        """Its training rows, in the form that the training function takes; None only where it is learned already."""
        ...


T = TypeVar("T", bound=Learnable)


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[T]):
    """One training: a task, or all of them for a joint method."""

    name: str
    """The task's, or `JOINT`."""
    index: int
    """Of the training, counted from 1."""
    contains: list[str]
    """What is learned after it; their number is its row of the matrix."""
    tasks: list[T]
    """What it is trained on."""
    rows: Dataset
    """Their rows together."""


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What a sequence gave and cost."""

    matrix: AccuracyMatrix
    """R, (T + 1) x T, where it was asked for."""
    results: list[TaskResult]
    """Of each stage."""
    seconds: float
    """Wall-clock time of training and of scoring after each stage; scoring the base model is not in it."""
    scoring_seconds: float
    """Wall-clock time of all scoring, the base model's included."""


def stages(tasks: Sequence[T], *, joint: bool, seed: int, learned: Sequence[str] = ()) -> list[Stage[T]]:
    """The trainings that are pending when `learned` are: a task each, or one on the union of all for a joint method.

    Args:
        tasks: All, in the order of training; those that are pending with their rows.
        joint: Whether the method trains on all tasks at once.
        seed: Shuffles the union.
        learned: Names of the first of `tasks`.
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
    """Learn all tasks from the base model on, one stage after another, and score those that are wanted after each.

    Args:
        method: New, before its `setup`.
        model: The base model, untouched by any method.
        tasks: In the order of training, all with rows.
        train: Called with the stage, `folder` for checkpoints, which is removed afterwards, `callbacks` of the Trainer,
            and `num_tasks`.
        score: From the model as it serves, a task and the row of the matrix to percent right and rows behind it.
        columns: From a row of the matrix (0: the base model) to the tasks to score in it, counted from 0.
        seed: Shuffles the union that a joint method trains on.
        progress: What to show.

    Raises:
        GorpError: Whatever `method.setup`, `train` and `score` raise.
    """
    progress = progress or Progress()
    method.setup(model)
    matrix, results, scoring = AccuracyMatrix([task.name for task in tasks]), [], 0.0

    def fill(row: int) -> None:
        nonlocal scoring
        began = time.perf_counter()
        for task in (tasks[column] for column in columns(row)):
            with method.serving(model, task.name) as served:
                matrix.set(row, task.name, *score(served, task, row))
        scoring += time.perf_counter() - began

    fill(0)
    started = time.perf_counter()
    for stage in stages(tasks, joint=method.joint, seed=seed):
        with (
            tempfile.TemporaryDirectory() as folder,
            progress.training(f"{method.name} on {stage.name}") as callback,
        ):
            results.append(train(stage, folder=Path(folder), callbacks=(callback,), num_tasks=len(tasks)))
        fill(len(stage.contains))
        progress.matrix(matrix)
    return Learned(matrix=matrix, results=results, seconds=time.perf_counter() - started, scoring_seconds=scoring)


def _rows(task: Learnable) -> Dataset:
    assert task.train is not None, f"task {task.name} is to be trained and has no rows"
    return task.train
