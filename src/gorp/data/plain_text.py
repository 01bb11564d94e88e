"""Read texts for a language model from a file: paragraphs of plain text, or rows with a column `text`."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from gorp.data.files import check_not_blank, check_regular, iter_rows
from gorp.data.rows import MAX_CHARACTERS, check_length, text_column
from gorp.errors import DataError


def read_texts(path: Path, most: int) -> list[str]:
    """Return the first `most` texts of a file, without blanks around them.

    Args:
        path: A .txt file in UTF-8, whose paragraphs (divided by blank lines) are the texts, or a file of rows with a
            column `text` (`gorp.data.files.SUFFIXES`).
        most: Most texts; what follows them is not read.

    Raises:
        DataError: If the file is missing, empty, not text, or has a row without `text`; the message has the line.
    """
    if path.suffix.lower() == ".txt":
        check_regular(path)
        check_not_blank(path)
        return list(islice(_paragraphs(path), most))
    found = []
    for row in islice(iter_rows(path), most):
        text = text_column(row, "text", rename=False)
        check_length(row, "text", text)
        found.append(text.strip())
    return found


def _paragraphs(path: Path) -> Iterator[str]:
    """Yield the paragraphs of a text file, which is read line by line."""
    lines: list[str] = []
    size = number = 0
    try:
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(MAX_CHARACTERS + 1):
                number += 1
                if "\0" in line:
                    raise DataError(f"{path}, line {number}: has a NUL character; wanted plain text in UTF-8.")
                size = size + len(line) if line.strip() else 0
                if size > MAX_CHARACTERS:
                    raise DataError(
                        f"{path}, line {number}: a paragraph of more than {MAX_CHARACTERS:,} characters. Divide it by "
                        "blank lines."
                    )
                if line.strip():
                    lines.append(line)
                elif lines:
                    yield "".join(lines).strip()
                    lines = []
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8; wanted plain text. Save it as UTF-8.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}).") from None
    if lines:
        yield "".join(lines).strip()
