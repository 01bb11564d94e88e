"""What a terminal shows of results: tables on standard output.

Names of tasks and files are printed as they are: nothing in them is read as markup. Needs neither torch nor
transformers; a running training is shown by `gorp.cli.live`.
"""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix
from gorp.printable import printable
from gorp.report import TaskVerdict, in_one_line, in_one_sentence, matrix_table, verdicts
from gorp.report.wording import MATRIX_READING, number


PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""

NEWEST = 3
"""Versions that `gorp status` shows, so that it fits a terminal of 24 lines."""

FEW = 4
"""Tasks that get a line each; of more, those that lost nothing share one."""

LEAK_READING = "Leak covers inputs in S alone; scores can drop at a leak of 1e-7."
"""Stands under every table with a leak in it: a small leak is not the same as nothing forgotten."""

WORDS = {
    "protected": (
        "the share of a task's inputs that S holds, the mean over the trained layers; where directions were released, "
        "at least that much"
    ),
    "outputs moved": (
        "how far later tasks have moved the answers of the trained layers to a task's tokens, beside how much those "
        "answers differ; an estimate to a few percent of itself, with the inputs that the layers had when the task "
        "ended. Embeddings, norms and what changed inputs do further on are not in it"
    ),
    "leak": (
        "share of a task's change that acts on the protected inputs (S) of each trained layer; strict mode keeps it at "
        "rounding, 1e-7. Inputs outside S, and layers fed by changed layers, are not covered: a task can lose points "
        "at that leak, and only its score shows it"
    ),
    "served": "the same of the weights that answer, rounded to the model's dtype; in bfloat16 most of it is rounding",
    "earlier": (
        "the leak on what each earlier task protected, the worst of them; above the leak once directions were released"
    ),
    "capacity": (
        "how full S is, in the fullest layer; at `method.budget` (default 75 %) the weakest directions give way"
    ),
    "kept": "what this version carries on to the next task",
}
"""The columns of the tasks and of the versions, each in one line."""


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or the error stream."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def show_status(console: Console, state: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print the state of a workspace: the verdict in words, the matrix, the newest versions, what is pending.

    Args:
        console: Where.
        state: As `gorp.workspace.status` gives it.
        explain: Also what the numbers mean, the notes on the rows, and all versions.
    """
    show_verdict(console, state, each=explain)
    matrix = AccuracyMatrix.from_dict(state["matrix"])
    _say(console, "")
    console.print(matrix_table(matrix))
    if explain:
        _say(console, MATRIX_READING, style="dim")
    _say(console, "")
    versions = state["versions"] if explain else _newest(state["versions"], state["current"])
    console.print(versions_table(versions, state["current"], of=len(state["versions"]), full=explain))
    if any(item["leak"] is not None for item in state["versions"]):
        _say(console, LEAK_READING, style="dim")
    if explain:
        _say(console, "")
        console.print(measures_table(state["measures"]))
        for name, meaning in WORDS.items():
            _say(console, f"{name}: {meaning}")
        for task, notes in state["notes"].items():
            for note in notes:
                _say(console, f"{task}: {note}")
    elif count := sum(map(len, state["notes"].values())):
        _say(console, f"{count} note{'s' * (count > 1)} on the data; --explain shows them", style="dim")


def show_verdict(console: Console, state: Mapping[str, Any], *, tasks: bool = True, each: bool = False) -> None:
    """Print what the current version knows on average, then of each of the `tasks`, and what is pending.

    Of a task with a line of its own also how much of it is protected and how far its outputs have moved, where the
    version says so. With `each` every task has one; otherwise many that lost nothing share one.
    """
    found = verdicts(AccuracyMatrix.from_dict(state["matrix"]), len(state["contains"]))
    sentence = in_one_sentence(found) or "the base model, nothing learned yet"
    _say(console, f"{state['current']} ({state['method']}): {sentence}", style="bold")
    dropped = sorted((item for item in found if item.dropped), key=lambda item: item.change)
    held = [item for item in found if not item.dropped]
    if tasks:
        alone = each or len(found) <= FEW
        lines = [*dropped, *(held if alone else [])]
        told = next(item.get("earlier") for item in state["versions"] if item["version"] == state["current"]) or {}
        if any(item.task in told for item in lines):
            console.print(tasks_table(lines, told))
        else:
            for item in lines:
                _say(console, f"  {item}", style="red" if item.dropped else "")
        if held and not alone:
            _say(console, f"  {in_one_line(held)}")
    if state["problem"]:
        _say(console, f"the YAML is not used: {state['problem']}; tasks are those that `gorp train` took last")
    pending = [f"{task} (begun)" if task in state["begun"] else task for task in state["pending"]]
    _say(console, f"pending: {', '.join(pending) or 'nothing'}")
    for line in state["remarks"] + state["warnings"]:
        _say(console, line, style="yellow")


def tasks_table(found: Sequence[TaskVerdict], told: Mapping[str, Mapping[str, Any]]) -> Table:
    """What became of each task, how much of it S holds, and how far its outputs have moved.

    Args:
        found: The tasks, in order.
        told: By task, what a method says of it: `coverage` and `output_change`, shares.
    """
    table = empty_table("", [""], ["protected", "outputs moved"])
    for item in found:
        numbers = (told.get(item.task, {}).get(key) for key in ("coverage", "output_change"))
        cells = [f" {item}", *("–" if value is None else f"{100 * value:.1f} %" for value in numbers)]
        table.add_row(*(Text(printable(cell)) for cell in cells), style="red" if item.dropped else None)
    return table


def measures_table(measures: Mapping[str, float | None]) -> Table:
    """Each measure with its formula and what it means; a dash where cells it needs were not measured."""
    table = empty_table("percent; differences in percentage points", ["formula"], [""])
    table.add_column("meaning")
    for name, formula in FORMULAS.items():
        add_row(table, formula, number(measures.get(name)), MEANINGS[name])
    return table


def versions_table(versions: Sequence[Mapping[str, Any]], current: str, *, of: int, full: bool = False) -> Table:
    """Versions of a workspace that has `of` in all, the current one marked; in `full` also the leak on earlier tasks.

    A parent is named where it is not the version before.
    """
    heading = "version" if len(versions) == of else f"version ({len(versions)} of {of})"
    table = empty_table("", [heading, "task", "made"], ["leak", "served", *["earlier"] * full, "capacity", "kept"])
    for item in versions:
        number_ = int(item["version"][1:])
        after = "" if item["parent"] in (None, f"v{number_ - 1}") else f" after {item['parent']}"
        capacity = "–" if item["capacity_max"] is None else f"{100 * item['capacity_max']:.0f} %"
        kept = f"{item['footprint_bytes'] / 2**20:.1f} MiB"
        name = f"{'*' if item['version'] == current else ' '} {item['version']}{after}"
        earlier = max((found["worst"] for found in (item.get("leak_earlier") or {}).values()), default=None)
        leaks = (item["leak"], item.get("leak_served"), *[earlier] * full)
        numbers = (*map(fraction, leaks), capacity, kept)
        add_row(table, name, item["task"] or "base model", short_date(item["created"]), *numbers)
    return table


def fraction(value: float | None) -> str:
    """A leak: `1e-7`, or `0.31` where it is not small."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.01 else re.sub("e-0*", "e-", f"{value:.0e}").replace("0e+00", "0")


def short_date(written: str) -> str:
    """A time stamp in the local time zone, in twelve letters: `26 Nov 12:44`, or `26 Nov 2025` in another year."""
    when, now = datetime.fromisoformat(written).astimezone(), datetime.now().astimezone()
    return f"{when:%d %b %H:%M}" if when.year == now.year else f"{when:%d %b %Y}"


def plain_table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """A table of text."""
    table = empty_table(title, headings, [])
    for line in lines:
        add_row(table, *line)
    return table


def empty_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """A table without rows; `left` and `right` are its headings, by the side their columns are aligned to."""
    table = Table(title=Text(title), title_justify="left", box=None)
    for heading in left:
        table.add_column(Text(heading), overflow="fold")
    for heading in right:
        table.add_column(Text(heading), justify="right")
    return table


def add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text."""
    table.add_row(*(Text(printable(cell)) for cell in cells))


def _newest(versions: Sequence[Mapping[str, Any]], current: str) -> list[Mapping[str, Any]]:
    """The newest few, and the current one where it is older."""
    newest = versions[-NEWEST:]
    older = [item for item in versions[:-NEWEST] if item["version"] == current]
    return [*older, *newest[len(older) :]]


def _say(console: Console, line: str, *, style: str = "") -> None:
    console.print(Text(printable(line), style=style))
