"""List the file operations of this process inside a folder, or kill the process before one of them.

Python reports most of them to an audit hook before they happen; `os.fsync`, and what writes a file without Python's
`open` (`torch.save`, safetensors), are wrapped. Operations that change nothing are left out: a folder made where it is
already, a file removed where there is none. Before operation n + 1 is also after operation n, so a kill before each one
is a kill at every state that the files pass through, but for what is written into an open file or within one call of
the wrapped functions.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch


WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")


def watch(folder: Path, *, log: str | None = None, kill_before: int | None = None) -> None:
    """Count the file operations of this process below `folder` from now on.

    Args:
        folder: Operations elsewhere do not count.
        log: File that gets a line for each operation.
        kill_before: Number of the operation, from 1, before which the process is killed with SIGKILL.
    """
    root, seen = os.path.realpath(folder), [0]
    listing = None if log is None else os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def count(event: str, name: str) -> None:
        seen[0] += 1
        if listing is not None:
            os.write(listing, f"{event} {os.path.relpath(name, root)}\n".encode())
        if seen[0] == kill_before:
            os.kill(os.getpid(), signal.SIGKILL)

    def changed(event: str, name: str | None) -> None:
        if name is not None and (name == root or name.startswith(root + os.sep)):
            count(event, name)

    def wrap(module: Any, function: str, name_of: Callable[[Any], str | None], *, place: int) -> None:
        original = getattr(module, function)

        def counted(*values: Any, **options: Any) -> Any:
            changed(f"{module.__name__}.{function}", name_of(values[place]))
            return original(*values, **options)

        setattr(module, function, counted)

    wrap(os, "fsync", lambda descriptor: os.path.realpath(f"/proc/self/fd/{descriptor}"), place=0)
    wrap(torch, "save", _written, place=1)
    wrap(safetensors.torch, "serialize_file", _written, place=1)
    sys.addaudithook(lambda event, values: changed(event, _changed(event, values)))


def _written(target: Any) -> str | None:
    """Return the absolute path of a file that is written by name; None for an open file, whose `open` has counted."""
    return os.path.realpath(target) if isinstance(target, str | os.PathLike) else None


def _changed(event: str, values: tuple[Any, ...]) -> str | None:
    """Return the absolute path that an audited operation changes; None if it changes nothing."""
    if event == "open":
        flags = values[2]
        if not isinstance(flags, int) or not flags & WRITING:
            return None
    elif event not in CHANGES:
        return None
    path = values[0]
    if isinstance(path, int):
        return os.path.realpath(f"/proc/self/fd/{path}")
    name = os.fsdecode(path)
    beside = values[-1] if event in ("os.remove", "os.rmdir", "os.mkdir") else -1
    if isinstance(beside, int) and beside >= 0 and not os.path.isabs(name):  # relative to an open folder
        name = os.path.join(os.path.realpath(f"/proc/self/fd/{beside}"), name)
    name = os.path.abspath(name)
    if os.path.lexists(name) is (event == "os.mkdir") and event in ("os.mkdir", "os.remove", "os.rmdir"):
        return None
    return name
