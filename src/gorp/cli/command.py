"""Code that the commands share: arguments, consoles, and the conversion of errors to messages and exit codes."""

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
    """Return `text` as a path. Refuse an empty name (an unset shell variable), which `Path` takes for "."."""
    if not str(text).strip():
        raise typer.BadParameter("the name is empty; give a folder. Is a shell variable not set?")
    return Path(text)


AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
"""The option of every command that has a result."""

Place = Annotated[
    Path,
    typer.Argument(
        metavar="WORKSPACE", parser=folder, help="The workspace folder, or its YAML. Default: the current folder."
    ),
]
"""The argument of every command that reads a workspace."""


Base = Annotated[Path | None, typer.Option(metavar="FOLDER", parser=folder, help="The base model, if it was moved.")]
"""The option of every command that loads the base model of a version."""

TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
]
"""The option of every command that loads a model."""


@contextmanager
def loading() -> Iterator[None]:
    """Show a status line on a terminal while the block imports heavy libraries."""
    from rich.console import Console

    stderr = Console(stderr=True)
    with stderr.status("loading torch and transformers") if stderr.is_terminal else nullcontext():
        yield


def start() -> tuple[Any, Any]:
    """Import the heavy libraries and silence their output; return the console for results and the `Progress`."""
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
    """Turn errors that are meant for a user into a message and an exit code; bugs keep their traceback.

    Args:
        interrupted: Added to the message after Ctrl-C or SIGTERM.
    """
    try:
        with sigterm_raises():
            yield
    except GorpError as error:
        say(f"gorp: {error}", err=True)
        raise typer.Exit(2 if isinstance(error, ConfigError) else 1) from None
    except OSError as error:
        # No errno: raised by a library. EPIPE: the reader of a pipe ended. No file name: a bug of ours.
        if error.errno in (None, errno.EPIPE) or not error.filename:
            raise
        say(f"gorp: {disk_message(error, Path(os.fsdecode(error.filename)))}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as stop:  # its text, if any, says what was saved
        saved = f" {stop}" if str(stop) else ""
        terminated = isinstance(stop, Terminated)
        say(f"gorp: {'terminated' if terminated else 'interrupted'}.{saved}{interrupted}", err=True)
        raise typer.Exit(TERMINATED if terminated else 130) from None


def say(line: str, *, err: bool = False) -> None:
    """Print a line; control characters in it (from names, models or data) and credentials in URLs are replaced."""
    typer.echo(printable(line), err=err)


def print_json(value: Any) -> None:
    """Print `value` as one line of JSON on stdout; control characters are escaped."""
    sys.stdout.write(json_printable(json.dumps(value, ensure_ascii=False, allow_nan=False)) + "\n")
