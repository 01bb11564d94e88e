"""Read rows from files, each with its file and line for error messages, and parse JSON.

All formats but `.json` are read row by row, so a file of any size can be read in bounded memory.
"""

import json
import re
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from gorp.data.rows import OnBad, OnBytes, Row, ignore_bytes, kind, raise_bad, texts
from gorp.data.tables import iter_delimited, iter_parquet
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


MAX_LINE = 64 * 2**20
"""Most bytes of a line of JSON Lines."""


def read_rows(path: Path) -> list[Row]:
    """Read all rows of a file; see `iter_rows`.

    Raises:
        DataError: If the file cannot be read or a row is malformed; the message has the line or row.
    """
    return list(iter_rows(path))


def iter_rows(
    path: Path, *, bad: OnBad = raise_bad, at: OnBytes = ignore_bytes, only: Collection[int] | None = None
) -> Iterator[Row]:
    """Read the rows of a file one by one. The ending of its name, in upper or lower case, decides the format.

    `.jsonl`: one object per line. `.json`: a list, or a list under "Instances"; the file is read whole. `.csv` (commas)
    and `.tsv` (tabs): the first line has the names of the columns; every value is text and is not converted.
    `.parquet`: a table.

    Args:
        path: The file.
        bad: Called with the error of a malformed row, which is left out if it returns.
        at: Called now and then with the number of bytes read.
        only: Numbers of the rows that are wanted. Of JSON Lines, other rows are left out without being parsed.

    Raises:
        DataError: If the file is missing, empty, not a regular file (a folder, a pipe, a device), not UTF-8, or so
            malformed that no further row can be read; the message has the line or row.
    """
    ending = path.suffix.lower()
    if ending not in SUFFIXES:
        advice = ADVICE.get(ending, "Write one JSON object per line, as *.jsonl.")
        raise DataError(f"{path}: wanted a file named {', '.join(f'*{suffix}' for suffix in SUFFIXES)}. {advice}")
    check_regular(path)
    if ending == ".parquet":
        return iter_parquet(path, at)
    if ending == ".json":
        return _iter_json(path, bad)
    check_not_blank(path)
    if ending == ".jsonl":
        return _iter_jsonl(path, bad, at, only)
    return iter_delimited(path, bad, at, tab=ending == ".tsv")


def check_not_blank(path: Path) -> None:
    """Check that a text file has something in it besides a byte order mark and blanks.

    Raises:
        DataError: If it has not, or cannot be read.
    """
    try:
        with path.open("rb") as file:
            block = file.read(2**20).removeprefix(b"\xef\xbb\xbf")
            while block and not block.strip():
                block = file.read(2**20)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from None
    if not block:
        raise DataError(f"{path}: the file is empty; wanted at least one row.")


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


class _Refused(Exception):
    """A value that JSON allows, or that Python's parser does, and gorp does not."""


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        key = next(key for key in keys if keys.count(key) > 1)
        raise _Refused(f"the key `{shown(key)}` occurs twice in one object. Remove one of them.")
    return values


def _refuse_constant(word: str) -> None:
    raise _Refused(f"{word} is not valid JSON. Write a number or null.")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
"""Made once: `json.loads` would make one for every line."""


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
    try:
        if text.startswith("\ufeff"):
            raise json.JSONDecodeError("Unexpected UTF-8 BOM (decode using utf-8-sig)", text, 0)
        value = _DECODER.decode(text)
        if _SURROGATE_ESCAPE.search(text) and any(_LONE_SURROGATE.search(part) for part in texts(value)):
            raise DataError(f"{place}: a lone surrogate (\\ud800 to \\udfff) is not text. Correct the escape.")
    except RecursionError:
        raise DataError(
            f"{place}: nested too deeply; wanted an object with text in its columns. Flatten it, or remove it."
        ) from None
    except _Refused as refused:
        raise DataError(f"{place}: {refused}") from None
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


def _iter_jsonl(path: Path, bad: OnBad, at: OnBytes, only: Collection[int] | None) -> Iterator[Row]:
    name, number, done = str(path), 0, 0
    try:
        with path.open("rb") as file:
            while line := file.readline(
                MAX_LINE + 1
            ):  # splits at \n only: other line separators are text in JSON Lines
                number, done = number + 1, done + len(line)
                if only is not None and number not in only:
                    continue
                place = f"{name}, line {number}"
                if len(line) > MAX_LINE:
                    raise DataError(f"{place}: more than {MAX_LINE >> 20} MiB. Wanted one JSON object per line.")
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                if not number % 4096:
                    at(done)
                try:
                    row = _parse_line(place, line.removesuffix(b"\n"), number)
                except DataError as error:
                    bad(error)
                    continue
                yield row
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({_reason(error)}).") from None


def _parse_line(place: str, line: bytes, number: int) -> Row:
    if not line.strip():
        raise DataError(f"{place}: empty; wanted a JSON object. Remove the line.")
    try:
        return _to_row(place, parse_json(line.decode(), place=place), number)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not JSON ({error.msg}, column {error.colno}); wanted one JSON object.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{place}: not UTF-8 ({error.reason}). Save the file as UTF-8.") from None


def _iter_json(path: Path, bad: OnBad) -> Iterator[Row]:
    content = read_content(path).removeprefix(b"\xef\xbb\xbf")
    if not content.strip():
        raise DataError(f"{path}: the file is empty; wanted at least one row.")
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
    for number, item in enumerate(items, 1):
        try:
            row = _to_row(f"{path}, item {number}", item, number)
        except DataError as error:
            bad(error)
            continue
        yield row


def _to_row(place: str, value: Any, number: int) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{place}: {kind(value)}; wanted a JSON object with named columns.")
    return Row(place, value, number)
