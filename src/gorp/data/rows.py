"""A row of a file or data set, and checks of its text that all formats share."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gorp.errors import DataError, nearest, shown


MAX_CHARACTERS = 1_000_000
"""Most characters of a prompt or completion. A tokenizer needs about two seconds and 200 MB for this length, and a run
keeps only a few thousand tokens of it."""

FORMAT_COLUMNS = frozenset(
    "prompt completion messages conversations text label instruction input output role content from value".split()
)
"""Column names of the known formats."""

NAMED_COLUMNS = 20
"""Most columns that a message lists."""


@dataclass(slots=True)  # not frozen: millions are made, and that takes a quarter of the time
class Row:
    """One object of a file or a data set."""

    place: str
    """File and line, with which error messages begin: "reviews.jsonl, line 3"."""
    values: dict[str, Any]
    """Column -> its value."""
    number: int = 0
    """Number of its line (JSON Lines, CSV, TSV), row (Parquet, a data set) or item (JSON); 0 if it has none."""


OnBad = Callable[[DataError], None]
"""Called with the error of a row that cannot be used. If it returns, the row is left out."""

OnBytes = Callable[[int], None]
"""Called with the number of bytes of a file that have been read."""


def raise_bad(error: DataError) -> None:
    """Raise the error of the first row that cannot be used.

    Raises:
        DataError: Always.
    """
    raise error


def ignore_bytes(done: int) -> None:
    """Show no progress."""


def text_column(row: Row, column: str, *, rename: bool = True, blank: str = "Remove the row.") -> str:
    """Return the text in `column`.

    Args:
        row: The row.
        column: Name of the column.
        rename: Whether the message may advise the option `columns`, which renames only top-level columns of a row.
        blank: Advice in the message if the text is blank.

    Raises:
        DataError: If the column is missing (the message lists those found), is not text, or is blank.
    """
    if column not in row.values:
        close = nearest_column(column, row)
        advice = " Add it, or rename columns with `columns`." if rename else " Add it."
        raise DataError(f"{row.place}: no column `{column}`; found: {names(row.values)}.{close}{advice}")
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.place}: `{column}` is {kind(value)}; wanted text.")
    if not value.strip():
        raise DataError(f"{row.place}: `{column}` is blank; wanted text. {blank}")
    return value


def nearest_column(column: str, row: Row) -> str:
    """Return `nearest` without known column names if `column` is one too: `text` is not a misspelt `label`."""
    return nearest(column, [name for name in row.values if not {name, column} <= FORMAT_COLUMNS])


def check_length(row: Row, what: str, text: str) -> None:
    """Check that a text is short enough for a tokenizer.

    Raises:
        DataError: If it has more than `MAX_CHARACTERS`.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            f"{row.place}: its {what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are allowed. "
            f"Shorten it, or split the row."
        )


def names(columns: Iterable[str]) -> str:
    """Return column names for a message, at most the first `NAMED_COLUMNS`; "none" if there are none."""
    every = [shown(name) for name in columns]
    more = f", … ({len(every)} in total)" if len(every) > NAMED_COLUMNS else ""
    return (", ".join(every[:NAMED_COLUMNS]) or "none") + more


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a nested value of JSON, YAML or Parquet, including keys."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):  # the entries of a Parquet map are tuples
        for part in value.items() if isinstance(value, dict) else value:
            yield from texts(part)


def kind(value: Any) -> str:
    """Return the type of a value in words, for a message."""
    known = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else known.get(type(value), f"of the type {type(value).__name__}")
