"""The command line in this process."""

from typing import Any

from click.testing import Result
from typer.testing import CliRunner

from gorp.cli import app


def gorp(*arguments: Any, **options: Any) -> Result:
    """Run `gorp` with these arguments; `options` are those of `CliRunner.invoke`, such as `input`."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments], **options)
