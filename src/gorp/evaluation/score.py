"""Score a model on a task: answer every row, compare with the expected answer, and keep every answer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module
from transformers import PreTrainedTokenizerBase

from gorp.data import Encoding, Form, Task, encode_completions, forms_of
from gorp.data.cl_benchmark import NO_LABEL
from gorp.data.split import columns, draw_stratified
from gorp.errors import DataError, nearest
from gorp.evaluation.batches import EvalConfig, Progress, is_encoder_decoder
from gorp.evaluation.compare import comparison, is_right
from gorp.evaluation.generate import answer_prompts
from gorp.evaluation.rank import rank_labels


SPLITS = ("eval", "dev", "train")
"""The splits of a task that can be scored."""


@dataclass(frozen=True, kw_only=True)
class TaskScore:
    """Score of a model on a task."""

    task: str
    """Name of the task."""

    metric: str
    """`exact_match`: the generated answer must equal the expected one. `label_ranking`: the most likely label must."""

    score: float
    """Correct rows in percent, 0 to 100."""

    rows: int
    """Rows scored."""

    samples: list[dict[str, Any]]
    """One entry per row: `index` (in the split), `prompt`, `expected`, `answer`, `correct`, and if asked for
    `probability` and `nll`; see `score_task`."""


def score_task(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    task: Task,
    *,
    split: str = "eval",
    encoding: Encoding,
    config: EvalConfig,
    likelihood: bool = False,
    progress: Progress | None = None,
) -> TaskScore:
    """Answer the rows of one split of `task` and count the correct ones.

        score = 100 · (rows whose answer is the completion) / rows

    `comparison` decides how an answer is compared with the completion. With `likelihood`, each row also has

        nll            -(1/n) Σₜ log p(yₜ | prompt, y₁ … yₜ₋₁), in nats per token: y is the completion with its end, or
                       of a generated answer its first n tokens if it may not be longer
        probability    that the model gave to its own answer: of labels the softmax over their log-likelihoods, of
                       a generated answer exp Σₜ log p of its tokens

    Either is None where it is not a finite number, and `nll` where the completion is none of the labels.

    Args:
        model: A transformers model, or a PEFT model around one.
        tokenizer: The model's tokenizer.
        task: The task; its `metric` decides whether answers are generated or labels ranked.
        split: "eval", "dev" or "train".
        encoding: Limits on the tokens of a prompt, as in training.
        config: Batch size, length of an answer, and number of rows.
        likelihood: Whether to compute them. The answers are the same.
        progress: Called with (rows done, all rows) after every batch.

    Raises:
        DataError: If the task does not have the split, or labels are ranked and the answer of a row is not one of them;
            before the model is used.

    Example:
        >>> from gorp import Encoding, EvalConfig, ModelConfig, TaskSpec, load_model, load_task, score_task
        >>> model, tokenizer = load_model(ModelConfig(path="gorp-tiny-t5"), "cpu")
        >>> ranked = {"labels": ["yes", "no"], "metric": "label_ranking"}
        >>> task = load_task(TaskSpec(name="october", train="october.jsonl", **ranked))
        >>> score = score_task(model, tokenizer, task, encoding=Encoding(), config=EvalConfig(limit=4))
        >>> score.rows, 0.0 <= score.score <= 100.0
        (4, True)
    """
    rows, forms = _rows(task, split, config.limit)
    prompts = [row["prompt"] for row in rows]
    options: Any = {"encoding": encoding, "config": config, "forms": forms, "progress": progress}
    if task.metric == "label_ranking":
        labels = _labels(task, split, rows)
        ranked = rank_labels(model, tokenizer, prompts, labels, **options)
        answers = [max(scores, key=scores.__getitem__) for scores in ranked]  # of equal scores the first label
        certainty = _of_labels(model, tokenizer, rows, forms, ranked) if likelihood else [{}] * len(rows)
    else:
        expected = [row["expected"] for row in rows] if likelihood else None
        found = answer_prompts(model, tokenizer, prompts, expected, **options)
        answers = [answer.text for answer in found]
        certainty = [_certainty(each.log_probability, each.nll) if likelihood else {} for each in found]
    name = comparison(task)
    samples = [
        {**row, "answer": answer, "correct": is_right(answer, row["expected"], name), **facts}
        for row, answer, facts in zip(rows, answers, certainty, strict=True)
    ]
    score = 100.0 * sum(sample["correct"] for sample in samples) / len(samples)
    return TaskScore(task=task.name, metric=task.metric, score=score, rows=len(samples), samples=samples)


def _rows(task: Task, split: str, limit: int | None) -> tuple[list[dict[str, Any]], list[Form]]:
    """Return the rows to score: all, or `limit` of them, stratified by answer and independent of the file's order."""
    if split not in SPLITS:
        raise DataError(f"split: got `{split}`; wanted one of {', '.join(SPLITS)}." + nearest(split, SPLITS))
    dataset = getattr(task, split)
    if dataset is None:
        raise DataError(
            f"task `{task.name}` has no `{split}` rows. Score another split, or load the task with `dev_rows`."
        )
    chosen = draw_stratified(dataset, len(dataset) if limit is None else limit, seed=0)
    part = dataset.select(chosen, keep_in_memory=True)
    return [
        {"index": index, "prompt": prompt, "expected": completion}
        for index, prompt, completion in zip(chosen, *columns(part), strict=True)
    ], forms_of(part)


def _labels(task: Task, split: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the labels to rank; raise DataError if a row expects an answer that is not one of them."""
    labels = list(task.labels or ())
    for row in rows:
        if row["expected"] not in (*labels, NO_LABEL):
            raise DataError(
                f"task `{task.name}`, {split} row {row['index']}: the expected answer `{row['expected']}` is not one of"
                f" its labels {labels}. Correct the row, or add the label."
            )
    return labels


def _of_labels(
    model: Module,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict[str, Any]],
    forms: Sequence[Form],
    ranked: Sequence[dict[str, float]],
) -> list[dict[str, float | None]]:
    """Return `nll` and `probability` of each row from the log-likelihoods of its labels."""
    ids = encode_completions(
        [row["expected"] for row in rows],
        tokenizer,
        prompts=[row["prompt"] for row in rows],
        encoder_decoder=is_encoder_decoder(model),
        forms=forms,
    )
    found = []
    for row, answer, scores in zip(rows, ids, ranked, strict=True):
        own = torch.tensor(list(scores.values()), dtype=torch.float64).log_softmax(dim=0).max().item()
        right = scores.get(row["expected"])
        found.append(_certainty(own, None if right is None else -right / len(answer)))
    return found


def _certainty(log_probability: float | None, nll: float | None) -> dict[str, float | None]:
    probability = None if log_probability is None else math.exp(log_probability)
    return {"probability": _finite(probability), "nll": _finite(nll)}


def _finite(value: float | None) -> float | None:
    """Return `value` with six decimals; None if it is not finite (JSON has no other way to write that)."""
    return None if value is None or not math.isfinite(value) else round(value, 6)
