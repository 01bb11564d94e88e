"""`gorp gate`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, say


EXIT = {"ship": 0, "hold": 3, "inconclusive": 4}
"""Verdict -> exit code."""


def gate(
    workspace: Place = Path("."),
    version: Annotated[str | None, typer.Option(help="The new version. Default: the current one.")] = None,
    against: Annotated[str | None, typer.Option(help="The old version. Default: the one it was trained from.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points that each task may lose. Default: the `gate:` block of the YAML, or 2.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Compute kept evidence again, and compare.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write no evidence.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say for each earlier task whether a version still answers it: ship, hold (exit 3) or inconclusive (exit 4)."""
    with errors():
        from gorp.cli.console import console, show_gate
        from gorp.workspace.gate import evidence_path
        from gorp.workspace.gate import gate as judge
        from gorp.workspace.gate import verify as again
        from gorp.workspace.place import place

        folder, source = place(workspace)
        if verify:
            found = again(evidence_path(folder, version=version, against=against))
        else:
            found = judge(folder, version=version, against=against, margin=margin, source=source, dry_run=dry_run)
    if as_json:
        print_json(found)
        raise typer.Exit(EXIT[found["verdict"]])
    show_gate(console(), found)
    kept = "verified: the files give the same verdict and the same numbers" if verify else "evidence"
    if not dry_run:
        say(f"{kept}: {found['path']}")
    raise typer.Exit(EXIT[found["verdict"]])
