"""The command line: parse arguments, call the library, print. Results go to stdout, everything else to stderr.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration; 3 held by the gate, 4 too few rows for it to tell; 130
interrupted (Ctrl-C) and 143 terminated (SIGTERM). After 130 or 143 the same command continues the run.
"""

import sys
from typing import Annotated, Any

import typer

from gorp.cli.add import add, init, validate
from gorp.cli.ask import ask
from gorp.cli.demo import demo
from gorp.cli.diff import diff
from gorp.cli.doctor import doctor
from gorp.cli.evaluate import evaluate
from gorp.cli.export import export
from gorp.cli.gate import gate
from gorp.cli.keep import gc, log
from gorp.cli.look import methods, status
from gorp.cli.promote import promote
from gorp.cli.report import report
from gorp.cli.rollback import rollback
from gorp.cli.train import estimate, train


class App(typer.Typer):
    """The command line, which may be interrupted before a command has begun."""

    def __call__(self, *args: Any, **options: Any) -> Any:
        """Run the command that the arguments name."""
        try:
            return super().__call__(*args, **options)
        except KeyboardInterrupt:
            sys.exit(130)


app = App(
    help="Fine-tune a language model on one task after another, and measure after each what it still knows of the "
    "earlier ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for command in (demo, init, add, validate, train, status):
    app.command()(command)
app.command("eval")(evaluate)
for command in (ask, gate, promote, rollback, diff, report, export, log, gc, doctor, methods, estimate):
    app.command()(command)


@app.callback(invoke_without_command=True)
def main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.", is_eager=True)] = False,
) -> None:
    """Run `gorp COMMAND --help` for the options of a command."""
    if version:
        import gorp

        typer.echo(gorp.__version__)
        raise typer.Exit
