"""SIGTERM, as Slurm, Kubernetes and `kill` send it, ends a command as Ctrl-C does: cleanly, and with a message."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


EXIT_CODE = 128 + signal.SIGTERM
"""What a shell reports of a process that SIGTERM ended: 143."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def raise_terminated(*_: Any) -> None:
    """A handler for SIGTERM.

    Raises:
        Terminated: Always.
    """
    raise Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """While this is open, SIGTERM raises `Terminated`, if this is the main thread and nobody else catches it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
