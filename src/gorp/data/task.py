"""A task: training rows, evaluation rows, and notes about them."""

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


# A run makes thousands of small data sets; a progress bar for each would flood the log.
datasets.disable_progress_bars()

METRICS = ("exact_match", "label_ranking")
"""When an answer is correct: the generated text equals the completion, or the completion is the most likely label."""

LONGEST_NAME = 100
"""Most characters of a task's name, which becomes part of file names."""

COLUMNS = ["prompt", "completion"]
"""Columns of a task's rows; `form` is added if rows are not plain text."""

MAX_CUT_EVAL_ROWS = 1000
"""Most rows that are split off train for evaluation if a task has no evaluation rows; never more than a fifth."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task of the sequence, with rendered prompts.

    Raises:
        ConfigError: If the name cannot be a file name, the metric is unknown, or `label_ranking` has no labels.
        DataError: If a set of rows lacks a column, or is empty.
    """

    name: str
    """Unique in a sequence; letters, digits, dot, underscore and hyphen, because it becomes a file name."""
    train: Dataset | None
    """Columns `prompt` and `completion`, both str; None for a learned task that is only scored."""
    dev: Dataset | None
    """Rows split off train that share no prompt with it; None if not wanted, or if train is too small."""
    eval: Dataset
    """Rows for scoring, with the same columns. They are never used in training."""
    labels: tuple[str, ...] | None
    """The closed set of answers, in the order in which the prompt lists them; None for free text."""
    metric: str
    """One of `METRICS`."""
    source: str
    """Where the rows came from."""
    notes: tuple[str, ...] = ()
    """Remarks about the rows that a user should know, one sentence each."""

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
                raise DataError(f"task {self.name}: {part} has no rows; wanted at least one.")


def rows_fingerprint(rows: Dataset) -> str:
    """Return the SHA-256 of prompts, completions and forms, in order. Two sets of rows are equal if theirs are."""
    digest = hashlib.sha256(f"{len(rows)}\n".encode())
    for row in listed(rows):
        digest.update(json.dumps(row).encode() + b"\n")
    return digest.hexdigest()


def check_names(names: Iterable[str]) -> None:
    """Check that task names can be file names, and that no two tasks would have the same file.

    Raises:
        ConfigError: For the first invalid name. Names that differ only in case are the same file on some systems.
    """
    seen: dict[str, str] = {}
    for name in names:
        if len(name) > LONGEST_NAME:
            raise ConfigError(
                f"task name `{shown(name, 40)}`: it becomes a file name, so it may have at most {LONGEST_NAME} "
                f"characters. Shorten it."
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
    """Check the metric.

    Raises:
        ConfigError: If it is unknown, or is `label_ranking` and there are no labels.
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
    """Build a task from its rows: split off eval if it is missing, collect notes, split off dev, and apply the limits.

    In this order, the dev and eval sets do not depend on `limit_train`, and the notes describe the rows before dev is
    split off and limits are applied.

    Args:
        name: Name of the task.
        train: All training rows; dev rows, and eval rows if there are none, are split off them.
        evaluation: Evaluation rows, or None.
        labels: The closed label set, or None.
        metric: One of `METRICS`.
        source: Where the rows came from.
        seed: Seed of the splits and limits. Keep it if the training seed changes; otherwise scores are not comparable.
        dev_rows: Rows wanted for dev; 0 for none.
        limit_train: Rows of train to keep, balanced over `labels`; None for all.
        limit_eval: Rows of eval to keep, balanced over `labels`; None for all.
        notes: Notes of the caller, which come first.

    Raises:
        DataError: If `evaluation` is None and train is too small to split off evaluation rows.
    """
    found = list(notes)
    if evaluation is None:
        all_rows = len(train)
        train, evaluation = cut_dev(train, MAX_CUT_EVAL_ROWS, seed)
        if evaluation is None:
            raise no_eval_rows(name, all_rows)
        together = ", all copies of a prompt together" if repeated(evaluation) else ""
        found.append(f"no eval given: {len(evaluation)} of {all_rows} rows of train are used as eval{together}")
    found += _overlap_notes(train, evaluation)
    train, dev = cut_dev(train, dev_rows, seed)
    train, train_note = limited("train", train, limit_train, labels=labels, seed=seed)
    evaluation, eval_note = limited("eval", evaluation, limit_eval, labels=labels, seed=seed)
    return Task(
        name=name,
        train=train,
        dev=dev,
        eval=evaluation,
        labels=labels,
        metric=metric,
        source=source,
        notes=(*found, *train_note, *eval_note),
    )


def no_eval_rows(name: str, rows: int) -> DataError:
    """Return the error of a task without `eval` whose `rows` training rows are too few or too alike to be split."""
    fifth = rows // 5
    why = f"every prompt has more than {fifth} copies, a fifth of the rows" if fifth else "there are too few"
    return DataError(
        f"task {name}: no `eval` was given, and no evaluation rows can be split off the {rows} training rows: {why}. "
        f"Give `eval`."
    )


def _overlap_notes(train: Dataset, evaluation: Dataset) -> list[str]:
    found = []
    if same_rows(train, evaluation):
        found.append("eval has the same rows as train: its score is a training score")
    elif shared := overlap(train, evaluation):
        found.append(f"{shared} of {len(evaluation)} eval prompts also occur in train")
    for part, rows in (("train", train), ("eval", evaluation)):
        if conflicting := conflicts(rows):
            found.append(f"prompts of {part} that occur with different completions: {conflicting}")
    return found


def limited(
    part: str, rows: Dataset, limit: int | None, *, labels: tuple[str, ...] | None, seed: int
) -> tuple[Dataset, tuple[str, ...]]:
    """Return at most `limit` rows, and a note if there were more.

    Args:
        part: "train" or "eval", for the note.
        rows: All rows of that part.
        limit: Rows to keep; None for all.
        labels: Label set over which the rows are balanced; None: they are stratified by completion.
        seed: Seed of the draw.
    """
    if limit is None or limit >= len(rows):
        return rows, ()
    if labels is None:
        drawn, method = draw_stratified(rows, limit, seed=seed), "stratified by completion"
    else:
        drawn, method = draw_balanced(rows, limit, labels=labels, seed=seed), "balanced over the labels"
    note = f"{part} was limited to {len(drawn)} of {len(rows)} rows, {method}"
    return rows.select(drawn, keep_in_memory=True), (note,)
