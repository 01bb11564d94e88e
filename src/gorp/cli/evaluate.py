"""`gorp eval`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, TrustRemoteCode, errors, print_json, start


def evaluate(
    workspace: Place = Path("."),
    version: Annotated[
        str | None, typer.Option(help="Version to score, for example v2. Default: the current version.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="Score only this task. Default: all tasks.")] = None,
    trust_remote_code: TrustRemoteCode = False,
    as_json: AsJson = False,
) -> None:
    """Score a version again with the current YAML, and save the scores."""
    with errors():
        from gorp.workspace.place import place

        folder, source = place(workspace)
        console, progress = start()
        from gorp.cli.console import plain_table
        from gorp.workspace import evaluate_version

        result = evaluate_version(
            folder,
            source=source,
            version=version,
            task=task,
            trust_remote_code=trust_remote_code,
            progress=progress,
        )
        if as_json:
            print_json(result)
            return
        lines = [[n, f"{c['score']:.1f}", str(c["rows"]), c["metric"]] for n, c in result["scores"].items()]
        console.print(plain_table(result["version"], ["task", "score (%)", "rows", "metric"], lines))
