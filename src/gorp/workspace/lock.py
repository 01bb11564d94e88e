"""Allow one writer per workspace: lock a file that also records who holds the lock.

The lock is a POSIX record lock, which network file systems support too. The operating system releases it when the
process ends for any reason, so a killed process leaves no lock behind. The content of the file (host, process, start
time, command) decides only where the system's lock cannot: if the holder is on another computer, because not every
network file system passes locks on, and on file systems without locks.
"""

import errno
import fcntl
import json
import os
import shlex
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gorp.disk import disk_errors
from gorp.errors import CheckpointError
from gorp.permissions import file_mode, make_folder


LOCK = "gorp.lock"

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""Error codes of a file system that does not support locks."""

_held: set[str] = set()
"""Folders that this process has locked: record locks exclude other processes, not other threads of this one."""


class Held:
    """A lock that this process holds.

    Args:
        path: The lock file.
        descriptor: File descriptor of the locked file.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """Check that this process still holds the lock.

        Raises:
            CheckpointError: If the lock file was removed or replaced, so that another process may write now.
        """
        if not _is_at(self.descriptor, self.path):
            raise CheckpointError(
                f"{self.path}: this lock file was removed while this process held it, so another process may write "
                "here. This process stops; everything it wrote before is complete. Wait until the other one ends."
            )


@contextmanager
def locked(folder: Path) -> Iterator[Held]:
    """Hold the lock of the existing folder `folder` while the block runs.

    Raises:
        CheckpointError: If another process holds it; the message names the process and what to do.
    """
    path, key = folder / LOCK, os.path.realpath(folder)
    if key in _held:
        raise CheckpointError(f"{folder}: this process is already writing there. Wait until the other run ends.")
    with disk_errors(path):
        descriptor, answer = _acquire(path)
    _held.add(key)
    mine = False
    try:
        holder = _read(descriptor)
        if answer == "held" or (holder and not _is_gone(holder, by_system=answer == "granted")):
            raise CheckpointError(_refusal(folder, path, holder))
        held, mine = Held(path, descriptor), True
        with disk_errors(path):
            _write(descriptor)
        yield held
        held.check()
    finally:
        _held.discard(key)
        if mine and _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def holder_of(folder: Path) -> tuple[dict[str, Any], bool] | None:
    """Return what the lock file of a folder says of its holder, and whether that process still runs; None: no file.

    A process of another computer counts as running. Only the file is read: a lock, even for a moment, could make
    another process fail that wants to write.
    """
    if os.path.realpath(folder) in _held:  # closing a descriptor of the file would release this process's lock
        return {"pid": os.getpid(), "host": socket.gethostname()}, True
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        holder = _read(descriptor)
    finally:
        os.close(descriptor)
    return holder, bool(holder) and not _is_gone(holder, by_system=False)


@contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Hold a lock on the file `path` for a short operation; wait if another process holds it.

    Raises:
        CheckpointError: If the disk cannot be written.
    """
    with disk_errors(path):
        make_folder(path.parent)
        descriptor, _ = _acquire(path, wait=True)
    try:
        yield
    finally:
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Hold a lock on the existing file `path` while the block replaces it by a rename; wait for another process.

    The lock is on the file itself, so that none is left beside a file of the user. It belongs to the open descriptor:
    the block may open and close the file. Without locks on the file system nothing is locked.
    """
    while True:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in (*WITHOUT_LOCKS, errno.EBADF):
                os.close(descriptor)
                raise
        if _is_at(descriptor, path):
            break
        os.close(descriptor)  # it was replaced while we waited
    try:
        yield
    finally:
        os.close(descriptor)


def _acquire(path: Path, *, wait: bool = False) -> tuple[int, str]:
    """Open and lock the file; return its descriptor and `granted`, `held` (by another process) or `none` (no locks)."""
    while True:
        descriptor, answer = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, file_mode(path.parent)), "granted"
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return descriptor, "held"
            if error.errno not in WITHOUT_LOCKS:
                os.close(descriptor)
                raise
            answer = "none"
        if _is_at(descriptor, path):
            return descriptor, answer
        os.close(descriptor)  # its holder removed the file between our open and our lock


def _is_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def _read(descriptor: int) -> dict[str, Any]:
    """Return the holder recorded in the file; empty if there is none or the record is incomplete."""
    try:
        holder = json.loads(os.pread(descriptor, 65536, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _write(descriptor: int) -> None:
    holder = {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000],
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(holder) + "\n").encode(), 0)
    os.fsync(descriptor)


def _is_gone(holder: dict[str, Any], *, by_system: bool) -> bool:
    """Whether the process recorded in the file has ended.

    Args:
        holder: The record.
        by_system: Whether the system granted us the lock; it does not while another process of this computer holds it.
    """
    here = holder.get("boot") == _boot() if holder.get("boot") else holder.get("host") == socket.gethostname()
    if not here:
        return holder.get("host") == socket.gethostname()  # this computer, before its last restart
    if by_system:
        return True
    pid = holder.get("pid")
    return not isinstance(pid, int) or _started(pid) is None or _started(pid) != holder.get("started")


def _refusal(folder: Path, path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}: `{holder.get('command')}`"
    if holder.get("host") == socket.gethostname() or not holder:
        return f"{folder}: another gorp process writes there ({who if holder else 'just started'}). Wait until it ends."
    return (
        f"{folder}: another gorp process writes there ({who}). It is on another computer, so it is unknown whether it "
        f"still runs. If it does not, remove {path} and run the command again."
    )


def _boot() -> str | None:
    """Return an id of this computer since its last restart, the same in all containers; None if there is no such id."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """Return when a process of this computer started, in the system's own unit; None if there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # it belongs to another user
        pass
    return "alive"
