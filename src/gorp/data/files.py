"""Read rows from files, each with its file and line for error messages, and parse JSON."""

import json
import re
import stat
from pathlib import Path
from typing import Any

from gorp.data.rows import Row, kind, texts
from gorp.data.tables import read_delimited, read_parquet
from gorp.errors import DataError, nearest, shown


SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
"""File name endings that are read: one object per line, one list of objects, or a table with named columns."""

ADVICE = {
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "Save the sheet as CSV (UTF-8)."),
    **dict.fromkeys((".gz", ".zip", ".bz2", ".xz", ".zst", ".tar", ".7z"), "Unpack it first."),
    **dict.fromkeys((".arrow", ".feather", ".pkl", ".pickle", ".npy", ".h5"), "Write it as Parquet or JSON Lines."),
    **dict.fromkeys((".txt", ".md", ".yaml", ".yml", ".xml", ".html"), "Write one JSON object per line, as *.jsonl."),
}
"""Endings of files that cannot be read -> what to do with them."""

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape of a surrogate; two of them, in the right order, are one character."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
"""A surrogate in decoded text. Complete pairs have become one character by then."""

HELD_OUT = re.compile(r"test|eval|valid|dev", re.IGNORECASE)
"""Part of the name of a file with evaluation rows."""


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file. The ending of its name, in upper or lower case, decides the format.

    `.jsonl`: one object per line. `.json`: a list, or a list under "Instances". `.csv` (commas) and `.tsv` (tabs): the
    first line has the names of the columns; every value is text and is not converted. `.parquet`: a table.

    Raises:
        DataError: If the file is missing, empty, not a regular file (a folder, a pipe, a device), not UTF-8, or
            malformed; the message has the line or row.
    """
    ending = path.suffix.lower()
    if ending not in SUFFIXES:
        advice = ADVICE.get(ending, "Write one JSON object per line, as *.jsonl.")
        raise DataError(f"{path}: wanted a file named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}. {advice}")
    check_regular(path)
    if ending == ".parquet":
        return read_parquet(path)
    content = read_content(path).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: the file is empty; wanted at least one row.")
    if ending == ".jsonl":
        return _read_jsonl(path, content)
    return _read_json(path, content) if ending == ".json" else read_delimited(path, content, tab=ending == ".tsv")


def names_a_file(text: str) -> bool:
    """Whether `text` ends like a data file, readable or not, so that it is not the id of a hub data set."""
    return Path(text).suffix.lower() in {*SUFFIXES, *ADVICE}


def check_regular(path: Path) -> None:
    """Check that `path` is a regular file. Reading a pipe or a device could block or never end.

    Raises:
        DataError: If it is missing or something else; the message says what was found.
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
    """Return the bytes of a regular file.

    Raises:
        DataError: If the operating system reports an error.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from None


def parse_json(text: str, *, place: str) -> Any:
    """Parse one JSON value, more strictly than Python: no duplicate keys, no NaN or Infinity, no lone surrogates.

    Args:
        text: The JSON.
        place: File and line, for messages.

    Raises:
        DataError: For a duplicate key, NaN or Infinity, a lone surrogate, an integer with thousands of digits, or
            nesting that is too deep.
        json.JSONDecodeError: If the text is not JSON.
    """

    def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            keys = [key for key, _ in pairs]
            key = next(key for key in keys if keys.count(key) > 1)
            raise DataError(f"{place}: the key `{shown(key)}` occurs twice in one object. Remove one of them.")
        return values

    def refuse_constant(word: str) -> None:
        raise DataError(f"{place}: {word} is not valid JSON. Write a number or null.")

    try:
        value = json.loads(text, object_pairs_hook=unique_keys, parse_constant=refuse_constant)
        if _SURROGATE_ESCAPE.search(text) and any(_LONE_SURROGATE.search(part) for part in texts(value)):
            raise DataError(f"{place}: a lone surrogate (\\ud800 to \\udfff) is not text. Correct the escape.")
    except RecursionError:
        raise DataError(
            f"{place}: nested too deeply; wanted an object with text in its columns. Flatten it, or remove it."
        ) from None
    except json.JSONDecodeError:
        raise
    except ValueError:  # Python does not parse an integer of more than 4300 digits
        raise DataError(f"{place}: an integer with thousands of digits. Write it as text, or remove it.") from None
    return value


def _no_such_file(path: Path) -> str:
    folder = path.resolve().parent
    message = f"{path}: no such file. Paths in a YAML are relative to its folder; this one was looked for in {folder}"
    if not folder.is_dir():
        return f"{message}, which does not exist."
    readable = [item.name for item in folder.iterdir() if item.suffix.lower() in SUFFIXES and item.is_file()]
    if not HELD_OUT.search(path.name):  # never suggest an evaluation file in place of a training file
        readable = [name for name in readable if not HELD_OUT.search(name)]
    return f"{message}.{nearest(path.name, readable)}"


def _reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or str(error)


def _read_jsonl(path: Path, content: bytes) -> list[Row]:
    # Not splitlines: it also splits at other line separators, which are text in JSON Lines.
    lines = content.removesuffix(b"\n").split(b"\n")
    return [_parse_line(f"{path}, line {number}", line) for number, line in enumerate(lines, 1)]


def _parse_line(place: str, line: bytes) -> Row:
    if not line.strip():
        raise DataError(f"{place}: empty; wanted a JSON object. Remove the line.")
    try:
        return _to_row(place, parse_json(line.decode(), place=place))
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno}); wanted one JSON object.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _read_json(path: Path, content: bytes) -> list[Row]:
    try:
        value = parse_json(content.decode(), place=str(path))
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}: not JSON ({error.msg}, column {error.colno}). "
            f"A file with one object per line must be named *.jsonl."
        ) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None
    items = value.get("Instances") if isinstance(value, dict) else value
    if not isinstance(items, list):
        raise DataError(f'{path}: {kind(value)}; wanted a list of objects, or an object with the list "Instances".')
    if not items:
        raise DataError(f"{path}: the list is empty; wanted at least one row.")
    return [_to_row(f"{path}, item {number}", item) for number, item in enumerate(items, 1)]


def _to_row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {kind(value)}; wanted a JSON object with named columns.")
    return Row(place, value)
