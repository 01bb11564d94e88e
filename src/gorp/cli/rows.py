"""Print what was found in the rows of tasks."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from gorp.cli.console import add_row, empty_table, say_on
from gorp.printable import printable


ANSWERS = 12
"""Most answers that the table of a task lists."""


def show_rows(console: Console, result: Mapping[str, Any], *, example: bool = True) -> None:
    """Print the tasks, the warnings and the problems.

    Args:
        console: Where to print.
        result: The result of `add_task` or `validate`.
        example: Whether to show which tokens of a row are trained.
    """
    from gorp.rows.report import repeated  # imports torch

    for name, facts in result["tasks"].items():
        if "train" not in facts:
            continue
        say_on(console, f"{name}: {facts['format']}, scored by {facts['metric']}", style="bold")
        console.print(_parts(facts))
        if repeated(facts["train"]["answers"]):
            console.print(_answers(facts))
        if example and "example" in facts:
            _show_example(console, facts["example"], facts["train"]["unit"])
        for note in facts["notes"]:
            say_on(console, f"note: {note}")
    for line in result["warnings"]:
        say_on(console, f"warning: {line}", style="yellow")
    for line in result["problems"]:
        say_on(console, f"problem: {line}", style="red")


def _parts(facts: Mapping[str, Any]) -> Any:
    """Return a table with a column for train and one for eval."""
    parts = [part for part in ("train", "eval") if part in facts]
    table = empty_table("", ["", *parts], [])
    lines = {
        "file": lambda part: ", ".join(path.rpartition("/")[2] for path in part["files"]) or "data set",
        "SHA-256": lambda part: ", ".join(digest[:12] for digest in part["sha256"]) or "-",
        "columns": lambda part: ", ".join(part["columns"]),
        "rows": lambda part: f"{part['rows']:,}{_split_off(part)}",
        "copies": lambda part: f"{part['duplicates']['count']:,}",
        "prompts with different answers": lambda part: f"{part['conflicts']['count']:,}",
        "tokens of prompts": lambda part: _tokens(part, "prompt"),
        "tokens of answers": lambda part: _tokens(part, "answer"),
        "counted on": lambda part: _counted(part),
        "read in": lambda part: f"{part['seconds']:.1f} s ({part['bytes'] / 2**20:,.1f} MiB)",
    }
    for heading, text in lines.items():
        add_row(table, heading, *(text(facts[part]) for part in parts))
    return table


def _split_off(part: Mapping[str, Any]) -> str:
    lines = part["split_off"]
    if not lines:
        return ""
    shown = ", ".join(map(str, lines[:3])) + ", …" * (len(lines) > 3)
    return f", {len(lines):,} of them eval ({part['unit']}s {shown})"


def _tokens(part: Mapping[str, Any], what: str) -> str:
    counts = part.get("tokens", {}).get(what)
    return "-" if counts is None else f"median {counts['median']}, 95 % up to {counts['p95']}, at most {counts['max']}"


def _counted(part: Mapping[str, Any]) -> str:
    counts = part.get("tokens")
    if counts is None:
        return "-"
    return "all rows" if counts["all_rows"] else f"{counts['random_rows']:,} random rows and the longest"


def _answers(facts: Mapping[str, Any]) -> Any:
    """Return a table of the answers, the most frequent first."""
    train = facts["train"]["answers"]
    held_out = facts.get("eval", {}).get("answers")
    table = empty_table("", ["answer"], ["train", "eval"] if held_out is not None else ["rows"])
    for answer, count in list(train.items())[:ANSWERS]:
        share = f"{count:,} ({100 * count / sum(train.values()):.0f} %)"
        add_row(table, answer, share, *([] if held_out is None else [f"{held_out.get(answer, 0):,}"]))
    if len(train) > ANSWERS:
        add_row(table, f"… {len(train) - ANSWERS} more", *[""] * (1 if held_out is None else 2))
    return table


def _show_example(console: Console, example: Mapping[str, Any], unit: str) -> None:
    """Print a row: its prompt, which is read, and each token of its answer, which is trained."""
    more = example["trained_tokens"] - len(example["trained"])
    say_on(console, f"{unit} {example['line']} as it is trained; only the last line counts in the loss:")
    say_on(console, example["prompt"], style="dim")
    answer = Text(f"{example['prompt_tokens']} tokens read; {example['trained_tokens']} trained: ")
    for token in example["trained"]:
        answer.append(printable(token).replace("\n", "⏎"), style="bold green underline")
        answer.append(" ")
    answer.append(f"… {more} more" if more > 0 else "")
    console.print(answer)
