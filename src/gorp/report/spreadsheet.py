"""Write the scores of a sequence and the verdicts on its tasks as CSV."""

import csv
import io
import math
from collections.abc import Sequence

from gorp.evaluation import AccuracyMatrix
from gorp.printable import printable
from gorp.report.content import Judged, JudgedTask


COLUMNS = ("verdict", "old", "new", "change", "low", "high", "lost", "won", "rows")
"""Fields of `JudgedTask` with a column each."""


def scores_csv(matrix: AccuracyMatrix, judged: Judged | None) -> str:
    """Return a line for each task: its verdict with all numbers, then its score after each task of the sequence.

    Numbers are complete, not rounded. What was not measured or judged is empty. A text that a spreadsheet would read as
    a formula gets an apostrophe before it.

    Args:
        matrix: R.
        judged: The verdict, if there is one.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["task", *COLUMNS, *(_plain(f"after {name}") for name in matrix.row_names())])
    found = {item.task: item for item in (judged.tasks if judged else ())}
    for j, task in enumerate(matrix.tasks):
        writer.writerow([_plain(task), *_verdict(found.get(task)), *_scores(matrix.R[:, j].tolist())])
    return text.getvalue()


def _verdict(item: JudgedTask | None) -> list[object]:
    return ["" if item is None else getattr(item, name) for name in COLUMNS]


def _scores(scores: Sequence[float]) -> list[object]:
    return ["" if math.isnan(score) else score for score in scores]


def _plain(text: str) -> str:
    text = " ".join(printable(text).split())
    return f"'{text}" if text[:1] in ("=", "+", "-", "@") else text
