"""Display the progress of a long run. The base class shows nothing; `gorp.cli.live` shows it in a terminal."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback

from gorp.evaluation import AccuracyMatrix
from gorp.layers.targets import Treatment


class Progress:
    """Shows nothing; subclasses override the methods for what they show."""

    def say(self, line: str) -> None:
        """Show one line about the current action."""

    def treatments(self, treatments: Sequence[Treatment], total: int) -> None:
        """Show which weights will be trained, in a model of `total` parameters."""

    def matrix(self, matrix: AccuracyMatrix) -> None:
        """Show the score matrix, as far as it is measured."""

    def gate(self, found: Mapping[str, Any]) -> None:
        """Show the verdict on a new version; `found` is the result of `gorp.workspace.gate.gate`."""

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """Show the training of a task inside the context; yield a callback for its Trainer."""
        yield TrainerCallback()

    @contextmanager
    def evaluating(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """Show the scoring of a task inside the context; yield a function to call with (rows done, all rows)."""
        yield lambda done, total: None

    @contextmanager
    def counting(self, what: str) -> Iterator[Callable[[int, int], None]]:
        """Show a long loop inside the context; yield a function to call with (items done, all items)."""
        yield lambda done, total: None
