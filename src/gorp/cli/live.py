"""A long run as a terminal shows it: bars, or plain lines for logs and pipes, on the error stream."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text
from transformers import TrainerCallback

from gorp.cli.console import add_row, empty_table
from gorp.evaluation import AccuracyMatrix
from gorp.layers.targets import Treatment
from gorp.printable import printable
from gorp.progress import Progress
from gorp.report import verdicts
from gorp.report.wording import number


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
        """What the newest model knows: of each learned task a line, or the scores of the base model in one line."""
        found = verdicts(matrix)
        for item in found:
            self.say(f"  {item}")
        if not found:
            scores = zip(matrix.tasks, matrix.R[0].tolist(), strict=True)
            self.say(f"base model: {', '.join(f'{task} {number(score)}' for task, score in scores)}")

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
    """A bar for each task: steps, loss, time left."""

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


def treatments_table(treatments: Sequence[Treatment], total: int) -> Group:
    """What is trained, a line for each kind of layer, and how much that is beside the model's `total` parameters."""
    trainable = sum(item.trainable for item in treatments)
    title = f"{trainable:,} trainable numbers, {100 * trainable / total:.2f} % of the model's {total:,} parameters"
    kinds: dict[str, list[Treatment]] = {}
    for item in treatments:
        kinds.setdefault(_layer(item.pattern).rpartition(".")[2], []).append(item)
    table = empty_table("", ["layers", "trained by"], ["count", "trainable"])
    for kind, items in kinds.items():
        count = sum({_layer(item.pattern): item.count for item in items}.values())
        ways = ", ".join(dict.fromkeys(item.treatment for item in items))
        add_row(table, kind, ways, str(count), f"{sum(item.trainable for item in items):,}")
    return Group(Text(title), table)


def _layer(pattern: str) -> str:
    """The layer that a group of parameters belongs to: without the factor (A, B, C), `weight` and `bias`."""
    return re.sub(r"\.(weight|bias)$", "", re.sub(r" [ABC]$", "", pattern))


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
