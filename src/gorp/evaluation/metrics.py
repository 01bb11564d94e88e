"""Compute the metrics of continual learning from the score matrix.

R is (T + 1) x T in percent: R[i, j] after task i on task j, row 0 the base model, NaN if not measured. The formulas
count tasks from 1 as papers do; in an array task j is column j - 1. Every function returns percent or a difference in
percentage points. It returns None if an entry that it needs was not measured, or if it is undefined for a single task.

BWT and FWT follow Lopez-Paz and Ranzato, *Gradient Episodic Memory for Continual Learning*, arXiv:1706.08840, with the
measured base model instead of a random one. Forgetting follows Chaudhry et al., *Riemannian Walk for Incremental
Learning*, arXiv:1801.10112.
"""

from collections.abc import Mapping

import numpy as np

from gorp.evaluation.matrix import AccuracyMatrix


FORMULAS: dict[str, str] = {
    "ap": "AP = mean over j of R[T, j]",
    "bwt": "BWT = mean over j < T of (R[T, j] − R[j, j])",
    "forgetting": "Forgetting = mean over j < T of (max{R[l, j] : 1 ≤ l < T} − R[T, j])",
    "la": "LA = mean over j of R[j, j]",
    "fwt": "FWT = mean over j > 1 of (R[j−1, j] − R[0, j])",
    "ap_weighted": "Weighted AP = Σ n[j] · R[T, j] / Σ n[j]",
}
"""Formula of each metric in `summary`, printed wherever the number is printed. n[j]: evaluation rows of task j."""

MEANINGS: dict[str, str] = {
    "ap": "average performance after the last task",
    "bwt": "backward transfer: change of earlier tasks since they were learned; negative is forgetting",
    "forgetting": "drop of earlier tasks from their best score; positive is a loss",
    "la": "learning accuracy: each task just after it was learned",
    "fwt": "forward transfer: change that earlier tasks bring to a task before it is learned",
    "ap_weighted": "average performance in which every evaluation row has the same weight",
}
"""Meaning of each metric in words."""


def average_performance(R: np.ndarray) -> float | None:
    """Return the mean over all tasks after the last one: AP = (1/T) Σⱼ R[T, j]."""
    return _mean(R[-1])


def weighted_average_performance(R: np.ndarray, rows: np.ndarray) -> float | None:
    """Return the mean over all evaluation rows after the last task: Σⱼ nⱼ R[T, j] / Σⱼ nⱼ.

    Args:
        R: The score matrix, (T + 1) x T.
        rows: nⱼ, the number of evaluation rows of each task, T values. The result is None if one is 0 or NaN.
    """
    if not np.all(rows > 0):
        return None
    score = _mean(R[-1] * rows)
    return None if score is None else score / float(np.mean(rows))


def backward_transfer(R: np.ndarray) -> float | None:
    """Return the mean change of earlier tasks: BWT = (1/(T-1)) Σ_{j<T} (R[T, j] - R[j, j]). Negative is forgetting."""
    return _mean(R[-1, :-1] - learned(R)[:-1])


def forgetting(R: np.ndarray) -> float | None:
    """Return the mean drop of earlier tasks from their best: (1/(T-1)) Σ_{j<T} (max_{1<=l<T} R[l, j] - R[T, j]).

    The maximum is over trained models, without row 0. It needs rows 1 to T - 1 of all earlier tasks.
    """
    return _mean(R[1:-1, :-1].max(axis=0) - R[-1, :-1]) if len(R) > 2 else None


def learning_accuracy(R: np.ndarray) -> float | None:
    """Return the mean score of each task right after it was learned: LA = (1/T) Σⱼ R[j, j]."""
    return _mean(learned(R))


def forward_transfer(R: np.ndarray) -> float | None:
    """Return the mean gain of tasks before they were learned: FWT = (1/(T-1)) Σ_{j>1} (R[j-1, j] - R[0, j])."""
    return _mean(np.diagonal(R)[1:] - R[0, 1:])


def learned(R: np.ndarray) -> np.ndarray:
    """Return R[j, j] for every task j, the diagonal below row 0: T scores."""
    return np.diagonal(R, offset=-1)


def seen_performance(R: np.ndarray) -> list[float | None]:
    """Return, for each task i, the mean over the tasks learned so far: (1/i) Σ_{j<=i} R[i, j]. The last value is AP."""
    return [_mean(R[i, :i]) for i in range(1, len(R))]


def summary(matrix: AccuracyMatrix) -> dict[str, float | None]:
    """Return every metric of `FORMULAS` by name, in that order.

    Example:
        >>> from gorp import AccuracyMatrix, summary
        >>> matrix = AccuracyMatrix(["october", "november"])
        >>> for row, task, score in [(1, "october", 90.0), (2, "october", 87.0), (2, "november", 80.0)]:
        ...     matrix.set(row, task, score, rows=50)
        >>> summary(matrix)["ap"], summary(matrix)["bwt"]
        (83.5, -3.0)
    """
    return {
        "ap": average_performance(matrix.R),
        "bwt": backward_transfer(matrix.R),
        "forgetting": forgetting(matrix.R),
        "la": learning_accuracy(matrix.R),
        "fwt": forward_transfer(matrix.R),
        "ap_weighted": weighted_average_performance(matrix.R, _counts(matrix.tasks, matrix.rows)),
    }


def _counts(tasks: list[str], rows: Mapping[str, int]) -> np.ndarray:
    return np.array([rows.get(task, 0) for task in tasks])


def _mean(values: np.ndarray) -> float | None:
    if values.size == 0 or np.isnan(values).any():
        return None
    return float(values.mean())
