"""One row of a file or data set, and what is checked of its texts, whatever it was read from."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gorp.errors import DataError, nearest, shown


MAX_CHARACTERS = 1_000_000
"""Of one prompt or completion. A tokenizer takes about two seconds and 200 MB for so much; a run keeps a few thousand
tokens of it."""

WANTED = frozenset(
    "prompt completion messages conversations text label instruction input output role content from value".split()
)
"""Names that a format knows."""

NAMED_COLUMNS = 20
"""Columns that a message names."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file or a data set."""

    place: str
    """Where it stands, as an error message begins: "reviews.jsonl, line 3"."""
    values: dict[str, Any]
    """Its columns."""


def text_column(row: Row, column: str, *, rename: bool = True, blank: str = "Remove the row.") -> str:
    """The text in `column`.

    Args:
        row: The row.
        column: Name of the column.
        rename: Whether the message may advise the option `columns`, which reaches no deeper than a row's own names.
        blank: What the message advises where the text is blank.

    Raises:
        DataError: If the column is missing (the message names those found), is no text, or is blank.
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
    """As `nearest`: of two names that a format knows, one is not the other misspelt."""
    return nearest(column, [name for name in row.values if not {name, column} <= WANTED])


def check_length(row: Row, what: str, text: str) -> None:
    """Refuse a text that no tokenizer should be given.

    Raises:
        DataError: For more than `MAX_CHARACTERS`.
    """
    if len(text) > MAX_CHARACTERS:
        raise DataError(
            f"{row.place}: its {what} has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read. "
            f"Shorten it, or split the row."
        )


def names(columns: Iterable[str]) -> str:
    """Column names for a message, the first of them where there are many; "none" for none."""
    every = [shown(name) for name in columns]
    more = f", … ({len(every)} in all)" if len(every) > NAMED_COLUMNS else ""
    return (", ".join(every[:NAMED_COLUMNS]) or "none") + more


def texts(value: Any) -> Iterator[str]:
    """Every text in a value as JSON, YAML or Parquet gives it, keys too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):  # the entries of a Parquet map are tuples
        for part in value.items() if isinstance(value, dict) else value:
            yield from texts(part)


def kind(value: Any) -> str:
    """What a value is, in words."""
    known = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else known.get(type(value), f"of the type {type(value).__name__}")
