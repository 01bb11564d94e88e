"""Read rows from tables: CSV and TSV, in which every value is text, and Parquet, which has types."""

import csv
import io
from pathlib import Path

import pyarrow
from datasets import ClassLabel, Features
from pyarrow import parquet

from gorp.data.rows import MAX_CHARACTERS, Row, names
from gorp.errors import DataError, shown


def read_delimited(path: Path, content: bytes, *, tab: bool) -> list[Row]:
    """Read the rows of a CSV or TSV file.

    The first line names the columns. `"` may enclose a field; inside it, `""` is a quote. A column without a name, such
    as the index that pandas writes, is called `Unnamed: 0` with the number of the column, as in pandas and `datasets`.

    No types are guessed: `007` and `true` stay text, and an empty field is empty text. Empty lines are skipped.

    Args:
        path: For messages.
        content: Content of the file, without a byte order mark; not empty.
        tab: Whether fields are separated by tabs (True) or commas (False).

    Raises:
        DataError: If the text is not UTF-8, a quote is not closed, a column is named twice, or a row does not have one
            field for each column. The message has the line where the row begins.
    """
    text = _decoded(path, content)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t" if tab else ",", strict=True)
    rows: list[Row] = []
    header: list[str] | None = None
    old_limit = csv.field_size_limit(max(len(text), MAX_CHARACTERS))  # global in the process, so it is restored below
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
                    f'Put `"` around text that contains a {"tab" if tab else "comma"} or a line break.'
                )
            else:
                rows.append(Row(place, dict(zip(header, fields, strict=True))))
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: the row that begins here is malformed ({error}). "
            f'Close every quote, and write a `"` inside a quoted field twice.'
        ) from None
    finally:
        csv.field_size_limit(old_limit)
    if not rows:
        raise DataError(f"{path}: no row after the line with the column names; wanted at least one.")
    return rows


def read_parquet(path: Path) -> list[Row]:
    """Read the rows of a Parquet file; categories and nested columns become plain Python values.

    Raises:
        DataError: If the file is not Parquet, is damaged, has a column twice, or has no rows.
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
    """Return the columns of a Parquet file that hold label numbers, from the metadata that `datasets` writes.

    Raises:
        DataError: If this metadata cannot be read.
    """
    schema = parquet.read_schema(path)
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    try:
        features = Features.from_arrow_schema(schema)
    except Exception as error:  # the metadata is arbitrary JSON, so any error may be raised
        raise DataError(
            f"{path}: its column types for `datasets` cannot be read ({shown(str(error), 300)}). Write the file again "
            f"with `Dataset.to_parquet`."
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
            f"{place}: only one column, `{shown(fields[0])}`; wanted a *{'.tsv' if tab else '.csv'} with fields "
            f"separated by {wanted}. Save the file with {wanted}{', or name it *.tsv' if other == chr(9) else ''}."
        )
    fields = [name if name.strip() else f"Unnamed: {number}" for number, name in enumerate(fields)]
    for name in fields:
        if fields.count(name) > 1:
            raise DataError(f"{place}: the column `{shown(name)}` occurs twice. Rename one of them.")
    return fields
