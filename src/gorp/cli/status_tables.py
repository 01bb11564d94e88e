"""Print the state of a workspace: its verdict, scores and versions."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gorp.cli.console import add_row, empty_table, fraction, say_on, short_date
from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix
from gorp.printable import printable
from gorp.report import TaskVerdict, in_one_line, in_one_sentence, matrix_table, verdicts
from gorp.report.wording import MATRIX_READING, number, size
from gorp.workspace.held import held_in_words


NEWEST = 3
"""Number of versions that `gorp status` shows, so that its output fits a terminal of 24 lines."""

FEW = 4
"""Up to this many tasks have a line each; with more tasks, those that lost nothing share one line."""

LEAK_READING = "Leak covers only inputs in S: a score can drop although the leak is 1e-7."
"""Printed under every table with a leak in it, because a small leak does not mean that nothing was forgotten."""

WORDS = {
    "protected": (
        "share of the squared norm of the task's inputs that lies in the protected subspace S, mean over the trained "
        "layers; a lower bound once directions were released"
    ),
    "outputs moved": (
        "how far all later tasks have moved the outputs of the trained layers on this task's inputs, relative to how "
        "much those outputs vary from token to token. An estimate, accurate to a few percent of its value, with the "
        "inputs that the layers had when the task ended; the effect of one layer's change on later layers is not "
        "included"
    ),
    "leak": (
        "share of a task's weight change that acts on the protected inputs (S), in the worst layer; about 1e-7 in "
        "strict mode, which is float32 rounding. Inputs outside S, and layers fed by changed layers, are not covered: "
        "a task can lose points at that leak, and only its score shows it"
    ),
    "served": "the leak of the served weights, rounded to the model's dtype; in bfloat16 most of it is rounding",
    "earlier": (
        "the worst leak against what each earlier task protected; larger than the leak once directions were released"
    ),
    "capacity": (
        "share of the input space that S occupies, in the fullest layer; at `method.budget` (default 75 %) S replaces "
        "its weakest directions"
    ),
    "kept": "size of what this version passes on to the next task",
    "disk": "size of the version's files",
}
"""Explanation of each column of the tables of tasks and versions."""


def show_status(console: Console, state: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print the state of a workspace: a sentence for each task, the pending tasks, all scores, the newest versions.

    Args:
        console: Where to print.
        state: The result of `gorp.workspace.status`.
        explain: Also print what the numbers mean, the notes on the data, and all versions.
    """
    show_verdict(console, state, each=explain)
    matrix = AccuracyMatrix.from_dict(state["matrix"])
    say_on(console, "")
    console.print(matrix_table(matrix))
    if explain:
        say_on(console, MATRIX_READING, style="dim")
    show_versions(console, state, explain=explain)
    if explain:
        say_on(console, "")
        console.print(measures_table(state["measures"]))
        for name, meaning in WORDS.items():
            say_on(console, f"{name}: {meaning}")
        for task, notes in state["notes"].items():
            for note in notes:
                say_on(console, f"{task}: {note}")
    elif count := sum(map(len, state["notes"].values())):
        say_on(console, f"{count} note{'s' * (count > 1)} on the data: see --explain", style="dim")


def show_verdict(console: Console, state: Mapping[str, Any], *, tasks: bool = True, each: bool = False) -> None:
    """Print the mean score of the current version, its score on each task, and the tasks that are pending or held.

    A task with a line of its own also shows how much of it is protected and how far its outputs have moved, where the
    version records that.

    Args:
        console: Where to print.
        state: The result of `gorp.workspace.status`.
        tasks: Print the lines for the tasks.
        each: Give every task its own line; otherwise more than `FEW` tasks that lost nothing share one.
    """
    found = verdicts(AccuracyMatrix.from_dict(state["matrix"]), len(state["contains"]))
    sentence = in_one_sentence(found) or "the base model; no task learned yet"
    say_on(console, f"{state['current']} ({state['method']}): {sentence}", style="bold")
    dropped = sorted((item for item in found if item.dropped), key=lambda item: item.change)
    kept = [item for item in found if not item.dropped]
    if tasks:
        own_lines = each or len(found) <= FEW
        lines = [*dropped, *(kept if own_lines else [])]
        facts = next(item.get("earlier") for item in state["versions"] if item["version"] == state["current"]) or {}
        if any(item.task in facts for item in lines):
            console.print(tasks_table(lines, facts))
        else:
            for item in lines:
                say_on(console, f"  {item}", style="red" if item.dropped else "")
        if kept and not own_lines:
            say_on(console, f"  {in_one_line(kept)}")
    if state["problem"]:
        say_on(console, f"the YAML is not used: {state['problem']}; the tasks shown are those of the last `gorp train`")
    pending = [f"{task} (started)" if task in state["begun"] else task for task in state["pending"]]
    say_on(console, f"pending tasks: {', '.join(pending) or 'none'}")
    for task, facts in state["held"].items():
        say_on(console, held_in_words(task, facts, current=state["current"]), style="red")
    for version, reason in state["anyway"].items():
        say_on(console, f"{version} was promoted although the gate did not accept it: {reason}", style="yellow")
    for line in state["remarks"] + state["warnings"]:
        say_on(console, line, style="yellow")


def show_versions(console: Console, state: Mapping[str, Any], *, explain: bool) -> None:
    """Print the table of the newest versions, or of all, and what their leak does not say.

    The line above the table is empty, or says what `gorp gc` would free.
    """
    disk = state["disk"]
    freed = f"{size(disk['bytes'])} on disk; `gorp gc` would free {size(disk['gc_would_free'])}"
    say_on(console, freed if disk["gc_would_free"] else "", style="dim")
    versions = state["versions"] if explain else _newest(state["versions"], state["current"])
    console.print(versions_table(versions, state["current"], of=len(state["versions"]), full=explain))
    if any(item["leak"] is not None for item in state["versions"]):
        say_on(console, LEAK_READING, style="dim")


def tasks_table(found: Sequence[TaskVerdict], facts: Mapping[str, Mapping[str, Any]]) -> Table:
    """Return a table with a line for each task: its score, how much of it is protected, how far its outputs moved.

    Args:
        found: The tasks, in order.
        facts: Task -> `coverage` and `output_change` as the version records them, as fractions.
    """
    table = empty_table("", [""], ["protected", "outputs moved"])
    for item in found:
        numbers = (facts.get(item.task, {}).get(key) for key in ("coverage", "output_change"))
        cells = [f" {item}", *("–" if value is None else f"{100 * value:.1f} %" for value in numbers)]
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if item.dropped else None)
    return table


def versions_table(versions: Sequence[Mapping[str, Any]], current: str, *, of: int, full: bool = False) -> Table:
    """Return a table of versions; `*` marks the current one, and a parent is named if it is not the version before.

    Args:
        versions: The versions to show, by number.
        current: Name of the current version.
        of: Number of versions in the workspace.
        full: Also show the leak on earlier tasks, and the size of what a version passes on.
    """
    heading = "version" if len(versions) == of else f"version ({len(versions)} of {of})"
    numbers = ["leak", "served", *["earlier"] * full, "capacity", *["kept"] * full, "disk"]
    table = empty_table("", [heading, "task", "created"], numbers)
    for item in versions:
        number_ = int(item["version"][1:])
        after = "" if item["parent"] in (None, f"v{number_ - 1}") else f" after {item['parent']}"
        capacity = "–" if item["capacity_max"] is None else f"{100 * item['capacity_max']:.0f} %"
        name = f"{'*' if item['version'] == current else ' '} {item['version']}{after}"
        earlier = max((found["worst"] for found in (item.get("leak_earlier") or {}).values()), default=None)
        leaks = (item["leak"], item.get("leak_served"), *[earlier] * full)
        sizes = (*[size(item["footprint_bytes"])] * full, size(item["disk_bytes"]))
        numbers = (*map(fraction, leaks), capacity, *sizes)
        add_row(table, name, item["task"] or "base model", short_date(item["created"]), *numbers)
    return table


def measures_table(measures: Mapping[str, float | None]) -> Table:
    """Return a table of the measures with formula, value and meaning; a dash where a score is missing."""
    table = empty_table("in percent; differences in percentage points", ["formula"], [""])
    table.add_column("meaning")
    for name, formula in FORMULAS.items():
        add_row(table, formula, number(measures.get(name)), MEANINGS[name])
    return table


def _newest(versions: Sequence[Mapping[str, Any]], current: str) -> list[Mapping[str, Any]]:
    """Return the `NEWEST` newest versions, of which the current one replaces the oldest if it is older still."""
    newest = versions[-NEWEST:]
    older = [item for item in versions[:-NEWEST] if item["version"] == current]
    return [*older, *newest[len(older) :]]
