"""Make text from models, data, names and files safe to print in a terminal, on a page or in a picture."""

import re


_CONTROL = "\x00-\x08\x0b-\x1f\x7f-\x9f"
_DIRECTION = "\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069"
_NO_TEXT = "\ud800-\udfff\ufffe\uffff"
_CREDENTIALS = re.compile(r"\b(https?:/{1,2})[^/\s@]+@")  # `Path` leaves one slash
_UNPRINTABLE = re.compile(f"[{_CONTROL}{_DIRECTION}{_NO_TEXT}]")


def printable(text: str) -> str:
    """Return `text` with `�` for characters that control a terminal, change the text direction, or are not text.

    These are control characters except tab and newline, direction marks, other line ends, and lone surrogates. The user
    and the password or token of a URL become `…`.
    """
    return _CREDENTIALS.sub(r"\1…@", _UNPRINTABLE.sub("�", text))


def json_printable(text: str) -> str:
    r"""Return JSON with the same characters escaped as `\uXXXX`: harmless in a terminal, and unchanged when parsed."""
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
