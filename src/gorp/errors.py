"""Define the errors that users see. Every message says what was found, what was wanted, and what to do.

    GorpError
    ├── ConfigError       the YAML, an option or a method's configuration
    ├── DataError         a task's rows: a missing file, a malformed line, a label outside the set
    ├── ModelError        the base model: a pattern that matches nothing, a dtype that the device does not support
    ├── CheckpointError   a saved file: the memory of another model, an incomplete or damaged version
    ├── TrainingError     a run that must stop: a loss that is not finite
    └── ExportError       an exported folder that is not equal to its version, or cannot be uploaded

`ValueError` is for wrong arguments of a function, `assert` for internal invariants.
"""

import difflib
from collections.abc import Iterable


class GorpError(Exception):
    """Base class of all errors with a message for the user.

    Example:
        >>> from gorp import Encoding, GorpError
        >>> try:
        ...     Encoding(max_prompt_tokens=0)
        ... except GorpError as error:
        ...     print(error)
        max_prompt_tokens is 0; it must be at least 1.
    """


class ConfigError(GorpError):
    """The configuration is invalid, or names something that does not exist."""


class DataError(GorpError):
    """A task's data cannot be used."""


class ModelError(GorpError):
    """The base model cannot be used with this configuration."""


class CheckpointError(GorpError):
    """A file that gorp wrote is missing, damaged, or belongs to something else."""


class TrainingError(GorpError):
    """Training cannot continue; everything saved before is complete."""


class ExportError(GorpError):
    """An exported folder differs from the version that it was written from, or cannot be uploaded."""


LONGEST_NAME = 200
"""Most letters of a name that `nearest` compares: the time is proportional to the product of the lengths."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: " Did you mean `x`?", or "" if no choice is similar."""
    if len(name) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, [choice for choice in choices if len(choice) <= LONGEST_NAME], n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def shown(text: str, limit: int = 100) -> str:
    """Return `text` for an error message: complete, or its first `limit` characters and its length."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
