"""What the system refuses (a disk is full, read-only, not ours) as a message that names the file and the disk."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gorp.errors import CheckpointError


LEFTOVER = re.compile(r"\.gorp-[0-9a-f]{16}\.tmp|\..+\.[0-9]+\.tmp")
"""Names of temporary files; one that is there while nobody writes was left by a process that was killed. The second
form is that of version 0.1.0."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system refuses into a message.

    Args:
        path: What is written. A system error that names another file is about that one.

    Raises:
        CheckpointError: It names the file and the disk, and says what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, ConnectionError | TimeoutError):  # a library's own, or a network's
            raise
        raise CheckpointError(disk_message(error, path)) from error


def disk_message(error: OSError, path: Path) -> str:
    """One sentence on what the operating system refused and where, and one on what to do."""
    named = path if not isinstance(error.filename, str | bytes) else Path(os.fsdecode(error.filename))
    named = path if LEFTOVER.fullmatch(named.name) else named
    return (
        f"{named}: {error.strerror or error} ({_disk(named)}). What was written before is whole: make room or allow "
        "writing there, then give the same command again."
    )


def _disk(path: Path) -> str:
    """The mount point that `path` lies on, and how much room it has."""
    place = Path(os.path.abspath(path))
    try:
        while not place.exists() or not os.path.ismount(place):
            place = place.parent
        return f"disk {place}, {shutil.disk_usage(place).free / 2**20:.1f} MiB free"
    except OSError:
        return f"disk {place}"
