"""`gorp log` and `gorp gc`, which need neither torch nor transformers."""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gorp.cli.command import AsJson, Place, errors, print_json, say


FIRST = ("time", "event", "version", "task")
"""Facts of an event with a column of their own; the others follow with their names."""


def log(workspace: Place = Path("."), as_json: AsJson = False) -> None:
    """Show what happened in a workspace, oldest first, and check that no line of its ledger was changed."""
    with errors():
        from gorp.workspace.place import place
        from gorp.workspace.store import Workspace

        folder, _ = place(workspace)
        events, problem = Workspace(folder).history()
        if as_json:
            print_json({"workspace": str(folder), "events": events, "problem": problem})
        else:
            for line in _lines(events):
                say(line)
        if problem:
            say(f"gorp: {problem}", err=True)
            raise typer.Exit(1)


def gc(
    workspace: Place = Path("."),
    unlisted: Annotated[
        bool, typer.Option("--unlisted", help="Also remove unfinished trainings of tasks that the YAML does not list.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be freed; remove nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Remove versions that a rollback left behind, checkpoints of learned tasks, and leftovers of killed processes."""
    with errors(interrupted=" The workspace is whole; the same command removes the rest."):
        from gorp.report.wording import size
        from gorp.workspace.gc import collect
        from gorp.workspace.place import place

        folder, source = place(workspace)
        found = collect(folder, unlisted=unlisted, source=source, dry_run=dry_run)
        if as_json:
            print_json(found)
            return
        for item in found["removed"]:
            say(f"{'would remove' if dry_run else 'removed'} {item['path']} ({size(item['bytes'])}): {item['why']}")
        if not found["removed"]:
            say("there is nothing to remove")
        else:
            say(f"{'would free' if dry_run else 'freed'} {size(found['bytes'])}")


def _lines(events: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each event: the time here, the columns of `FIRST`, then the other facts in their order."""
    table = [[_time(event.get("time")), *(_text(event.get(key)) for key in FIRST[1:])] for event in events]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for event, cells in zip(events, table, strict=True):
        rest = ", ".join(
            f"{key} {_text(value)}" for key, value in event.items() if key not in FIRST and value is not None
        )
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        lines.append("  ".join([*padded, rest]).rstrip())
    return lines


def _text(value: Any) -> str:
    """Return a fact in one line; digests are shortened to twelve characters."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1…", " ".join(text.split()))


def _time(written: Any) -> str:
    try:
        return f"{datetime.fromisoformat(written).astimezone():%Y-%m-%d %H:%M:%S}"
    except (TypeError, ValueError):  # not a time as gorp writes it
        return _text(written)
