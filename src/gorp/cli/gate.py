"""`gorp gate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, say


EXIT = {"ship": 0, "hold": 3, "inconclusive": 4}
"""Verdict -> exit code."""

SHOWN = 5
"""Most flipped answers that are printed for each task; the evidence has all of them."""


def gate(
    workspace: Place = Path("."),
    version: Annotated[str | None, typer.Option(help="The new version. Default: the current one.")] = None,
    against: Annotated[str | None, typer.Option(help="The old version. Default: the one it was trained from.")] = None,
    margin: Annotated[float, typer.Option(help="Points that each task may lose.")] = 2.0,
    verify: Annotated[bool, typer.Option("--verify", help="Compute kept evidence again, and compare.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write no evidence.")] = False,
    as_json: AsJson = False,
) -> None:
    """Say for each earlier task whether a version still answers it: ship, hold (exit 3) or inconclusive (exit 4)."""
    with errors():
        from gorp.cli.console import console, gate_table
        from gorp.workspace.gate import evidence_path, in_words
        from gorp.workspace.gate import gate as judge
        from gorp.workspace.gate import verify as again
        from gorp.workspace.place import place

        folder, _ = place(workspace)
        if verify:
            found = again(evidence_path(folder, version=version, against=against))
        else:
            found = judge(folder, version=version, against=against, margin=margin, dry_run=dry_run)
    if as_json:
        print_json(found)
        raise typer.Exit(EXIT[found["verdict"]])
    say(f"{found['new']['version']} against {found['old']['version']}: {found['verdict'].upper()}")
    if not found["tasks"]:
        say(f"{found['old']['version']} had learned no task, so there was nothing to lose")
    else:
        console().print(gate_table(found))
    for task, facts in found["tasks"].items():
        say(in_words(task, facts))
        _say_flipped(found["flipped"][task])
    kept = "verified: the files give the same verdict and the same numbers" if verify else "evidence"
    if not dry_run:
        say(f"{kept}: {found['path']}")
    raise typer.Exit(EXIT[found["verdict"]])


def _say_flipped(rows: list[dict[str, Any]]) -> None:
    for row in rows[:SHOWN]:
        turned = "right, now wrong" if row["lost"] else "wrong, now right"
        prompt = " ".join(row["prompt"].split())[-60:]
        say(f"  {turned}: …{prompt} -> {row['old']!r}, now {row['new']!r}; wanted {row['expected']!r}")
    if len(rows) > SHOWN:
        say(f"  and {len(rows) - SHOWN} more in the evidence")
