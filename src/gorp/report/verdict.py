"""Describe each learned task in a sentence: its current score, and its change since it was learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gorp.evaluation import AccuracyMatrix
from gorp.report.wording import number


SMALLEST = 0.05
"""Percentage points. A smaller change counts as none, because numbers are printed with one decimal."""


@dataclass(frozen=True, kw_only=True)
class TaskVerdict:
    """The current and the first score of a learned task."""

    task: str
    now: float
    """Score of the current model, percent; NaN if not measured."""
    learned: float
    """Score of the model that had just learned the task, percent; NaN if not measured."""
    newest: bool
    """Whether it is the last learned task."""

    @property
    def change(self) -> float:
        """Percentage points gained since the task was learned; negative is forgetting. NaN if a score is missing."""
        return self.now - self.learned

    @property
    def dropped(self) -> bool:
        """Whether the score is lower than when the task was learned."""
        return self.change <= -SMALLEST

    def __str__(self) -> str:
        if math.isnan(self.now):
            return f"{self.task}: not scored"
        if self.newest:
            return f"{self.task}: {number(self.now)}, just learned"
        if math.isnan(self.change):
            return f"{self.task}: {number(self.now)}"
        if abs(self.change) < SMALLEST:
            return f"{self.task}: {number(self.now)}, unchanged since it was learned"
        amount = number(abs(self.change))
        return f"{self.task}: {number(self.now)}, {'lost' if self.dropped else 'gained'} {amount} since it was learned"


def verdicts(matrix: AccuracyMatrix, count: int | None = None) -> list[TaskVerdict]:
    """Return the verdict on each of the first `count` tasks, for the model that has learned these tasks.

    Args:
        matrix: R.
        count: 0 to T; None stands for the last row that has a score.

    Returns:
        `count` verdicts, in the order of learning.
    """
    if count is None:
        count = max((i for i, row in enumerate(matrix.R.tolist()) if not all(map(math.isnan, row))), default=0)
    R = matrix.R.tolist()
    # Tasks that were trained jointly have no diagonal, so none of them is "just learned".
    joint = count > 1 and all(math.isnan(R[j + 1][j]) for j in range(count - 1))
    return [
        TaskVerdict(task=task, now=R[count][j], learned=R[j + 1][j], newest=j + 1 == count and not joint)
        for j, task in enumerate(matrix.tasks[:count])
    ]


def in_one_sentence(found: Sequence[TaskVerdict]) -> str:
    """Return AP (mean score) and BWT (mean change of the earlier tasks) as a phrase; "" if a score is missing."""
    scores, changes = [item.now for item in found], [item.change for item in found if not item.newest]
    if not found or any(map(math.isnan, scores)):
        return ""
    average = sum(scores) / len(scores)
    if len(found) == 1:
        return f"{number(average)} % on its only task"
    words = f"{number(average)} % on average"
    if not changes or any(map(math.isnan, changes)):
        return words
    change = sum(changes) / len(changes)
    if abs(change) < SMALLEST:
        return f"{words}; earlier tasks lost nothing on average"
    return f"{words}; earlier tasks {'lost' if change < 0 else 'gained'} {number(abs(change))} points on average"


def in_one_line(found: Sequence[TaskVerdict]) -> str:
    """Return one line with the names and scores of tasks that did not drop."""
    return f"not lower than when learned: {', '.join(f'{item.task} {number(item.now)}' for item in found)}"
