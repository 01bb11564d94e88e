"""Score matrices whose metrics are known."""

import numpy as np

from gorp.evaluation import AccuracyMatrix
from gorp.report import Judged, JudgedTask


FIRST = [[10.0, 20.0, 30.0], [90.0, 25.0, 33.0], [95.0, 80.0, 36.0], [70.0, 76.0, 60.0]]
"""AP 68.67, BWT -12, forgetting 14.5, LA 76.67, FWT 5.5."""

SECOND = [[10.0, 20.0, 30.0], [90.0, 25.0, 33.0], [95.0, 80.0, 36.0], [82.0, 78.0, 70.0]]
"""AP 76.67, BWT -5, forgetting 7.5, LA 80, FWT 5.5."""


def matrix(values=FIRST, tasks=("news", "films", "qa")):
    """Return a matrix of `values` for `tasks`, every task scored on 100 rows."""
    made = AccuracyMatrix(list(tasks))
    made.R = np.array(values, dtype=np.float64)
    made.rows = dict.fromkeys(tasks, 100)
    return made


def judged(task="news", *, old="v1", new="v2", verdict="hold", **changes):
    """Return a verdict on one task, which lost 12 points and won 2 of 100 rows."""
    facts = {
        "sentence": f"{task}: lost 10.0 points",
        "old": 90.0,
        "new": 80.0,
        "change": -10.0,
        "low": -16.5,
        "high": -4.5,
        "lost": 12,
        "won": 2,
        "rows": 100,
    }
    item = JudgedTask(task=task, verdict=verdict, **(facts | changes))
    return Judged(verdict=verdict, old=old, new=new, confidence=90, tasks=[item])
