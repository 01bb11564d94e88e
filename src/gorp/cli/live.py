"""Progress of a long run on stderr: bars in a terminal, plain lines in logs and pipes."""

import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.text import Text
from transformers import TrainerCallback

from gorp.cli.console import add_row, empty_table
from gorp.cli.gate_tables import show_gate
from gorp.evaluation import AccuracyMatrix
from gorp.layers.targets import Treatment
from gorp.printable import printable
from gorp.progress import Progress
from gorp.report import verdicts
from gorp.report.wording import number


FIRST_LINE, NEXT_LINE = 2.0, 10.0
"""Seconds until a log gets the first progress line of a long operation, and between the lines after it."""


def progress_on(target: Console) -> Progress:
    """Return the progress for `target`: bars in a terminal, lines elsewhere."""
    return LiveProgress(target) if target.is_terminal else PlainProgress(target)


class PlainProgress(Progress):
    """Progress for logs and pipes: a line at the start and end of each training, and regular lines in between."""

    def __init__(self, target: Console) -> None:
        self.console = target
        self._printed: list[Treatment] = []

    def say(self, line: str) -> None:
        """Print `line` as plain text, without markup or wrapping."""
        self.console.print(Text(printable(line)), soft_wrap=True)

    def treatments(self, treatments: Sequence[Treatment], total: int) -> None:
        """Print the table of trained layers, unless it equals the last one printed."""
        if self._printed != list(treatments):
            self._printed = list(treatments)
            self.console.print(treatments_table(treatments, total))

    def matrix(self, matrix: AccuracyMatrix) -> None:
        """Print a line for each learned task, or the scores of the base model in one line if none is learned."""
        found = verdicts(matrix)
        for item in found:
            self.say(f"  {item}")
        if not found:
            scores = zip(matrix.tasks, matrix.R[0].tolist(), strict=True)
            self.say(f"base model scores: {', '.join(f'{task} {number(score)}' for task, score in scores)}")

    def gate(self, found: Mapping[str, Any]) -> None:
        """Print the verdict as `gorp gate` does."""
        show_gate(self.console, found)

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """Print lines with the number of steps and the last logged loss."""
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
        """Print lines with the number of scored rows, if scoring takes more than `FIRST_LINE` seconds."""
        with self.counting(f"scoring {name}", " rows") as show:
            yield show

    @contextmanager
    def counting(self, what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """Print lines with the items done and the time left, if the loop takes more than `FIRST_LINE` seconds."""
        due, began = _every(FIRST_LINE, NEXT_LINE), time.monotonic()

        def show(done: int, total: int) -> None:
            if done < total and due():
                left = (time.monotonic() - began) * (total - done) / done if done else None
                self.say(f"{what}: {done} of {total}{unit}{'' if left is None else f', about {_duration(left)} left'}")

        yield show


class LiveProgress(PlainProgress):
    """Progress for terminals: a bar for each task, with steps, loss and time left."""

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """Show a bar of the optimizer steps."""
        with self._bars() as bars:
            bar = bars.add_task(f"train {name}", total=None, note="")
            yield _Steps(lambda done, total, loss: bars.update(bar, completed=done, total=total, note=loss))

    @contextmanager
    def evaluating(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show a bar of the scored rows; it is removed at the end."""
        with self.counting(f"score {name}") as show:
            yield show

    @contextmanager
    def counting(self, what: str, unit: str = "") -> Iterator[Callable[[int, int], None]]:
        """Show a bar of the items done; it is removed at the end."""
        with self._bars(transient=True) as bars:
            bar = bars.add_task(what, total=None, note="")
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
    """Return the table of what is trained: one line for each kind of layer, with the share of `total` as its title.

    Args:
        treatments: What trains each group of parameters.
        total: Number of parameters of the model.
    """
    trainable = sum(item.trainable for item in treatments)
    title = f"{trainable:,} trainable parameters, {100 * trainable / total:.2f} % of the model's {total:,}"
    kinds: dict[str, list[Treatment]] = {}
    for item in treatments:
        kinds.setdefault(_layer(item.pattern).rpartition(".")[2], []).append(item)
    table = empty_table("", ["layers", "trained by"], ["count", "trainable"])
    for kind, items in kinds.items():
        count = sum({_layer(item.pattern): item.count for item in items}.values())
        ways = ", ".join(dict.fromkeys(item.treatment for item in items))
        add_row(table, kind, ways, str(count), f"{sum(item.trainable for item in items):,}")
    return Group(Text(title), table)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _layer(pattern: str) -> str:
    """Return the layer of a group of parameters: its pattern without the factor (A, B, C), `weight` and `bias`."""
    return re.sub(r"\.(weight|bias)$", "", re.sub(r" [ABC]$", "", pattern))


def _every(first: float, then: float) -> Callable[[], bool]:
    """Return a function that returns True once after `first` seconds and then once every `then` seconds."""
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
    """Call `show(done, total, loss)` at every optimizer step, with the last logged loss as text."""

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
