"""Read rows from tables: CSV and TSV, in which every value is text, and Parquet, which has types."""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pyarrow
from datasets import ClassLabel, Features
from pyarrow import parquet

from gorp.data.rows import OnBad, OnBytes, Row, names
from gorp.errors import DataError, shown


MAX_FIELD = 64 * 2**20
"""Most characters of a field. A quote that is never closed would otherwise read the rest of the file into one."""


def iter_delimited(path: Path, bad: OnBad, at: OnBytes, *, tab: bool) -> Iterator[Row]:
    """Read the rows of a CSV or TSV file, one by one.

    The first line names the columns. `"` may enclose a field; inside it, `""` is a quote. A column without a name, such
    as the index that pandas writes, is called `Unnamed: 0` with the number of the column, as in pandas and `datasets`.

    No types are guessed: `007` and `true` stay text, and an empty field is empty text. Empty lines are skipped.

    Args:
        path: The file; not empty. A byte order mark is skipped.
        bad: Called for a row that does not have one field for each column.
        at: Called with the number of bytes read.
        tab: Whether fields are separated by tabs (True) or commas (False).

    Raises:
        DataError: If the text is not UTF-8, a quote is not closed, or a column is named twice. The message has the line
            where the row begins.
    """
    name, header, line, found = str(path), None, 1, 0
    old_limit = csv.field_size_limit(MAX_FIELD)  # global in the process, so it is restored below
    try:
        with path.open("rb") as content, io.TextIOWrapper(content, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter="\t" if tab else ",", strict=True)
            for fields in reader:
                number, line = line, reader.line_num + 1
                place = f"{name}, line {number}"
                if not fields:
                    continue
                if header is None:
                    header = _header(place, fields, tab=tab)
                elif len(fields) != len(header):
                    found += 1
                    bad(
                        DataError(
                            f"{place}: {len(fields)} fields, but the first line names {len(header)} columns: "
                            f'{names(header)}. Put `"` around text that contains a {"tab" if tab else "comma"} or a '
                            f"line break."
                        )
                    )
                else:
                    found += 1
                    if not found % 4096:
                        at(content.tell())
                    yield Row(place, dict(zip(header, fields, strict=True)), number)
    except csv.Error as error:
        raise DataError(
            f"{path}, line {line}: the row that begins here is malformed ({error}). "
            f'Close every quote, and write a `"` inside a quoted field twice.'
        ) from None
    except UnicodeDecodeError:
        raise _not_utf8(path) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    finally:
        csv.field_size_limit(old_limit)
    if not found:
        raise DataError(f"{path}: no row after the line with the column names; wanted at least one.")


def iter_parquet(path: Path, at: OnBytes) -> Iterator[Row]:
    """Read the rows of a Parquet file, one by one; categories and nested columns become plain Python values.

    Raises:
        DataError: If the file is not Parquet, is damaged, has a column twice, or has no rows.
    """
    number = 0
    try:
        with path.open("rb") as file, parquet.ParquetFile(file) as table:
            columns, total = table.schema_arrow.names, table.metadata.num_rows
            if len(set(columns)) < len(columns):
                raise DataError(f"{path}: a column occurs twice; found: {names(columns)}. Rename one.")
            size = path.stat().st_size
            for batch in table.iter_batches(batch_size=BATCH):
                for row in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", row, number)
                at(size * number // max(total, 1))
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({shown(str(error), 300)}).") from None
    if not number:
        raise DataError(f"{path}: the table is empty; wanted at least one row.")


BATCH = 1024
"""Rows of a Parquet file that are converted at once."""


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


def _not_utf8(path: Path) -> DataError:
    """Return the error that names the first line that is not UTF-8."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return DataError(f"{path}, line {number}: not UTF-8 ({error.reason}). Save the file as UTF-8.")
    return DataError(f"{path}: not UTF-8. Save the file as UTF-8.")


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
