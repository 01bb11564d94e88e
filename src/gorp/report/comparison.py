"""Compare several methods, each run with one or more seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gorp.evaluation import FORMULAS, AccuracyMatrix, seen_performance, summary
from gorp.report.wording import NOT_MEASURED, number


Runs = Mapping[str, Sequence[AccuracyMatrix]]
"""Method -> its score matrices, one for each seed, at least one."""


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and standard deviation of a metric over seeds."""

    mean: float
    """Mean over the seeds."""
    deviation: float | None
    """Sample standard deviation, √(Σ (x - mean)² / (n - 1)); None for a single seed."""
    seeds: int
    """n, the number of seeds."""

    def __str__(self) -> str:
        return number(self.mean) if self.deviation is None else f"{number(self.mean)} ± {number(self.deviation)}"


def spread(values: Sequence[float | None]) -> Spread | None:
    """Return mean and sample standard deviation of one value per seed; None if a value is missing or there are none."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None
    deviation = float(np.std(known, ddof=1)) if len(known) > 1 else None
    return Spread(mean=float(np.mean(known)), deviation=deviation, seeds=len(known))


def compare(runs: Runs) -> dict[str, dict[str, Spread | None]]:
    """Return every metric of `FORMULAS` for each method, over its seeds.

    Raises:
        ValueError: If there is no method, or a method has no matrix.
    """
    check_runs(runs)
    compared = {}
    for method, matrices in runs.items():
        metrics = [summary(matrix) for matrix in matrices]
        compared[method] = {name: spread([of_seed[name] for of_seed in metrics]) for name in FORMULAS}
    return compared


def measured_by_any(compared: Mapping[str, Mapping[str, Spread | None]]) -> list[str]:
    """Return the metrics that at least one method has; the others would be empty columns."""
    return [name for name in FORMULAS if any(row[name] is not None for row in compared.values())]


def seen_over_tasks(matrices: Sequence[AccuracyMatrix]) -> list[Spread | None]:
    """Return the mean score on the tasks learned so far, after each task, over the seeds.

    The list is as long as the longest sequence; a point that some seed lacks is None.
    """
    curves = [seen_performance(matrix.R) for matrix in matrices]
    length = max(map(len, curves))
    return [spread([curve[i] if i < len(curve) else None for curve in curves]) for i in range(length)]


def panels(runs: Runs) -> dict[str, AccuracyMatrix]:
    """Return the score matrices to draw: one for each method, the mean over its seeds of every entry.

    An entry that is NaN for one seed is NaN in the mean. If the seeds of a method learned different task sequences,
    each of its runs gets a matrix of its own.
    """
    check_runs(runs)
    shown: dict[str, AccuracyMatrix] = {}
    for method, matrices in runs.items():
        if len({tuple(matrix.tasks) for matrix in matrices}) == 1:
            shown[method] = AccuracyMatrix(matrices[0].tasks)
            shown[method].R = np.mean([matrix.R for matrix in matrices], axis=0)
            shown[method].rows = dict(matrices[0].rows)
        else:
            shown |= {f"{method}, run {run}": matrix for run, matrix in enumerate(matrices, start=1)}
    return shown


def check_runs(runs: Runs) -> None:
    """Raise ValueError if there is no method, or a method has no matrix."""
    if not runs or not all(len(matrices) for matrices in runs.values()):
        raise ValueError(
            f"runs: got {{{', '.join(f'{m}: {len(x)}' for m, x in runs.items())}}} matrices per method;"
            " wanted at least one method, each with at least one matrix"
        )


def written(value: Spread | None) -> str:
    """Return the text of a table cell."""
    return NOT_MEASURED if value is None else str(value)
