"""Read one entry of `tasks:` as a `Task`, from local files, hub data sets, or folders of the CL benchmark."""

import os
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.cl_benchmark import load_cl_benchmark
from gorp.data.encode import Encoding
from gorp.data.formats import TURNS, detect_format, render_rows, unused
from gorp.data.rows import Row, names
from gorp.data.source import Source, open_source
from gorp.data.spec import TaskSpec
from gorp.data.task import Task, build_task, check_metric, limited
from gorp.data.turns import read_turns


NAMED_LABELS = 12
"""Most labels that a note names; the files of a version list all of them."""


def load_task(
    spec: TaskSpec,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    date: str = Encoding.date,
) -> Task:
    """Read a task.

    Args:
        spec: Source and format of the rows.
        tokenizer: The model's; only `messages` and `sharegpt` need it, for its chat template.
        seed: Seed of the dev and eval splits and of the limits.
        date: For chats: the date that the chat template writes as today's; see `Encoding`.

    Raises:
        DataError: If a row is invalid; the message has the file and line.
        ConfigError: If `spec` sets an option that its format or source does not use.

    Example:
        >>> from gorp import TaskSpec, load_task
        >>> task = load_task(TaskSpec(name="october", train="october.jsonl"))  # {"prompt": ..., "completion": ...}
        >>> task.train.column_names, len(task.train) + len(task.eval)
        (['prompt', 'completion'], 40)
    """
    if spec.format == "cl_benchmark" or (spec.format == "auto" and os.path.isfile(Path(spec.train, "labels.json"))):
        return _load_cl_benchmark(spec, seed)
    train = open_source("train", spec, split=spec.split or "train")
    all_rows = list(train.rows())
    format = format_of(spec, train)
    held_out = None
    if spec.eval is not None or spec.eval_split is not None:
        held_out = list(open_source("eval", spec, split=spec.eval_split or "test").rows())
    labels, notes = label_set(spec, format, train, all_rows)
    check_metric(spec.metric or "exact_match", labels)
    layout = {"format": format, "template": spec.template, "labels": labels}
    chat = {"tokenizer": tokenizer, "date": date}
    train_rows = render_rows(all_rows, **layout, **chat)
    notes += tuple(unused(all_rows, **layout))
    if format in TURNS:
        notes += _chat_notes(all_rows, TURNS[format])
    if train.replaced:
        notes += (f"`columns` replaces existing columns: {names(f'`{name}`' for name in train.replaced)}",)
    return build_task(
        name=spec.name,
        train=train_rows,
        evaluation=render_rows(held_out, **layout, **chat) if held_out else None,
        labels=labels,
        metric=spec.metric or "exact_match",
        source=_source(spec),
        seed=seed,
        dev_rows=spec.dev_rows,
        limit_train=spec.limit_train,
        limit_eval=spec.limit_eval,
        notes=notes,
    )


def load_evaluation(
    spec: TaskSpec,
    *,
    labels: tuple[str, ...] | None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    seed: int = 0,
    date: str = Encoding.date,
) -> tuple[Dataset, tuple[str, ...]]:
    """Read only the rows of `spec.eval`, for a learned task whose training rows are not needed any more.

    Args:
        spec: Source and format of the rows; `eval` is a file.
        labels: The closed label set of the task, or None.
        tokenizer: As in `load_task`.
        seed: Seed of `limit_eval`.
        date: As in `load_task`.

    Returns:
        The evaluation rows, and notes.

    Raises:
        DataError: If a row is invalid; the message has the file and line.
    """
    source = open_source("eval", spec, split="test")
    format = detect_format(source.first, template=spec.template) if spec.format == "auto" else spec.format
    read = list(source.rows())
    rows = render_rows(read, format=format, template=spec.template, labels=labels, tokenizer=tokenizer, date=date)
    return limited("eval", rows, spec.limit_eval, labels=labels, seed=seed)


def format_of(spec: TaskSpec, train: Source) -> str:
    """Return the format of a task's rows.

    Raises:
        DataError: If the columns of the first row fit no format.
        ConfigError: If `spec` sets an option that the format does not use.
    """
    format = detect_format(train.first, template=spec.template) if spec.format == "auto" else spec.format
    templated = format in ("text_label", "alpaca")
    spec.refuse_unused(format, "task_name_in_prompt", *(() if templated else ("template",)))
    return format


def _chat_notes(rows: list[Row], column: str) -> tuple[str, ...]:
    several = sum([turn["role"] for turn in read_turns(row, column)].count("assistant") > 1 for row in rows)
    note = f"{several} of {len(rows)} conversations have several answers; only the last one is trained"
    return (note,) if several else ()


def _load_cl_benchmark(spec: TaskSpec, seed: int) -> Task:
    """Load a task whose `train` is a data set's folder, or the benchmark's root if the task has the data set's name."""
    spec.refuse_unused("cl_benchmark", "eval", "subset", "split", "eval_split", "columns", "template", "labels")
    folder = Path(spec.train).resolve()
    is_dataset = (folder / "labels.json").is_file()
    return load_cl_benchmark(
        folder.parent if is_dataset else folder,
        folder.name if is_dataset else spec.name,
        name=spec.name,
        metric=spec.metric or "exact_match",
        task_name_in_prompt=spec.task_name_in_prompt,
        seed=seed,
        dev_rows=spec.dev_rows,
        limit_train=spec.limit_train,
        limit_eval=spec.limit_eval,
    )


def label_set(
    spec: TaskSpec, format: str, train: Source, rows: Iterable[Row]
) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Return the closed label set of a task, or None, and notes.

    Args:
        spec: May name the labels.
        format: Format of the rows.
        train: May declare the labels.
        rows: All training rows; read only if they have to tell the labels.
    """
    if spec.labels is not None:
        return tuple(spec.labels), ()
    if format != "text_label":
        return None, ()
    if train.labels is not None:
        return train.labels, ()
    found = {label for row in rows if isinstance(label := row.values.get("label"), str) and label.strip()}
    if not found:  # no row has a label: render_rows raises the error, with file and line
        return None, ()
    labels = sorted(found)
    more = f", … ({len(labels)} in total)" if len(labels) > NAMED_LABELS else ""
    return tuple(labels), (f"the label set was taken from train: {', '.join(labels[:NAMED_LABELS])}{more}",)


def _source(spec: TaskSpec) -> str:
    place = spec.train if spec.subset is None else f"{spec.train}/{spec.subset}"
    return place if spec.split is None else f"{place}[{spec.split}]"
