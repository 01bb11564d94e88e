"""One writer a workspace: a lock on a file that says who holds it.

The lock itself is the operating system's (POSIX record lock, which network file systems know too): it is gone when its
process is gone, in whatever way, so nothing is left behind by a kill. The file beside it names host, process, start and
command. It decides only where the system's lock cannot: for a holder on another computer, whose file system may not
pass locks on, and on file systems without locks.
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


LOCK = "gorp.lock"

WITHOUT_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOLCK)
"""What a file system answers that has no locks."""

_held: set[str] = set()
"""Folders that this process holds: record locks part processes, not threads."""


class Held:
    """A lock that is held.

    Args:
        path: Of the lock's file.
        descriptor: On which it is held.
    """

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path, self.descriptor = path, descriptor

    def check(self) -> None:
        """See that nobody took the lock away.

        Raises:
            CheckpointError: If its file was removed or replaced: another process may write now.
        """
        if not _is_at(self.descriptor, self.path):
            raise CheckpointError(
                f"{self.path}: was removed while this process held it, so that another may write here. This one stops; "
                "what was written before is whole. Let the other one end."
            )


@contextmanager
def locked(folder: Path) -> Iterator[Held]:
    """Hold the lock of `folder`, which exists, while the block runs.

    Raises:
        CheckpointError: If another process holds it; the message says which, and what to do.
    """
    path, key = folder / LOCK, os.path.realpath(folder)
    if key in _held:
        raise CheckpointError(f"{folder}: this process is writing there already. Let the other run end first.")
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


@contextmanager
def briefly(path: Path) -> Iterator[None]:
    """Hold the lock on the file at `path`, for as long as a few files take; wait for a process that holds it.

    Raises:
        CheckpointError: If the disk refuses.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, _ = _acquire(path, wait=True)
    try:
        yield
    finally:
        if _is_at(descriptor, path):
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path, *, wait: bool = False) -> tuple[int, str]:
    """The lock's file, open, and the system's answer: `granted`, `held` (by another), or `none` (it has no locks)."""
    while True:
        descriptor, answer = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), "granted"
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
    """Who wrote the file last; empty where nobody did, or not to the end."""
    try:
        holder = json.loads(os.pread(descriptor, 65536, 0))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _write(descriptor: int) -> None:
    about = {
        "host": socket.gethostname(),
        "boot": _boot(),
        "pid": os.getpid(),
        "started": _started(os.getpid()),
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])[:1000],
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, (json.dumps(about) + "\n").encode(), 0)
    os.fsync(descriptor)


def _is_gone(holder: dict[str, Any], *, by_system: bool) -> bool:
    """Whether the process that wrote the file is no more.

    Args:
        holder: What the file says.
        by_system: The system gave us the lock, which it does not while a process of this computer holds it.
    """
    here = holder.get("boot") == _boot() if holder.get("boot") else holder.get("host") == socket.gethostname()
    if not here:
        return holder.get("host") == socket.gethostname()  # this computer, before it was started anew
    if by_system:
        return True
    pid = holder.get("pid")
    return not isinstance(pid, int) or _started(pid) is None or _started(pid) != holder.get("started")


def _refusal(folder: Path, path: Path, holder: dict[str, Any]) -> str:
    who = f"process {holder.get('pid')} on {holder.get('host')} since {holder.get('since')}: `{holder.get('command')}`"
    if holder.get("host") == socket.gethostname() or not holder:
        return f"{folder}: another gorp writes there ({who if holder else 'it has just begun'}). Wait until it ends."
    return (
        f"{folder}: another gorp writes there ({who}). From here it cannot be seen whether it still runs. If it does "
        f"not, remove {path} and give the command again."
    )


def _boot() -> str | None:
    """Names this computer since it was started, the same in all its containers; None where the system has no such."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None


def _started(pid: int) -> str | None:
    """When a process of this computer was started, in whatever unit; None where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # another user's
        pass
    return "alive"
