"""`gorp gate`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, folder, print_json, say, start
from gorp.errors import ConfigError


EXIT = {"ship": 0, "hold": 3, "inconclusive": 4}
"""Verdict -> exit code."""


def gate(
    workspace: Place = Path("."),
    version: Annotated[str | None, typer.Option(help="The new version. Default: the current one.")] = None,
    against: Annotated[str | None, typer.Option(help="The old version. Default: the one it was trained from.")] = None,
    margin: Annotated[
        float | None, typer.Option(help="Points that each task may lose. Default: the `gate:` block of the YAML, or 2.")
    ] = None,
    noise: Annotated[
        bool, typer.Option("--noise", help="Load the version and count answers that change in other batches.")
    ] = False,
    base: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", parser=folder, help="With --noise: the base model, if moved."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="With --noise: run Python code that comes with the model.")
    ] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Compute kept evidence again, and compare.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Also show what does not decide: likelihood, calibration, leak, noise.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write no evidence.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say for each earlier task whether a version still answers it: ship, hold (exit 3) or inconclusive (exit 4)."""
    with errors():
        from gorp.cli.console import console
        from gorp.cli.gate_tables import show_gate
        from gorp.workspace.gate import evidence_path
        from gorp.workspace.gate import gate as judge
        from gorp.workspace.place import place
        from gorp.workspace.verify import verify as again

        root, source = place(workspace)
        if verify and noise:
            raise ConfigError("--verify counts from the kept evidence, and --noise makes new counts. Give one of them.")
        if verify:
            found = again(evidence_path(root, version=version, against=against))
        else:
            found = judge(
                root,
                version=version,
                against=against,
                margin=margin,
                source=source,
                noise=noise,
                base=base,
                trust_remote_code=trust_remote_code,
                dry_run=dry_run,
                progress=start()[1] if noise else None,
            )
        if as_json:
            print_json(found)
            raise typer.Exit(EXIT[found["verdict"]])
        show_gate(console(), found, explain=explain)
        kept = "verified: the files give the same verdict and the same numbers" if verify else "evidence"
        if not dry_run:
            say(f"{kept}: {found['path']}")
        raise typer.Exit(EXIT[found["verdict"]])
