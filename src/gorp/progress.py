"""What a long run tells of itself. The base shows nothing; `gorp.cli.live` has what a terminal shows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from transformers import TrainerCallback

from gorp.evaluation import AccuracyMatrix
from gorp.layers.targets import Treatment


class Progress:
    """Shows nothing; a subclass overrides what it shows."""

    def say(self, line: str) -> None:
        """One line of what happens now."""

    def treatments(self, treatments: Sequence[Treatment], total: int) -> None:
        """Which weights are about to be trained, in a model of `total` parameters."""

    def matrix(self, matrix: AccuracyMatrix) -> None:
        """The accuracy matrix as far as it is measured."""

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        """While a task trains: a callback for its Trainer."""
        yield TrainerCallback()

    @contextmanager
    def evaluating(self, name: str) -> Iterator[Callable[[int, int], None]]:
        """While a task is scored: what to call with the rows done and the rows in all."""
        yield lambda done, total: None
