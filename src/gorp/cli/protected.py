"""What `gorp status` prints of a protection folder: it has no YAML, no pending tasks, and scores of the user's own."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from gorp.cli.console import add_row, empty_table, say_on
from gorp.cli.status_tables import WORDS, show_versions


def show_protection(console: Console, state: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print the learned tasks, what became of each, the scores of `evaluate=`, the versions, and how to go on.

    Args:
        console: Where to print.
        state: The result of `gorp.workspace.status` for a folder of `gorp.Protection`.
        explain: Also print what the numbers mean, and all versions.
    """
    tasks, base = state["contains"], state["base"]
    count = (
        f"{len(tasks)} task{'s' * (len(tasks) != 1)} learned with {state['method']}" if tasks else "no task learned yet"
    )
    say_on(console, f"{state['current']}: {count}", style="bold")
    say_on(console, f"base model: {base['path'] or 'not known by name'} ({base['architecture']}, {base['dtype']})")
    current = next(item for item in state["versions"] if item["version"] == state["current"])
    if tasks:
        table = empty_table("", ["task"], ["protected", "outputs moved"])
        for task in tasks:
            facts = (current["earlier"] or {}).get(task, {})
            numbers = (facts.get(key) for key in ("coverage", "output_change"))
            add_row(table, task, *("–" if value is None else f"{100 * value:.1f} %" for value in numbers))
        console.print(table)
    for line in state["remarks"] + state["warnings"]:
        say_on(console, line, style="yellow")
    names = list(dict.fromkeys(name for found in state["scores"].values() for name in found))
    if names:
        say_on(console, "")
        table = empty_table("", ["score, as evaluate= gave it"], list(state["scores"]))
        for name in names:
            values = (found.get(name) for found in state["scores"].values())
            add_row(table, name, *("–" if value is None else f"{value:g}" for value in values))
        console.print(table)
    show_versions(console, state, explain=explain)
    if explain:
        say_on(console, "")
        for name, meaning in WORDS.items():
            say_on(console, f"{name}: {meaning}")
    say_on(
        console, f"the next task: Protection({state['workspace']!r}) in the Trainer's callbacks, with the base model"
    )
