"""A long run as a terminal shows it: bars, or plain lines for logs and pipes, on the error stream."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from gorp.console import add_row, empty_table
from gorp.evaluation import AccuracyMatrix
from gorp.progress import Progress
from gorp.report import matrix_table
from gorp.report.wording import number, printable
from gorp.targets import Treatment


FIRST_LINE, NEXT_LINE = 2.0, 10.0
"""Seconds after which a log first hears of something that lasts, and then hears of it again."""


def progress_on(target: Console) -> Progress:
    """Bars in a terminal, lines elsewhere."""
    return LiveProgress(target) if target.is_terminal else PlainProgress(target)


class PlainProgress(Progress):
    """For logs and pipes: a line at the start and end of a training, and now and then for whatever lasts."""

    def __init__(self, target: Console) -> None:
        self.console = target
        self._shown: list[Treatment] = []

    def say(self, line: str) -> None:
        """Print `line`, whatever is in it, unchanged."""
        self.console.print(Text(printable(line)), soft_wrap=True)

    def treatments(self, treatments: Sequence[Treatment], total: int) -> None:
        """Print the table, unless it is the one that was printed last."""
        if self._shown != list(treatments):
            self._shown = list(treatments)
            self.console.print(treatments_table(treatments, total))

    def matrix(self, matrix: AccuracyMatrix) -> None:
        """Print one line: the newest row that is measured."""
        rows = list(zip(matrix.row_names(), matrix.R.tolist(), strict=True))
        measured = [(name, scores) for name, scores in rows if not all(map(math.isnan, scores))]
        if measured:
            name, scores = measured[-1]
            cells = [f"{task} {number(score)}" for task, score in zip(matrix.tasks, scores, strict=True)]
            self.say(f"accuracy after {name}: {', '.join(cells)}")

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """Lines with the number of steps and the last logged loss."""
        due = _every(FIRST_LINE, NEXT_LINE)

        def show(done: int, total: int, loss: str) -> None:
            if 0 < done < total and due():
                self.say(f"training {name}: {done} of {total} steps{loss}")

        steps = _Steps(show)
        self.say(f"training {name}")
        yield steps
        self.say(f"trained {name}: {steps.done} steps{steps.loss}")

    @contextmanager
    def evaluating(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Lines with the number of rows, if it takes long."""
        due = _every(FIRST_LINE, NEXT_LINE)

        def show(done: int, total: int) -> None:
            if done < total and due():
                self.say(f"scoring {name}: {done} of {total} rows")

        yield show


class LiveProgress(PlainProgress):
    """A bar for each task: steps, loss, time left; the matrix fills in after each."""

    def matrix(self, matrix: AccuracyMatrix) -> None:
        """Print the whole matrix."""
        self.console.print(matrix_table(matrix, title="accuracy so far"))

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """A bar over the optimizer steps."""
        with self._bars() as bars:
            bar = bars.add_task(f"train {name}", total=None, note="")
            yield _Steps(lambda done, total, loss: bars.update(bar, completed=done, total=total, note=loss))

    @contextmanager
    def evaluating(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """A bar over the rows; it goes away, the score stays."""
        with self._bars(transient=True) as bars:
            bar = bars.add_task(f"score {name}", total=None, note="")
            yield lambda done, total: bars.update(bar, completed=done, total=total)

    def _bars(self, *, transient: bool = False) -> Bars:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
        )
        return Bars(*columns, console=self.console, transient=transient)


def treatments_table(treatments: Sequence[Treatment], total: int) -> Table:
    """What is trained, grouped over layers, and how much beside the model's `total` parameters."""
    trainable = sum(item.trainable for item in treatments)
    title = f"{trainable:,} trainable numbers, {100 * trainable / total:.2f} % of the model's {total:,} parameters"
    table = empty_table(title, ["weights", "trained by"], ["count", "shape", "trainable"])
    for item in treatments:
        shape = " x ".join(map(str, item.shape))
        add_row(table, item.pattern, item.treatment, str(item.count), shape, f"{item.trainable:,}")
    return table


def _every(first: float, then: float) -> Callable[[], bool]:
    """A function that is true once after `first` seconds, and again whenever `then` seconds have passed since."""
    limit = time.monotonic() + first

    def due() -> bool:
        nonlocal limit
        now = time.monotonic()
        if now < limit:
            return False
        limit = now + then
        return True

    return due


class _Steps(TrainerCallback):
    """Tells `show` of every optimizer step, with the last logged loss."""

    def __init__(self, show: Callable[[int, int, str], None]) -> None:
        self.show, self.done, self.loss = show, 0, ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.done = state.global_step
        self.show(state.global_step, state.max_steps, self.loss)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.loss = f", loss {float(logs['loss']):.4g}"
