"""What the commands share: arguments, consoles, and errors that become messages and exit codes."""

import errno
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.disk import disk_message
from gorp.errors import ConfigError, GorpError
from gorp.printable import json_printable, printable
from gorp.termination import EXIT_CODE as TERMINATED
from gorp.termination import Terminated, sigterm_raises


def folder(text: str | Path) -> Path:
    """A path; an empty name, as a variable has that was never set, is not the current folder."""
    if not str(text).strip():
        raise typer.BadParameter("is empty; wanted a folder. Is a variable not set?")
    return Path(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
"""Every command that has a result takes it."""

Place = Annotated[
    Path,
    typer.Argument(
        metavar="WORKSPACE", parser=folder, help="The workspace, or its YAML; the current folder by default."
    ),
]
"""A command that reads a workspace."""


@contextmanager
def loading() -> Iterator[None]:
    """Say on a terminal, while heavy libraries are imported, what takes these seconds."""
    from rich.console import Console

    stderr = Console(stderr=True)
    with stderr.status("loading torch and transformers") if stderr.is_terminal else nullcontext():
        yield


def start() -> tuple[Any, Any]:
    """Import the heavy libraries; return the console for results and the progress for everything else."""
    with loading():
        import datasets
        from transformers.utils import logging

        from gorp.cli.console import console
        from gorp.cli.live import progress_on

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    datasets.disable_progress_bars()
    return console(), progress_on(console(stderr=True))


@contextmanager
def errors(*, interrupted: str = "") -> Iterator[None]:
    """Errors meant for a user become a message and an exit code; others are ours and keep their traceback."""
    try:
        with sigterm_raises():
            yield
    except GorpError as error:
        say(f"gorp: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    except OSError as error:
        if error.errno in (None, errno.EPIPE) or not error.filename:  # of a library; of a reader that left; ours
            raise
        say(f"gorp: {disk_message(error, Path(os.fsdecode(error.filename)))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:  # it may say what was saved
        saved = f" {stop}" if str(stop) else ""
        terminated = isinstance(stop, Terminated)
        say(f"gorp: {'terminated' if terminated else 'interrupted'}.{saved}{interrupted}", err=True)
        raise typer.Exit(TERMINATED if terminated else 130) from None


def say(line: str, *, err: bool = False) -> None:
    """Print a line; names and text of models and data in it command no terminal."""
    typer.echo(printable(line), err=err)


def print_json(value: Any) -> None:
    sys.stdout.write(json_printable(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n")
