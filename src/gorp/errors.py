"""What can go wrong, as a tree. Every message says what came, what was wanted, and what to do.

    GorpError
    ├── ConfigError       the YAML, an option or a method's configuration
    ├── DataError         a task's rows: a missing file, a malformed line, a label outside the set
    ├── ModelError        the base model: a pattern that matches nothing, a dtype the device lacks
    ├── CheckpointError   a saved file: another model's memory, an incomplete or damaged version
    └── TrainingError     a run that must stop: a loss that is not finite

`ValueError` is for wrong arguments of a function, `assert` for our own invariants.
"""

import difflib
from collections.abc import Iterable


class GorpError(Exception):
    """Root of all errors that are meant to be read by a user."""


class ConfigError(GorpError):
    """The configuration asks for something that does not exist or cannot be."""


class DataError(GorpError):
    """A task's data cannot be used as it is."""


class ModelError(GorpError):
    """The base model does not fit what is asked of it."""


class CheckpointError(GorpError):
    """A file of ours is missing, damaged, or belongs to something else."""


class TrainingError(GorpError):
    """Training cannot go on; what was saved before is whole."""


LONGEST_NAME = 200
"""Letters of a name that is compared with others: the comparison takes their product in time."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """The end of an error message about an unknown name: " Did you mean `x`?", or nothing."""
    if len(name) > LONGEST_NAME:
        return ""
    close = difflib.get_close_matches(name, [choice for choice in choices if len(choice) <= LONGEST_NAME], n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


def shown(text: str, limit: int = 100) -> str:
    """A text as a message quotes it: whole, or its beginning and how long it is."""
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text):,} characters)"
