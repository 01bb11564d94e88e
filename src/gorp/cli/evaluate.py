"""`gorp eval`."""

from pathlib import Path
from typing import Annotated

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, start


def evaluate(
    workspace: Place = Path("."),
    version: Annotated[str | None, typer.Option(help="For example v2; the current one by default.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task; all by default.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Score a version again, as the YAML is now, and keep the scores."""
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
        console.print(plain_table(result["version"], ["task", "percent right", "rows", "metric"], lines))
