"""Rows out of tables: CSV and TSV, where everything is text, and Parquet, which knows its types."""

import csv
import io
from pathlib import Path

import pyarrow
from datasets import ClassLabel, Features
from pyarrow import parquet

from gorp.data.rows import MAX_CHARACTERS, Row, names
from gorp.errors import DataError, shown


def read_delimited(path: Path, content: bytes, *, tab: bool) -> list[Row]:
    """The rows of a CSV or TSV file: the first line names the columns, `"` may enclose a field, `""` is a quote in it.

    A column without a name, such as the index that pandas writes, is called `Unnamed: 0`, with its place, as pandas
    and `datasets` call it.

    Nothing is guessed: `007` and `true` are text as they stand, and an empty field is empty text. Lines without any
    character are skipped.

    Args:
        path: For messages.
        content: What the file holds, without a byte order mark; not empty.
        tab: Whether tabs separate the fields, and not commas.

    Raises:
        DataError: With the line where the row begins: text that is not UTF-8, a quote that is not closed, a column
            named twice, a row with more or fewer fields than there are columns.
    """
    text = _decoded(path, content)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    usual = csv.field_size_limit(max(len(text), MAX_CHARACTERS))  # one for the whole process
    line = 1
    try:
        for fields in reader:
            place = f"{path}, line {line}"
            line = reader.line_num + 1
            if not fields:
                continue
            if header is None:
                header = _header(place, fields, tab=tab)
            elif len(fields) != len(header):
                raise DataError(
                    f"{place}: {len(fields)} fields, but the first line names {len(header)} columns: {names(header)}. "
                    f'Put `"` around text that holds a {"tab" if tab else "comma"} or a line break.'
                )
            else:
                rows.append(Row(place, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: the row that begins here is malformed ({error}). "
            f'A `"` inside a quoted field is written twice.'
        ) from None
    finally:
        csv.field_size_limit(usual)
    if not rows:
        raise DataError(f"{path}: no row below the names of the columns; wanted at least one.")
    return rows


def read_parquet(path: Path) -> list[Row]:
    """The rows of a Parquet file, categories and nested columns as plain values.

    Raises:
        DataError: For a file that is no Parquet, is damaged, has a column twice, or has no rows.
    """
    try:
        with path.open("rb") as file:
            table = parquet.read_table(file)
        if len(set(table.column_names)) < len(table.column_names):
            raise DataError(f"{path}: a column occurs twice; found: {names(table.column_names)}. Rename one.")
        values = table.to_pylist()
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({shown(str(error), 300)}).") from None
    if not values:
        raise DataError(f"{path}: the table is empty; wanted at least one row.")
    return [Row(f"{path}, row {number}", row) for number, row in enumerate(values, 1)]


def class_labels(path: Path) -> dict[str, ClassLabel]:
    """Which columns of a Parquet file hold numbers of labels, as `datasets` notes beside the columns that it writes.

    Raises:
        DataError: If what is noted there cannot be read.
    """
    schema = parquet.read_schema(path)
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = Features.from_arrow_schema(schema)
    except Exception as error:  # it is JSON of any shape
        raise DataError(
            f"{path}: the types that it notes for `datasets` cannot be read ({shown(str(error), 300)}). Write the file "
            f"again with `Dataset.to_parquet`."
        ) from None
    return {name: feature for name, feature in features.items() if isinstance(feature, ClassLabel)}


def _decoded(path: Path, content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {line}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _header(place: str, fields: list[str], *, tab: bool) -> list[str]:
    other = next((sign for sign in ("\t", ";", ",", "|") if sign in fields[0]), None) if len(fields) == 1 else None
    if other is not None:
        wanted = "tabs" if tab else "commas"
        raise DataError(
            f"{place}: one column, `{shown(fields[0])}`. The fields of a *{'.tsv' if tab else '.csv'} are separated by "
            f"{wanted}. Save it so{', or name it *.tsv' if other == chr(9) else ''}."
        )
    fields = [name if name.strip() else f"Unnamed: {number}" for number, name in enumerate(fields)]
    for name in fields:
        if fields.count(name) > 1:
            raise DataError(f"{place}: the column `{shown(name)}` occurs twice. Rename one of them.")
    return fields
