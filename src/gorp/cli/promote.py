"""`gorp promote`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, say
from gorp.cli.gate import EXIT


def promote(
    workspace: Place = Path("."),
    version: Annotated[
        str | None, typer.Option(help="The later version. Default: the newest that was trained from the current one.")
    ] = None,
    anyway: Annotated[
        str | None, typer.Option(metavar="REASON", help="Move whatever the gate says; the reason is kept.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Compare; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make a later version the current one, if the gate accepts it: one that was held, or that a rollback left.

    Nothing is moved if it lost on an earlier task (exit 3), or if there are too few rows to tell and the YAML has
    `gate: {inconclusive: hold}` (exit 4).
    """
    with errors(interrupted=" The current version is unchanged."):
        from gorp.workspace.place import place
        from gorp.workspace.promote import promote as move_on

        folder, source = place(workspace)
        found = move_on(folder, version=version, anyway=anyway, source=source, dry_run=dry_run)
        goes = found["accepted"] or found["anyway"] is not None
        if as_json:
            print_json(found)
        else:
            from gorp.cli.console import console
            from gorp.cli.gate_tables import show_gate

            show_gate(console(), found["gate"])
            new, old = found["version"], found["from"]
            if dry_run:
                say(f"would {'go' if goes else 'not go'} on from {old} to {new}; nothing was changed")
            elif goes:
                say(f"the current version is {new} now, and was {old}; the next task starts from {new}")
            else:
                say(f"the current version is still {old}; --anyway REASON takes {new} as it is")
        raise typer.Exit(0 if goes else EXIT[found["gate"]["verdict"]])
