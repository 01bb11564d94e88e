"""`gorp doctor`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gorp.cli.command import AsJson, errors, folder, print_json


if TYPE_CHECKING:
    from gorp.doctor import Finding


STYLES = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(
    workspace: Annotated[
        Path | None,
        typer.Argument(metavar="WORKSPACE", parser=folder, help="Also check this workspace, or that of this YAML."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check the installation, and a workspace if one is given; exit 1 if there is a problem. Nothing is written."""
    with errors():
        from gorp.cli.console import console, say_on
        from gorp.workspace.place import place

        root, source = (None, None) if workspace is None else place(workspace)
        output, findings = console(), []
        for finding in _findings(root, source):
            findings.append(finding)
            if not as_json:
                says = f"{finding.level:8} {finding.what}: {finding.says.rstrip('.')}"
                say_on(output, f"{says}. {finding.advice}" if finding.advice else says, style=STYLES[finding.level])
        problems = sum(finding.level == "problem" for finding in findings)
        if as_json:
            print_json({"findings": [finding.to_dict() for finding in findings], "problems": problems})
        if problems:
            raise typer.Exit(1)


def _findings(root: Path | None, source: Path | None) -> "Iterator[Finding]":
    from gorp.doctor import check_installation, check_workspace

    yield from check_installation()
    if root is not None:
        yield from check_workspace(root, source=source)
