"""Tables of results, printed to stdout.

Names of tasks and files are printed as plain text, never as Rich markup. This module needs neither torch nor
transformers; `gorp.cli.live` shows a running training.
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
from gorp.report.wording import MATRIX_READING, number, size
from gorp.workspace.held import held_in_words


PLAIN_WIDTH = 160
"""Width in characters of output that goes to a file or a pipe."""

NEWEST = 3
"""Number of versions that `gorp status` shows, so that its output fits a terminal of 24 lines."""

FEW = 4
"""Up to this many tasks have a line each; with more tasks, those that lost nothing share one line."""

FLIPPED = 5
"""Most answers that changed that are printed for each task; the evidence has all of them."""

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


GATE_WORDS = {
    "NLL": (
        "negative log-likelihood of the right answer, in nats per token; lower is better. It moves before answers "
        "change. It does not decide"
    ),
    "ECE": (
        "expected calibration error: how far the probability that the model gives its own answers is from their rate "
        "of being right. It does not decide"
    ),
    "leak": (
        "share of the change between the two versions that acts on what the task protected, in the worst layer. It "
        "does not decide"
    ),
    "noise": (
        "of the rows, those whose answer turned right or wrong when the same version answered them in other batches "
        "(--noise). One standard error of it is the least margin of the task"
    ),
}
"""Explanation of each column of the gate's second table."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; `PLAIN_WIDTH` wide where that is not a terminal."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


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


def gate_table(found: Mapping[str, Any]) -> Table:
    """Return a table with a line for each earlier task: both scores, the drop with its interval, flips, and verdict.

    Args:
        found: The result of `gorp.workspace.gate.gate`.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("task", "rows", "old", "new", "drop (90 % interval)", "right to wrong", "wrong to right", "verdict"):
        table.add_column(name, justify="left" if name in ("task", "verdict") else "right")
    colors = {"ship": "green", "hold": "red", "inconclusive": "yellow"}
    for task, facts in found["tasks"].items():
        low, high = facts["interval"]
        table.add_row(
            Text(printable(task)),
            str(facts["rows"]),
            number(facts["old"]) if facts["old"] is not None else "-",
            number(facts["new"]) if facts["new"] is not None else "-",
            f"{facts['drop']:+.1f} ({low:+.1f} to {high:+.1f})",
            str(facts["lost"]),
            str(facts["won"]),
            Text(facts["verdict"].upper(), style=colors[facts["verdict"]]),
        )
    return table


def certainty_table(found: Mapping[str, Any]) -> Table:
    """Return a table of what does not decide a verdict: likelihood, calibration, leak, and noise of each task.

    Args:
        found: The result of `gorp.workspace.gate.gate`.
    """
    numbers = ["NLL old", "new", "change (95 % interval)", "ECE old", "new", "leak", "noise"]
    table = empty_table("", ["task"], numbers)
    for task in found["tasks"]:
        nll, ece = (found["certainty"][task][name] for name in ("nll", "ece"))
        leaks, noise = found["leaks"].get(task), (found["noise"] or {}).get(task)
        likely = ["–"] * 3
        if nll is not None:
            low, high = nll["interval"]
            change = f"{nll['difference']:+.2f} ({low:+.2f} to {high:+.2f})"
            likely = [f"{nll['old']:.2f}", f"{nll['new']:.2f}", change]
        calibrated = ["–"] * 2 if ece is None else [f"{ece['old']:.2f}", f"{ece['new']:.2f}"]
        changed = "–" if noise is None else f"{noise['flipped']}/{noise['rows']}"
        add_row(table, task, *likely, *calibrated, fraction(leaks and leaks["worst"]), changed)
    return table


def show_gate(console: Console, found: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print the verdict on a version: its table, a sentence for each task, and the first answers that changed.

    Args:
        console: Where to print.
        found: The result of `gorp.workspace.gate.gate`.
        explain: Also print what does not decide the verdict.
    """
    from gorp.workspace.gate_words import in_words, remarks
    from gorp.workspace.guard_values import guard_in_words  # imports scipy

    new, old = found["new"]["version"], found["old"]["version"]
    say_on(console, f"{new} against {old}: {found['verdict'].upper()}")
    if found["tasks"]:
        console.print(gate_table(found))
    else:
        say_on(console, f"{old} had learned no task, so there was nothing to lose")
    for task, facts in found["tasks"].items():
        say_on(console, in_words(task, facts))
        rows = found["flipped"][task]
        for row in rows[:FLIPPED]:
            turned = "right, now wrong" if row["lost"] else "wrong, now right"
            prompt = " ".join(row["prompt"].split())[-60:]
            answers = f"{row['old']!r}, now {row['new']!r}; wanted {row['expected']!r}"
            say_on(console, f"  {turned}: …{prompt} -> {answers}")
        if len(rows) > FLIPPED:
            say_on(console, f"  and {len(rows) - FLIPPED} more in the evidence")
        for line in remarks(task, found):
            say_on(console, f"  {line}", style="yellow")
    if found.get("guard") is not None:
        say_on(console, guard_in_words(found["guard"]), style="red" if found["guard"]["verdict"] == "hold" else "")
    for line in found.get("notes", ()):
        say_on(console, line, style="yellow")
    if explain and found["tasks"]:
        say_on(console, "")
        console.print(certainty_table(found))
        for name, meaning in GATE_WORDS.items():
            say_on(console, f"{name}: {meaning}")


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


def measures_table(measures: Mapping[str, float | None]) -> Table:
    """Return a table of the measures with formula, value and meaning; a dash where a score is missing."""
    table = empty_table("in percent; differences in percentage points", ["formula"], [""])
    table.add_column("meaning")
    for name, formula in FORMULAS.items():
        add_row(table, formula, number(measures.get(name)), MEANINGS[name])
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


def fraction(value: float | None) -> str:
    """Return a leak as text: `0.31`, or `1e-7` below 0.01; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.01 else re.sub("e-0*", "e-", f"{value:.0e}").replace("0e+00", "0")


def short_date(written: str) -> str:
    """Return a time stamp in local time, in at most 12 characters: `26 Nov 12:44`, `26 Nov 2025` if not this year."""
    when, now = datetime.fromisoformat(written).astimezone(), datetime.now().astimezone()
    return f"{when:%d %b %H:%M}" if when.year == now.year else f"{when:%d %b %Y}"


def plain_table(title: str, headings: Sequence[str], lines: Sequence[Sequence[str]]) -> Table:
    """Return a table of plain text, all columns aligned left."""
    table = empty_table(title, headings, [])
    for line in lines:
        add_row(table, *line)
    return table


def empty_table(title: str, left: Sequence[str], right: Sequence[str]) -> Table:
    """Return a table without rows; `left` and `right` are the headings of columns aligned to that side."""
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
    """Return the `NEWEST` newest versions, of which the current one replaces the oldest if it is older still."""
    newest = versions[-NEWEST:]
    older = [item for item in versions[:-NEWEST] if item["version"] == current]
    return [*older, *newest[len(older) :]]


def say_on(console: Console, line: str, *, style: str = "") -> None:
    console.print(Text(printable(line), style=style))
