"""Answers that a test plants instead of those of the model, so that the gate has a known verdict."""

from collections.abc import Callable, Sequence

import pytest

from gorp.evaluation import TaskScore
from gorp.workspace import run as run_module
from gorp.workspace import scoring


ROWS = 150
"""Rows of each task: without a flip, enough to show a loss below 2 points."""

KEPT = [True] * ROWS
LOST = [False] * 20 + [True] * (ROWS - 20)
"""20 of 150 answers turned wrong: 13.3 points."""
UNSURE = [False] * 3 + [True] * (ROWS - 3)
"""3 of 150 answers turned wrong: 2 points, as large as the margin."""


def plant(monkeypatch: pytest.MonkeyPatch, right: Callable[[str, str], Sequence[bool]]) -> None:
    """Let every version answer as `right(version, task)` says: right or wrong for each row."""
    now, original = [""], run_module.score_row

    def score_row(session, version, *args, **options):
        now[0] = version
        return original(session, version, *args, **options)

    def score_task(model, tokenizer, task, **_):
        answers = right(now[0], task.name)
        samples = [
            {"index": i, "prompt": f"row {i}", "expected": "yes", "answer": "yes" if ok else "no", "correct": ok}
            for i, ok in enumerate(answers)
        ]
        score = 100 * sum(answers) / len(answers)
        return TaskScore(task=task.name, metric=task.metric, score=score, rows=len(answers), samples=samples)

    monkeypatch.setattr(run_module, "score_row", score_row)
    monkeypatch.setattr(scoring, "score_task", score_task)
