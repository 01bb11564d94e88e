"""Scores, and what they say about a sequence of tasks.

batches.py     EvalConfig, eval mode, batches of like length
generate.py    greedy answers in free text
rank.py        log-likelihood of every label of a closed set
score.py       Task → TaskScore
matrix.py      AccuracyMatrix: after every task, on every task
metrics.py     AP, BWT, forgetting, LA, FWT: formulas on the matrix
"""

from gorp.evaluation.batches import EvalConfig
from gorp.evaluation.generate import generate_answers
from gorp.evaluation.matrix import AccuracyMatrix
from gorp.evaluation.metrics import FORMULAS, MEANINGS, seen_performance, summary
from gorp.evaluation.rank import rank_labels
from gorp.evaluation.score import TaskScore, normalise, score_task


__all__ = [
    "FORMULAS",
    "MEANINGS",
    "AccuracyMatrix",
    "EvalConfig",
    "TaskScore",
    "generate_answers",
    "normalise",
    "rank_labels",
    "score_task",
    "seen_performance",
    "summary",
]
