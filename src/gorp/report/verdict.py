"""What happened to each task, in words: its score now, and what it lost or gained since it was learned."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gorp.evaluation import AccuracyMatrix
from gorp.report.wording import number


SMALLEST = 0.05
"""Points; a smaller change is none, as numbers are written with one decimal."""


@dataclass(frozen=True, kw_only=True)
class TaskVerdict:
    """One learned task."""

    task: str
    now: float
    """Percent, of the newest model; NaN when not measured."""
    learned: float
    """Percent, of the model that had just learned it; NaN when not measured."""
    newest: bool
    """Whether it is the task learned last."""

    @property
    def change(self) -> float:
        """Percentage points since it was learned; negative is forgetting. NaN where a score is missing."""
        return self.now - self.learned

    @property
    def dropped(self) -> bool:
        """Whether it scores lower than when it was learned."""
        return self.change <= -SMALLEST

    def __str__(self) -> str:
        if math.isnan(self.now):
            return f"{self.task}: not scored"
        if self.newest:
            return f"{self.task}: {number(self.now)}, just learned"
        if math.isnan(self.change):
            return f"{self.task}: {number(self.now)}"
        if abs(self.change) < SMALLEST:
            return f"{self.task}: {number(self.now)}, as when it was learned"
        amount = number(abs(self.change))
        return f"{self.task}: {number(self.now)}, {'lost' if self.dropped else 'gained'} {amount} since it was learned"


def verdicts(matrix: AccuracyMatrix, count: int | None = None) -> list[TaskVerdict]:
    """What the model that has learned the first `count` tasks knows of each of them, in the order of learning.

    Args:
        matrix: R.
        count: 0 to T; None for the last row with a score.
    """
    if count is None:
        count = max((i for i, row in enumerate(matrix.R.tolist()) if not all(map(math.isnan, row))), default=0)
    R = matrix.R.tolist()
    joint = count > 1 and all(math.isnan(R[j + 1][j]) for j in range(count - 1))
    return [
        TaskVerdict(task=task, now=R[count][j], learned=R[j + 1][j], newest=j + 1 == count and not joint)
        for j, task in enumerate(matrix.tasks[:count])
    ]


def in_one_sentence(found: Sequence[TaskVerdict]) -> str:
    """Mean score, and mean change of the tasks before the last: AP and BWT in words."""
    scores, changes = [item.now for item in found], [item.change for item in found if not item.newest]
    if not found or any(map(math.isnan, scores)):
        return ""
    average = sum(scores) / len(scores)
    if len(found) == 1:
        return f"{number(average)} % on its one task"
    words = f"{number(average)} % on average"
    if not changes or any(map(math.isnan, changes)):
        return words
    change = sum(changes) / len(changes)
    if abs(change) < SMALLEST:
        return f"{words}; earlier tasks lost nothing on average"
    return f"{words}; earlier tasks {'lost' if change < 0 else 'gained'} {number(abs(change))} points on average"


def in_one_line(found: Sequence[TaskVerdict]) -> str:
    """Tasks that lost nothing, with their scores."""
    return f"not lower than when learned: {', '.join(f'{item.task} {number(item.now)}' for item in found)}"
