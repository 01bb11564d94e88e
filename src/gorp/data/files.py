"""Rows out of JSON Lines and JSON files, each with the place it stands at, so that an error can point to it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gorp.errors import DataError, nearest


SUFFIXES = (".jsonl", ".json")
"""File names that are read: one object a line, or one list of objects."""


@dataclass(frozen=True, slots=True)
class Row:
    """One object of a file or a data set."""

    place: str
    """Where it stands, as an error message begins: "reviews.jsonl, line 3"."""
    values: dict[str, Any]
    """Its columns."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a `.jsonl` file (one object a line) or a `.json` file (a list, or a list under "Instances").

    Raises:
        DataError: For a missing or empty file, text that is not UTF-8, an empty or malformed line, one with no object.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(f"{path}: wanted a file named *.jsonl or *.json. Convert it to one JSON object a line.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(_no_such_file(path)) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    content = content.removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: the file is empty; wanted at least one row.")
    return _lines(path, content) if path.suffix == ".jsonl" else _items(path, content)


def text_column(row: Row, column: str) -> str:
    """The text in `column`.

    Raises:
        DataError: If the column is missing (the message names those found), is no text, or is blank.
    """
    if column not in row.values:
        found = ", ".join(row.values) or "none"
        raise DataError(
            f"{row.place}: no column `{column}`; found: {found}.{nearest(column, row.values)} "
            f"Rename columns with `columns`."
        )
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.place}: `{column}` is {_kind(value)}; wanted text.")
    if not value.strip():
        raise DataError(f"{row.place}: `{column}` is blank; wanted text. Remove the row.")
    return value


def _no_such_file(path: Path) -> str:
    folder = path.resolve().parent
    looked = f"{path}: no such file. Paths in a YAML are relative to its folder; this one was looked for in {folder}"
    if not folder.is_dir():
        return f"{looked}, which does not exist."
    readable = (item.name for item in folder.iterdir() if item.suffix in SUFFIXES and item.is_file())
    return f"{looked}.{nearest(path.name, readable)}"


def _lines(path: Path, content: bytes) -> list[Row]:
    # Not splitlines: text may hold other line separators, JSON Lines knows only the newline.
    lines = content.removesuffix(b"\n").split(b"\n")
    return [_row(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _row(place: str, line: bytes) -> Row:
    if not line.strip():
        raise DataError(f"{place}: empty; wanted a JSON object. Remove the line.")
    try:
        return _object(place, json.loads(line.decode()))
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno}); wanted one JSON object.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _items(path: Path, content: bytes) -> list[Row]:
    try:
        value = json.loads(content.decode())
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). "
            f"A file with one object a line must be named *.jsonl."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    items = value.get("Instances") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise DataError(f'{path}: {_kind(value)}; wanted a list of objects, or an object with the list "Instances".')
    if not items:
        raise DataError(f"{path}: the list is empty; wanted at least one row.")
    return [_object(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {_kind(value)}; wanted a JSON object with named columns.")
    return Row(place, value)


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return "null" if value is None else names.get(type(value), type(value).__name__)
