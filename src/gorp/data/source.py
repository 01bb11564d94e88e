"""The rows of one part of a task, train or eval, as its entry in `tasks:` names them.

A source is opened once: the first row is read, columns that are to be renamed are looked for, and declared labels are
read. Its rows can then be read any number of times, one by one.
"""

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import datasets
from datasets import ClassLabel

from gorp.data.files import iter_rows, names_a_file
from gorp.data.folders import local_files
from gorp.data.rows import OnBad, OnBytes, Row, ignore_bytes, names, raise_bad
from gorp.data.spec import TaskSpec
from gorp.data.tables import class_labels
from gorp.errors import DataError, nearest, shown


@dataclass(frozen=True, kw_only=True)
class Source:
    """Rows with renamed columns, and the label set if the source declares one."""

    first: Row
    """The first row, with renamed columns."""
    labels: tuple[str, ...] | None
    """The labels that the source declares."""
    files: tuple[Path, ...] = ()
    """The files, in order; none for a hub data set."""
    replaced: tuple[str, ...] = ()
    """Columns that were replaced by a renamed column."""
    columns: dict[str, str] = field(default_factory=dict)
    """Columns to rename."""
    declared: dict[str, ClassLabel] = field(default_factory=dict)
    """Columns, as named in the files, that hold label numbers."""
    table: tuple[Row, ...] | None = None
    """The rows of a hub data set, or of a folder that `datasets` reads."""

    def rows(
        self, *, bad: OnBad = raise_bad, at: OnBytes = ignore_bytes, only: Collection[int] | None = None
    ) -> Iterator[Row]:
        """Read all rows, one by one.

        Args:
            bad: Called with the error of a row that cannot be used, which is left out if it returns.
            at: Called now and then with the number of bytes read.
            only: Numbers of the rows that are wanted; others may be left out, which saves parsing them.

        Raises:
            DataError: If no further row can be read.
        """
        declared = _rename(self.declared, self.columns)
        for row in self._all(bad, at, only):
            if self.columns or declared:  # a copy: the rows of a table are read again
                row = Row(row.place, _rename(row.values, self.columns), row.number)
            try:
                for column, feature in declared.items():
                    _replace_label_number(row, column, feature)
            except DataError as error:
                bad(error)
                continue
            yield row

    def _all(self, bad: OnBad, at: OnBytes, only: Collection[int] | None) -> Iterator[Row]:
        if self.table is not None:
            yield from self.table
        before = 0
        for file in self.files:
            yield from iter_rows(file, bad=bad, at=lambda done, before=before: at(before + done), only=only)
            before += file.stat().st_size

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.stat().st_size for file in self.files)


def open_source(part: str, spec: TaskSpec, *, split: str) -> Source:
    """Open the rows of a part of a task.

    Args:
        part: "train" or "eval".
        spec: The task.
        split: Split of a folder or a hub data set.

    Raises:
        DataError: If there are no such rows, or the first one is invalid.
        ConfigError: If `spec` sets an option that this kind of source does not use.
    """
    source = spec.train if part == "train" else spec.eval or spec.train
    if is_file(source):
        spec.refuse_unused(f"the file {source}", "split" if part == "train" else "eval_split")
        if is_file(spec.train) and is_file(spec.eval or spec.train):
            spec.refuse_unused("files", "subset", "eval_split")
        return _files([Path(source)], spec)
    if not os.path.isdir(source) and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", source):
        raise DataError(
            f"task {spec.name}: {shown(source)}: no such file or folder, and not the id of a hub data set. "
            f"Correct `{part}`."
        )
    return _dataset(source, spec, split)


def is_file(source: str) -> bool:
    """Whether `source` is a file, possibly a missing one, and not a folder or the id of a hub data set."""
    return not os.path.isdir(source) and (os.path.exists(source) or names_a_file(source))


def _dataset(source: str, spec: TaskSpec, split: str) -> Source:
    """Open a hub data set or a folder of files, with `datasets.load_dataset` if gorp cannot read the files itself."""
    try:
        if os.path.isdir(source) and (files := local_files(Path(source), spec.subset, split)):
            return _files(files, spec)
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
    place = f"{source}[{split}], row"
    rows = tuple(Row(f"{place} {index} (counted from 0)", row, index + 1) for index, row in enumerate(values))
    declared = {name: type for name, type in table.features.items() if isinstance(type, ClassLabel)}
    return _opened(spec, rows[0], declared, table=rows)


def _files(files: list[Path], spec: TaskSpec) -> Source:
    """Open files. Parquet files may declare labels, which must be the same in each file."""
    first: Row | None = None
    declared: list[dict[str, ClassLabel]] = []
    for file in files:
        errors: list[DataError] = []
        rows = iter_rows(file, bad=lambda error, errors=errors: None if errors else errors.append(error))
        found = next(chain(rows, [None]))  # the first whole row; the others are read with the rest
        if found is None:
            raise errors[0]
        first = found if first is None else first
        declared.append(class_labels(file) if file.suffix.lower() == ".parquet" else {})
        if declared[-1] != declared[0]:
            raise DataError(
                f"{file}: its labels differ from those of {files[0]}. Write both with the same `ClassLabel`."
            )
    assert first is not None
    return _opened(spec, first, declared[0], files=tuple(files))


def _opened(spec: TaskSpec, first: Row, declared: dict[str, ClassLabel], **rows: Any) -> Source:
    for old in spec.columns:
        if old not in first.values:
            raise DataError(
                f"{first.place}: `columns` renames `{shown(old)}`, but there is no such column; "
                f"found: {names(first.values)}.{nearest(old, first.values)}"
            )
    replaced = tuple(new for new in spec.columns.values() if new in first.values and new not in spec.columns)
    renamed = _rename(declared, spec.columns)
    return Source(
        first=Row(first.place, _rename(first.values, spec.columns), first.number),
        labels=tuple(renamed["label"].names) if "label" in renamed else None,
        replaced=replaced,
        columns=spec.columns,
        declared=declared,
        **rows,
    )


def _replace_label_number(row: Row, column: str, feature: ClassLabel) -> None:
    """Replace a label number by its name, in place. A number without a name is an error in the column `label` only."""
    number = row.values[column]
    if number is not None and 0 <= number < len(feature.names):
        row.values[column] = feature.names[number]
    elif column == "label":
        raise DataError(
            f"{row.place}: label {number} has no name. This split may have been published without labels; "
            f"use another one."
        )


def _rename(values: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    # A renamed column replaces an existing column of the same name.
    kept = {name: value for name, value in values.items() if name not in columns and name not in columns.values()}
    return kept | {new: values[old] for old, new in columns.items() if old in values}
