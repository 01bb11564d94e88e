"""Rows out of files, each with the place it stands at, so that an error can point to it; JSON is read here."""

import json
import re
import stat
from pathlib import Path
from typing import Any

from gorp.data.rows import Row, kind, texts
from gorp.data.tables import read_delimited, read_parquet
from gorp.errors import DataError, nearest, shown


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File names that are read: one object a line, one list of objects, or a table with named columns."""

ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV (UTF-8)."),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".7z"), "Unpack it first."),
    **dict.fromkeys((".arrow", ".feather", ".pkl", ".pickle", ".npy", ".h5"), "Write it as Parquet or JSON Lines."),
    **dict.fromkeys((".txt", ".md", ".yaml", ".yml", ".xml", ".html"), "Write one JSON object a line, as *.jsonl."),
}
"""Endings of other files that rows may come in, and what to do with them."""

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of a surrogate; two of them, in the right order, are one character."""

_SURROGATE_ITSELF = re.compile("[\ud800-\udfff]")

HELD_OUT = re.compile(r"test|eval|valid|dev", re.IGNORECASE)
"""Part of the names of files that hold rows to be judged by."""


def read_rows(path: Path) -> list[Row]:
    """All rows of a file, by the ending of its name, whatever its case.

    `.jsonl`: one object a line. `.json`: a list, or a list under "Instances". `.csv` (commas) and `.tsv` (tabs): the
    first line has the names of the columns, everything is text, as it stands there. `.parquet`: a table.

    Raises:
        DataError: For a file that is missing, empty, no regular file (a folder, a pipe, a device), not UTF-8, or
            malformed; with the line or row.
    """
    ending = path.suffix.lower()
    if ending not in SUFFIXES:
        advice = ADVICE.get(ending, "Write one JSON object a line, as *.jsonl.")
        raise DataError(f"{path}: wanted a file named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}. {advice}")
    check_regular(path)
    if ending == ".parquet":
        return read_parquet(path)
    content = read_content(path).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: the file is empty; wanted at least one row.")
    if ending == ".jsonl":
        return _lines(path, content)
    return _items(path, content) if ending == ".json" else read_delimited(path, content, tab=ending == ".tsv")


def names_a_file(text: str) -> bool:
    """Whether `text` ends as files of rows do, those that are not read among them: it is no id of a hub data set."""
    return Path(text).suffix.lower() in {*SUFFIXES, *ADVICE}


def check_regular(path: Path) -> None:
    """Refuse what is missing, and what has no end or would wait for a writer: pipes, devices, folders.

    Raises:
        DataError: With what was found there.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise DataError(_no_such_file(path)) from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long, a NUL in it
        raise DataError(f"{shown(str(path))}: cannot be read ({_reason(error)}).") from None
    if not stat.S_ISREG(mode):
        found = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise DataError(f"{path}: cannot be read: it is {found}; wanted a regular file.")


def read_content(path: Path) -> bytes:
    """The bytes of a regular file.

    Raises:
        DataError: If the system refuses.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from None


def parse_json(text: str, *, place: str) -> Any:
    """One JSON value, stricter than Python: no key twice, no NaN or Infinity, no half of a surrogate pair.

    Args:
        text: The JSON.
        place: Where it stands, for messages.

    Raises:
        DataError: For these three, a whole number of thousands of digits, and nesting that is too deep.
        json.JSONDecodeError: For text that is not JSON.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{place}: the key `{shown(key)}` occurs twice in one object. Remove one of them.")
        return values

    def refuse(word: str) -> None:
        raise DataError(f"{place}: {word} is no JSON. Write a number or null.")

    try:
        value = json.loads(text, object_pairs_hook=once, parse_constant=refuse)
        if _SURROGATE.search(text) and any(_SURROGATE_ITSELF.search(part) for part in texts(value)):
            raise DataError(f"{place}: half of a surrogate pair (\\ud800 to \\udfff) is no text. Correct the escape.")
    except RecursionError:
        raise DataError(
            f"{place}: nested too deep; wanted an object whose columns hold text. Flatten it, or remove it."
        ) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # what Python says of a whole number with more than 4300 digits
        raise DataError(f"{place}: a whole number with thousands of digits. Write it as text, or remove it.") from None
    return value


def _no_such_file(path: Path) -> str:
    folder = path.resolve().parent
    looked = f"{path}: no such file. Paths in a YAML are relative to its folder; this one was looked for in {folder}"
    if not folder.is_dir():
        return f"{looked}, which does not exist."
    readable = [item.name for item in folder.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file()]
    if not HELD_OUT.search(path.name):  # rows to be judged by are no substitute for rows to train on
        readable = [name for name in readable if not HELD_OUT.search(name)]
    return f"{looked}.{nearest(path.name, readable)}"


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _lines(path: Path, content: bytes) -> list[Row]:
    # Not splitlines: text may hold other line separators, JSON Lines knows only the newline.
    lines = content.removesuffix(b"\n").split(b"\n")
    return [_row(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _row(place: str, line: bytes) -> Row:
    if not line.strip():
        raise DataError(f"{place}: empty; wanted a JSON object. Remove the line.")
    try:
        return _object(place, parse_json(line.decode(), place=place))
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno}); wanted one JSON object.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _items(path: Path, content: bytes) -> list[Row]:
    try:
        value = parse_json(content.decode(), place=str(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). "
            f"A file with one object a line must be named *.jsonl."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    items = value.get("Instances") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise DataError(f'{path}: {kind(value)}; wanted a list of objects, or an object with the list "Instances".')
    if not items:
        raise DataError(f"{path}: the list is empty; wanted at least one row.")
    return [_object(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _object(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {kind(value)}; wanted a JSON object with named columns.")
    return Row(place, value)
