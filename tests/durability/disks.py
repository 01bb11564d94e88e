"""A small disk in memory that can be filled and made read-only; it needs the right to mount."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


PAGE = 4096
PLENTY = 256 * 2**20
"""Size of the disk while nothing is tried."""


class Disk:
    """A tmpfs.

    Args:
        place: Where it is mounted.
    """

    def __init__(self, place: Path) -> None:
        self.place = place

    def used(self) -> int:
        """Return the bytes that files take."""
        found = os.statvfs(self.place)
        return (found.f_blocks - found.f_bfree) * found.f_frsize

    def leave(self, room: int) -> None:
        """Change the size so that `room` bytes are free, in whole pages."""
        self._remount(f"size={self.used() + room // PAGE * PAGE}")

    def grow(self) -> None:
        """Give it plenty of room again, and allow writing."""
        self._remount(f"rw,size={PLENTY}")

    def forbid_writing(self) -> None:
        """Make it read-only."""
        self._remount("ro")

    def _remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.place)], check=True, capture_output=True)


@contextmanager
def mounted(place: Path) -> Iterator[Disk]:
    """Mount a disk at the existing folder `place` while the block runs; skip the test if that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={PLENTY}", "tmpfs", str(place)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("needs the right to mount a disk in memory")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)
