"""Score models on tasks, and compute the metrics of a task sequence.

batches.py     EvalConfig, eval mode, batches of rows of similar length
reading.py     run prompts through a model and keep their cache; a shared beginning is computed once
decode.py      greedy decoding of one batch
generate.py    greedy answers in free text
likelihood.py  log-likelihood of a given answer, teacher forced
rank.py        log-likelihood of every label of a closed set
compare.py     when an answer is correct
inspect.py     checks of a task's rows before the model is used
score.py       Task → TaskScore
matrix.py      AccuracyMatrix: the score matrix R, every task after every task
calibration.py calibration error, and the paired difference of two models' log-likelihoods
metrics.py     AP, BWT, forgetting, LA, FWT: formulas on the score matrix
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from gorp.evaluation.matrix import AccuracyMatrix
from gorp.evaluation.metrics import FORMULAS, MEANINGS, seen_performance, summary


if TYPE_CHECKING:
    from gorp.evaluation.batches import EvalConfig, can_be_padded
    from gorp.evaluation.compare import comparison, normalise
    from gorp.evaluation.generate import generate_answers
    from gorp.evaluation.inspect import inspect_task
    from gorp.evaluation.rank import rank_labels
    from gorp.evaluation.score import TaskScore, score_task


__all__ = [
    "FORMULAS",
    "MEANINGS",
    "AccuracyMatrix",
    "EvalConfig",
    "TaskScore",
    "can_be_padded",
    "comparison",
    "generate_answers",
    "inspect_task",
    "normalise",
    "rank_labels",
    "score_task",
    "seen_performance",
    "summary",
]

_MODULES = {
    "EvalConfig": "batches",
    "can_be_padded": "batches",
    "comparison": "compare",
    "generate_answers": "generate",
    "inspect_task": "inspect",
    "rank_labels": "rank",
    "TaskScore": "score",
    "normalise": "compare",
    "score_task": "score",
}
"""Names whose modules import torch and transformers; each module is imported on first use."""


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
