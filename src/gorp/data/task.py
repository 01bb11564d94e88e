"""A task: rows of prompt and completion to train on, rows to be judged by, and what was noticed while reading them."""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

import datasets
from datasets import Dataset

from gorp.data.form import listed
from gorp.data.split import conflicts, cut_dev, draw_balanced, draw_stratified, overlap, repeated, same_rows
from gorp.errors import ConfigError, DataError, shown


# Thousands of short tables are made in a run; a bar for each would bury the log.
datasets.disable_progress_bars()

METRICS = ("exact_match", "label_ranking")
"""How answers are judged: the generated text equals the completion, or the completion is the likeliest label."""

LONGEST_NAME = 100
"""Characters of a task's name; files are called by it and more."""

COLUMNS = ["prompt", "completion"]
"""Of a task's rows; beside them `form`, where rows are not plain text."""

MAX_CUT_EVAL_ROWS = 1000
"""Rows cut from train, at most a fifth of them, when a task brings no evaluation rows."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the sequence, its prompts already rendered.

    Raises:
        ConfigError: For a name that cannot be a file name, an unknown metric, or a ranking without labels.
        DataError: For a set of rows without the two columns, or without rows.
    """

    name: str
    """Unique in a sequence; letters, digits, dot, underscore and hyphen, because it becomes a file name."""
    train: Dataset | None
    """Columns `prompt` and `completion`, both str; None for a task that is learned already and only judged."""
    dev: Dataset | None
    """Cut from train, shares no input with it; None when none was wanted or none could be spared."""
    eval: Dataset
    """The rows a score is computed on; same columns. Never looked at while training."""
    labels: tuple[str, ...] | None
    """The closed set of answers, in the order the prompt names them; None for free text."""
    metric: str
    """One of `METRICS`."""
    source: str
    """Where the rows came from, for the record."""
    notes: tuple[str, ...] = ()
    """What the reader noticed, a sentence each."""

    def __post_init__(self) -> None:
        check_names([self.name])
        check_metric(self.metric, self.labels)
        for part, rows in (("train", self.train), ("dev", self.dev), ("eval", self.eval)):
            if rows is None:
                continue
            if sorted(set(rows.column_names) - {"form"}) != sorted(COLUMNS):
                raise DataError(
                    f"task {self.name}: {part} has the columns {', '.join(rows.column_names) or 'none'}; wanted "
                    f"`prompt` and `completion`. Use `load_task`, or rename the columns."
                )
            if not len(rows):
                raise DataError(f"task {self.name}: {part} has no rows; at least one is wanted.")


def rows_fingerprint(rows: Dataset) -> str:
    """SHA-256 over prompts, completions and forms in their order: two sets of rows are equal when it is the same."""
    digest = hashlib.sha256(f"{len(rows)}\n".encode())
    for row in listed(rows):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def check_names(names: Iterable[str]) -> None:
    """Refuse names that cannot be file names, and two tasks whose files would be the same.

    Raises:
        ConfigError: For the first name that is wrong. Names that differ only in case are the same file on some systems.
    """
    seen: dict[str, str] = {}
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"task name `{shown(name, 40)}`: it becomes a file name and may have {LONGEST_NAME} characters. "
                f"Shorten it."
            )
        if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name in {".", ".."}:
            raise ConfigError(
                f"task name `{name}`: it becomes a file name, so only letters, digits, `.`, `_` and `-` are allowed, "
                f"and at least one of them. Rename the task."
            )
        if name.lower() in seen:
            raise ConfigError(
                f"two tasks are called `{seen[name.lower()]}` and `{name}`: their files would overwrite each other "
                f"(some systems ignore case). Rename one of them."
            )
        seen[name.lower()] = name


def check_metric(metric: str, labels: Iterable[str] | None) -> None:
    """Refuse an unknown metric, and a ranking of labels that are not given.

    Raises:
        ConfigError: In both cases.
    """
    if metric not in METRICS:
        raise ConfigError(f"metric `{metric}` is unknown; wanted one of {', '.join(METRICS)}.")
    if metric == "label_ranking" and labels is None:
        raise ConfigError("metric `label_ranking` ranks a closed label set, but the task has none. Give `labels`.")


def build_task(
    *,
    name: str,
    train: Dataset,
    evaluation: Dataset | None,
    labels: tuple[str, ...] | None,
    metric: str,
    source: str,
    seed: int,
    dev_rows: int,
    limit_train: int | None,
    limit_eval: int | None,
    notes: tuple[str, ...] = (),
) -> Task:
    """Cut, limit and inspect two sets of rows, in this order: eval (if missing), notes, dev, limits.

    So the dev and eval sets do not depend on `limit_train`, and the notes speak of the rows as they came.

    Args:
        name: Name of the task.
        train: All rows to train on; dev, and eval if there is none, are cut from them.
        evaluation: Rows to be judged by, or None.
        labels: The closed label set, or None.
        metric: One of `METRICS`.
        source: Where the rows came from.
        seed: Decides which rows are cut. Keep it when the seed of the training changes, or scores cannot be compared.
        dev_rows: Rows wanted for dev; 0 for none.
        limit_train: Rows of train kept, balanced over `labels`; None for all.
        limit_eval: Rows of eval kept, likewise.
        notes: What the reader noticed before.

    Raises:
        DataError: If there are no rows to cut an evaluation set from.
    """
    found = list(notes)
    if evaluation is None:
        all_rows = len(train)
        train, evaluation = cut_dev(train, MAX_CUT_EVAL_ROWS, seed)
        if evaluation is None:
            fifth = all_rows // 5
            why = f"every prompt has more than {fifth} copies, a fifth of the rows" if fifth else "that is too few"
            raise DataError(
                f"task {name}: no `eval` was given, and none can be cut from {all_rows} rows: {why}. Give one."
            )
        together = ", all copies of a prompt together" if repeated(evaluation) else ""
        found.append(f"no eval given: {len(evaluation)} of {all_rows} rows were cut from train{together}")
    found += _observations(train, evaluation)
    train, dev = cut_dev(train, dev_rows, seed)
    train, less = limited("train", train, limit_train, labels=labels, seed=seed)
    evaluation, fewer = limited("eval", evaluation, limit_eval, labels=labels, seed=seed)
    return Task(
        name=name,
        train=train,
        dev=dev,
        eval=evaluation,
        labels=labels,
        metric=metric,
        source=source,
        notes=(*found, *less, *fewer),
    )


def _observations(train: Dataset, evaluation: Dataset) -> list[str]:
    found = []
    if same_rows(train, evaluation):
        found.append("eval holds the same rows as train: its score is a training score")
    elif shared := overlap(train, evaluation):
        found.append(f"{shared} of {len(evaluation)} eval inputs also occur in train")
    for part, rows in (("train", train), ("eval", evaluation)):
        if doubtful := conflicts(rows):
            found.append(f"{doubtful} inputs of {part} occur with different completions")
    return found


def limited(
    part: str, rows: Dataset, limit: int | None, *, labels: tuple[str, ...] | None, seed: int
) -> tuple[Dataset, tuple[str, ...]]:
    """At most `limit` rows of a part of a task, and the note that says so.

    Args:
        part: "train" or "eval", for the note.
        rows: All of them.
        limit: Rows to keep; None for all.
        labels: Balanced over these, or stratified by completion where there are none.
        seed: Decides which.
    """
    if limit is None or limit >= len(rows):
        return rows, ()
    if labels is None:
        drawn, how = draw_stratified(rows, limit, seed=seed), "stratified"
    else:
        drawn, how = draw_balanced(rows, limit, labels=labels, seed=seed), "balanced over the labels"
    note = f"{part} was limited to {len(drawn)} of {len(rows)} rows, {how}"
    return rows.select(drawn, keep_in_memory=True), (note,)
