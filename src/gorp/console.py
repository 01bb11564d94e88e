"""What a terminal shows of a run: bars or plain lines on the error stream, tables for its result.

Names of tasks and files are printed as they are: nothing in them is read as markup.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table
from rich.text import Text
from transformers import TrainerCallback

from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix
from gorp.progress import Progress
from gorp.report import matrix_table
from gorp.report.wording import number, printable
from gorp.targets import Treatment


PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

FIRST_LINE, NEXT_LINE = 2.0, 10.0
"""Seconds after which a log first hears of something that lasts, and then hears of it again."""


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or the error stream."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


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
    table = _table(title, ["weights", "trained by"], ["count", "shape", "trainable"])
    for item in treatments:
        shape = " x ".join(map(str, item.shape))
        _add(table, item.pattern, item.treatment, str(item.count), shape, f"{item.trainable:,}")
    return table


def measures_table(measures: Mapping[str, float | None]) -> Table:
    """Each measure with its formula and what it means; a dash where cells it needs were not measured."""
    table = _table("percent; differences in percentage points", ["formula"], [""])
    table.add_column("meaning")
    for name, formula in FORMULAS.items():
        _add(table, formula, number(measures.get(name)), MEANINGS[name])
    return table


def versions_table(versions: Sequence[Mapping[str, Any]], current: str) -> Table:
    """The versions of a workspace, the current one marked."""
    right = ["leak", "capacity", "kept", "seconds"]
    table = _table("versions", ["", "version", "parent", "learned last", "made"], right)
    for item in versions:
        leak = "–" if item["leak"] is None else f"{item['leak']:.1e}"
        capacity = "–" if item["capacity_max"] is None else f"{100 * item['capacity_max']:.1f} %"
        kept = f"{item['footprint_bytes'] / 2**20:.1f} MiB"
        mark = "*" if item["version"] == current else ""
        names = (item["version"], item["parent"] or "–", item["task"] or "base model", item["created"][:16])
        _add(table, mark, *names, leak, capacity, kept, f"{item['seconds']:.1f}")
    return table


def plain_table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table of text."""
    table = _table(title, headings, [])
    for line in lines:
        _add(table, *line)
    return table


def _table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None)
    for heading in left:
        table.add_column(Text(heading), overflow="fold")
    for heading in right:
        table.add_column(Text(heading), justify="right")
    return table


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))


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
