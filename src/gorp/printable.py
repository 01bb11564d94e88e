"""Text that came from models, data, names and files, made fit for a terminal, a page or a picture."""

import re


_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_DIRECTION = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_NO_TEXT = "\ud800-\udfff\ufffe\uffff"
_UNPRINTABLE = re.compile(f"[{_CONTROL}{_DIRECTION}{_NO_TEXT}]")


def printable(text: str) -> str:
    """`text` with `�` for characters that command a terminal, turn the direction of writing, or are no text.

    They are control characters but tab and newline, marks of direction, other line ends, halves of surrogate pairs.
    """
    return _UNPRINTABLE.sub("�", text)


def json_printable(text: str) -> str:
    r"""JSON in which the same characters stand as `\uXXXX`: a terminal does not obey them, a reader gets them back."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
