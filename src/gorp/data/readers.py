"""Read one entry of `tasks:` as a `Task`, from local files, hub data sets, or folders of the CL benchmark."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import datasets
from datasets import ClassLabel, Dataset
from transformers import PreTrainedTokenizerBase

from gorp.data.cl_benchmark import load_cl_benchmark
from gorp.data.encode import Encoding
from gorp.data.files import names_a_file, read_rows
from gorp.data.folders import local_files
from gorp.data.formats import ANSWERS, TURNS, detect_format, render_rows, unused
from gorp.data.rows import Row, names
from gorp.data.tables import class_labels
from gorp.data.task import METRICS, Task, build_task, check_metric, check_names, limited
from gorp.data.templates import Template
from gorp.data.turns import read_turns
from gorp.errors import ConfigError, DataError, nearest, shown
from gorp.ranges import COUNT, NOT_NEGATIVE, check_ranges


FORMATS = ("auto", *ANSWERS, *TURNS, "cl_benchmark")

NAMED_LABELS = 12
"""Most labels that a note names; the files of a version list all of them."""


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One entry of `tasks:`: where a task's rows are, and in which format.

    Raises:
        ConfigError: If a value is invalid, before any file is read.

    Example:
        >>> from gorp import TaskSpec
        >>> TaskSpec(name="october", train="october.jsonl", metric="label_ranking").eval is None  # split off train
        True
    """

    name: str
    """Unique; letters, digits, dot, underscore, hyphen."""
    train: str
    """A .jsonl, .json, .csv, .tsv or .parquet file, a folder, or the id of a hub data set."""
    eval: str | None = None
    """The same for the evaluation rows. None: `eval_split` is used; if that is None too, rows are split off train."""
    format: str = "auto"
    """One of `FORMATS`; `auto` detects it from the first row."""
    subset: str | None = None
    """For a hub data set or a folder: name of its configuration."""
    split: str | None = None
    """For a hub data set or a folder: the split to train on; None for `train`."""
    eval_split: str | None = None
    """For a hub data set or a folder: the split with the evaluation rows, of `eval` or, if that is None, of `train`."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns to rename, {name in the file: new name}, for example {review: text}."""
    template: str | None = None
    """For `text_label` and `alpaca`: the prompt, with columns in braces, `?` after one that may be blank, and
    `{labels}` for the label set."""
    labels: list[str] | None = None
    """The closed label set, in the order in which the prompt lists it. For `text_label`, None collects it from the
    training rows."""
    metric: str | None = None
    """`exact_match` (None) or `label_ranking`."""
    dev_rows: Annotated[int, NOT_NEGATIVE] = 0
    """Rows split off train for a dev set, at most a fifth of train; 0 for none."""
    limit_train: Annotated[int, COUNT] | None = None
    """Rows of train to keep, balanced over the labels; None for all."""
    limit_eval: Annotated[int, COUNT] | None = None
    """Rows of eval to keep, balanced over the labels; None for all."""
    task_name_in_prompt: bool = False
    """CL benchmark only: begin the prompt with the task's name."""

    def __post_init__(self) -> None:
        check_names([self.name])
        for option, value, known in (("format", self.format, FORMATS), ("metric", self.metric or METRICS[0], METRICS)):
            if value not in known:
                wanted = f"wanted one of {', '.join(known)}.{nearest(value, known)}"
                raise ConfigError(f"task {self.name}: {option} `{shown(value)}` is unknown; {wanted}")
        check_ranges(self, f"task {self.name}: ")
        self._check_labels()
        if self.template is not None:
            Template(self.template)

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        for label in self.labels:
            if not isinstance(label, str) or not label.strip():
                hint = "Write quotes around words like true, no and 1."
                raise ConfigError(f"task {self.name}: label {label!r} is blank or not text. {hint}")
        if not self.labels or len(set(self.labels)) < len(self.labels):
            found = names(self.labels)
            raise ConfigError(f"task {self.name}: labels are {found}; wanted at least one label, and no label twice.")


@dataclass(frozen=True, kw_only=True)
class _Table:
    """Rows with renamed columns, and the label set if the source declares one."""

    rows: list[Row]
    labels: tuple[str, ...] | None
    replaced: tuple[str, ...] = ()
    """Columns that were replaced by a renamed column."""


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
    train = _read("train", spec, split=spec.split or "train")
    format = detect_format(train.rows[0], template=spec.template) if spec.format == "auto" else spec.format
    _refuse_unused(spec, format, "task_name_in_prompt", *(() if format in ("text_label", "alpaca") else ("template",)))
    held_out = None
    if spec.eval is not None or spec.eval_split is not None:
        held_out = _read("eval", spec, split=spec.eval_split or "test")
    labels, notes = _label_set(spec, format, train)
    check_metric(spec.metric or "exact_match", labels)
    layout = {"format": format, "template": spec.template, "labels": labels}
    chat = {"tokenizer": tokenizer, "date": date}
    train_rows = render_rows(train.rows, **layout, **chat)
    notes += tuple(unused(train.rows, **layout))
    if format in TURNS:
        notes += _chat_notes(train.rows, TURNS[format])
    if train.replaced:
        notes += (f"`columns` replaces existing columns: {names(f'`{name}`' for name in train.replaced)}",)
    return build_task(
        name=spec.name,
        train=train_rows,
        evaluation=render_rows(held_out.rows, **layout, **chat) if held_out else None,
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
    table = _read("eval", spec, split="test")
    format = detect_format(table.rows[0], template=spec.template) if spec.format == "auto" else spec.format
    rows = render_rows(table.rows, format=format, template=spec.template, labels=labels, tokenizer=tokenizer, date=date)
    return limited("eval", rows, spec.limit_eval, labels=labels, seed=seed)


def _chat_notes(rows: list[Row], column: str) -> tuple[str, ...]:
    several = sum([turn["role"] for turn in read_turns(row, column)].count("assistant") > 1 for row in rows)
    note = f"{several} of {len(rows)} conversations have several answers; only the last one is trained"
    return (note,) if several else ()


def _load_cl_benchmark(spec: TaskSpec, seed: int) -> Task:
    """Load a task whose `train` is a data set's folder, or the benchmark's root if the task has the data set's name."""
    _refuse_unused(spec, "cl_benchmark", "eval", "subset", "split", "eval_split", "columns", "template", "labels")
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


def _refuse_unused(spec: TaskSpec, source: str, *options: str) -> None:
    """Raise ConfigError if one of `options` is set, because it would be ignored."""
    for option in options:
        if getattr(spec, option):
            raise ConfigError(f"task {spec.name}: `{option}` is not used for `{source}`. Remove it.")


def _read(part: str, spec: TaskSpec, *, split: str) -> _Table:
    source = spec.train if part == "train" else spec.eval or spec.train
    if _is_file(source):
        _refuse_unused(spec, f"the file {source}", "split" if part == "train" else "eval_split")
        if _is_file(spec.train) and _is_file(spec.eval or spec.train):
            _refuse_unused(spec, "files", "subset", "eval_split")
        return _read_files([Path(source)], spec)
    if not os.path.isdir(source) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(
            f"task {spec.name}: {shown(source)}: no such file or folder, and not the id of a hub data set. "
            f"Correct `{part}`."
        )
    return _read_dataset(source, spec, split)


def _is_file(source: str) -> bool:
    """Whether `source` is a file, possibly a missing one, and not a folder or the id of a hub data set."""
    return not os.path.isdir(source) and (os.path.exists(source) or names_a_file(source))


def _read_dataset(source: str, spec: TaskSpec, split: str) -> _Table:
    """Read a hub data set or a folder of files, with `datasets.load_dataset` if gorp cannot read the files itself."""
    try:
        if os.path.isdir(source) and (files := local_files(Path(source), spec.subset, split)):
            return _read_files(files, spec)
        table = datasets.load_dataset(source, spec.subset, split=split, keep_in_memory=True)
        values = [dict(row) for row in table]
    except DataError:
        raise
    except Exception as error:  # network, hub, parsers and image decoders raise errors of many types
        raise DataError(
            f"task {spec.name}: cannot load the split `{split}` of the data set `{source}`: {shown(str(error), 500)} "
            f"Check the name, `subset`, the split, and the network; a local file must exist."
        ) from error
    if not values:
        raise DataError(f"task {spec.name}: the split `{split}` of `{source}` is empty; wanted at least one row.")
    rows = [Row(f"{source}[{split}], row {index} (counted from 0)", row) for index, row in enumerate(values)]
    return _table(rows, spec, {name: type for name, type in table.features.items() if isinstance(type, ClassLabel)})


def _read_files(files: list[Path], spec: TaskSpec) -> _Table:
    """Read the rows of all files. Parquet files may declare labels, which must be the same in each file."""
    rows: list[Row] = []
    declared: list[dict[str, ClassLabel]] = []
    for file in files:
        rows += read_rows(file)
        declared.append(class_labels(file) if file.suffix.lower() == ".parquet" else {})
        if declared[-1] != declared[0]:
            raise DataError(
                f"{file}: its labels differ from those of {files[0]}. Write both with the same `ClassLabel`."
            )
    return _table(rows, spec, declared[0])


def _table(rows: list[Row], spec: TaskSpec, declared: dict[str, ClassLabel]) -> _Table:
    """Rename the columns, and replace label numbers by label names in the columns of `declared`."""
    replaced = tuple(new for new in spec.columns.values() if new in rows[0].values and new not in spec.columns)
    rows = _renamed(rows, spec.columns)
    declared = _rename(declared, spec.columns)
    for column, feature in declared.items():
        _replace_label_numbers(rows, column, feature)
    labels = tuple(declared["label"].names) if "label" in declared else None
    return _Table(rows=rows, labels=labels, replaced=replaced)


def _replace_label_numbers(rows: list[Row], column: str, feature: ClassLabel) -> None:
    """Replace label numbers by names, in place. A number without a name is an error in the column `label` only."""
    for row in rows:
        number = row.values[column]
        if number is not None and 0 <= number < len(feature.names):
            row.values[column] = feature.names[number]
        elif column == "label":
            raise DataError(
                f"{row.place}: label {number} has no name. This split may have been published without labels; "
                f"use another one."
            )


def _renamed(rows: list[Row], columns: dict[str, str]) -> list[Row]:
    if not columns:
        return rows
    for old in columns:
        if old not in rows[0].values:
            raise DataError(
                f"{rows[0].place}: `columns` renames `{shown(old)}`, but there is no such column; "
                f"found: {names(rows[0].values)}.{nearest(old, rows[0].values)}"
            )
    return [Row(row.place, _rename(row.values, columns)) for row in rows]


def _rename(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    # A renamed column replaces an existing column of the same name.
    kept = {name: value for name, value in values.items() if name not in columns and name not in columns.values()}
    return kept | {new: values[old] for old, new in columns.items() if old in values}


def _label_set(spec: TaskSpec, format: str, train: _Table) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    if spec.labels is not None:
        return tuple(spec.labels), ()
    if format != "text_label":
        return None, ()
    if train.labels is not None:
        return train.labels, ()
    found = {label for row in train.rows if isinstance(label := row.values.get("label"), str) and label.strip()}
    if not found:  # no row has a label: render_rows raises the error, with file and line
        return None, ()
    labels = sorted(found)
    more = f", … ({len(labels)} in total)" if len(labels) > NAMED_LABELS else ""
    return tuple(labels), (f"the label set was taken from train: {', '.join(labels[:NAMED_LABELS])}{more}",)


def _source(spec: TaskSpec) -> str:
    place = spec.train if spec.subset is None else f"{spec.train}/{spec.subset}"
    return place if spec.split is None else f"{place}[{spec.split}]"
