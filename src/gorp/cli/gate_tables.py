"""Print the evidence of the gate."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gorp.cli.console import add_row, empty_table, fraction, say_on
from gorp.printable import printable
from gorp.report.wording import number


FLIPPED = 5
"""Most answers that changed that are printed for each task; the evidence has all of them."""

COLUMNS = {
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


def show_gate(console: Console, found: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print the verdict on a version: its table, a sentence for each task, and the first answers that changed.

    Args:
        console: Where to print.
        found: The result of `gorp.workspace.gate.gate`.
        explain: Also print what does not decide the verdict.
    """
    from gorp.workspace.gate_words import guard_in_words, guard_warnings, in_words, remarks

    new, old = found["new"]["version"], found["old"]["version"]
    say_on(console, f"{new} against {old}: {found['verdict'].upper()}")
    if found["tasks"]:
        console.print(gate_table(found))
    else:
        say_on(console, f"{old} had learned no task, so there was none to lose")
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
    for line in [*guard_warnings(found), *found.get("notes", ())]:
        say_on(console, line, style="yellow")
    if explain and found["tasks"]:
        say_on(console, "")
        console.print(certainty_table(found))
        for name, meaning in COLUMNS.items():
            say_on(console, f"{name}: {meaning}")


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
