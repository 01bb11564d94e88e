"""Turn file errors of the operating system (disk full, read-only, no permission) into messages with file and disk."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gorp.errors import CheckpointError


LEFTOVER = re.compile(r"\.gorp-[0-9a-f]{16}\.tmp|\..+\.[0-9]+\.tmp")
"""Names of temporary files. If no process is writing, such a file was left by a killed process. The second form is that
of version 0.1.0."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the context into a CheckpointError.

    Args:
        path: The file that is written. If the OSError names another file, the message does too.

    Raises:
        CheckpointError: With the file, the disk, and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(
            error, ConnectionError | TimeoutError
        ):  # raised by a library or the network
            raise
        raise CheckpointError(disk_message(error, path)) from error


def disk_message(error: OSError, path: Path) -> str:
    """Return one sentence about the error, the file and the disk, and one about what to do."""
    named = path if not isinstance(error.filename, str | bytes) else Path(os.fsdecode(error.filename))
    named = path if LEFTOVER.fullmatch(named.name) else named
    return (
        f"{named}: {error.strerror or error} ({_disk(named)}). Files that were written before are complete. Free some "
        "space or allow writing there, then run the same command again."
    )


def _disk(path: Path) -> str:
    """Return the mount point of `path` and its free space."""
    place = Path(os.path.abspath(path))
    try:
        while not place.exists() or not os.path.ismount(place):
            place = place.parent
        return f"disk {place}, {shutil.disk_usage(place).free / 2**20:.1f} MiB free"
    except OSError:
        return f"disk {place}"
