"""`gorp rollback`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Base, TrustRemoteCode, errors, folder, print_json, say, start


def rollback(
    workspace: Annotated[
        Path, typer.Argument(metavar="WORKSPACE", parser=folder, help="The workspace folder, or its YAML.")
    ] = Path("."),
    version: Annotated[str | None, typer.Argument(help="An earlier version. Default: the one before.")] = None,
    base: Base = None,
    trust_remote_code: TrustRemoteCode = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the version; change nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Go back to an earlier version, if its files are whole and it still answers as it did."""
    with errors(interrupted=" The current version is unchanged."):
        from gorp.workspace.place import place

        root, source = place(workspace)
        _, progress = start()
        from gorp.workspace.rollback import rollback as go_back

        found = go_back(
            root,
            version=version,
            base=base,
            source=source,
            trust_remote_code=trust_remote_code,
            dry_run=dry_run,
            progress=progress,
        )
        if as_json:
            print_json(found)
            return
        checked = "its files are whole"
        if found["answers"]:
            same = found["answers"] - found["differing"]
            checked += f", and {same} of {found['answers']} recorded answers are the same"
        say(f"{found['version']}: {checked}")
        if found["not_asked"]:
            say(f"not asked, because no rows or answers are kept: {', '.join(found['not_asked'])}")
        if dry_run:
            say(f"would go back from {found['from']} to {found['version']}; nothing was changed")
            return
        forgotten = f"; it has not learned {', '.join(found['forgotten'])}" if found["forgotten"] else ""
        say(f"the current version is {found['version']} now, and was {found['from']}{forgotten}")
        say(f"the next task starts from {found['version']}; {found['from']} stays on the disk")
