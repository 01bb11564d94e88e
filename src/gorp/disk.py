"""Turn file errors of the operating system (disk full, read-only, no permission) into messages with file and disk."""

import errno
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


TORCH_WRITER = ("PytorchStreamWriter", "iostream error", "unexpected pos")
"""Words of which the error of `torch.save` has one if it could not write."""

ALMOST_FULL = 2**20
"""Bytes; with fewer free ones the disk is the reason for an error of torch."""


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn an OSError inside the context, or what a library makes of one, into a CheckpointError.

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
    except Exception as error:
        if (number := _number(error, path)) is None:
            raise
        raise CheckpointError(disk_message(OSError(number, os.strerror(number)), path)) from error


def _number(error: Exception, path: Path) -> int | None:
    """Return the error number that a library hides: safetensors in its text, torch not at all; None for other errors.

    torch writes in C++ and complains about its own format; whether the disk is full must be looked up.
    """
    text = f"{error} {error.__context__}"
    if type(error).__name__ == "SafetensorError" and (found := re.search(r"\(os error (\d+)\)", text)):
        return int(found[1])
    if not isinstance(error, RuntimeError) or not any(words in text for words in TORCH_WRITER):
        return None
    place = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    return errno.ENOSPC if shutil.disk_usage(place).free < ALMOST_FULL else errno.EIO


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
