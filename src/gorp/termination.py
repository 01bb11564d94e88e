"""Handle SIGTERM, which Slurm, Kubernetes and `kill` send, like Ctrl-C: end the command cleanly, with a message."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


EXIT_CODE = 128 + signal.SIGTERM
"""Exit code of a process that SIGTERM ended: 143."""


class Terminated(KeyboardInterrupt):
    """The process received SIGTERM."""


def raise_terminated(*_: Any) -> None:
    """Handle SIGTERM by raising `Terminated`.

    Raises:
        Terminated: Always.
    """
    raise Terminated


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise `Terminated` inside the context, in the main thread, if no other handler is installed."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
