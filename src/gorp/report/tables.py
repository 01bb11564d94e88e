"""Build tables for the terminal (Rich) and for documents (Markdown), with the formulas of the metrics below them."""

import math
import re
from collections.abc import Sequence

from rich.console import Group
from rich.table import Table as RichTable
from rich.text import Text

from gorp.evaluation import FORMULAS, AccuracyMatrix
from gorp.printable import printable
from gorp.report.comparison import Runs, compare, measured_by_any, written
from gorp.report.content import Judged, Table
from gorp.report.verdict import SMALLEST, verdicts
from gorp.report.wording import HEADINGS, MATRIX_READING, NOT_MEASURED, number, signed


def spread_reading(runs: Runs) -> str:
    """Return the sentence that explains the numbers of a comparison; a deviation needs at least two seeds."""
    several = any(len(matrices) > 1 for matrices in runs.values())
    return "Percent; mean ± sample standard deviation over seeds." if several else "Percent; one seed."


def matrix_table(matrix: AccuracyMatrix, *, title: str = "") -> RichTable:
    """Return the score matrix as a Rich table: one line for the base model and one after each task.

    A score that is lower than when the task was just learned is red and ends in `↓`. Rows and columns without any
    score are left out.
    """
    R, heading = matrix.R.tolist(), [Text("after")]
    columns = [j for j in range(len(matrix.tasks)) if any(not math.isnan(row[j]) for row in R)]
    table = _table([*heading, *(Text(f"{printable(matrix.tasks[j])} ") for j in columns)], title)
    for i, (name, row) in enumerate(zip(matrix.row_names(), R, strict=True)):
        if not all(map(math.isnan, row)):
            table.add_row(Text(printable(name)), *(_score(row[j], R[j + 1][j], i > j + 1) for j in columns))
    return table


def _score(score: float, learned: float, later: bool) -> Text:
    """Return a cell. `↓` repeats what the colour says, for terminals without colour."""
    if later and score <= learned - SMALLEST:
        return Text(f"{number(score)}↓", style="red")
    return Text(f"{number(score)} ")


def comparison_table(runs: Runs, *, title: str = "") -> Group:
    """Return a Rich table with one line for each method and a column for each metric that was measured.

    Args:
        runs: Method -> its score matrices, one for each seed.
        title: Printed above the table.
    """
    return _rich(_comparison_lines(runs), title=title, below=[spread_reading(runs), MATRIX_READING, *_formulas(runs)])


def comparison_markdown(runs: Runs) -> str:
    """Return `comparison_table` as Markdown, with the formulas in a list below the table."""
    formulas = "".join(f"- `{formula}`\n" for formula in _formulas(runs))
    return markdown_table(_comparison_lines(runs)) + f"\n{spread_reading(runs)} {MATRIX_READING}\n\n{formulas}"


def _comparison_lines(runs: Runs) -> list[list[str]]:
    compared = compare(runs)
    names = measured_by_any(compared)
    lines = [["method", *(HEADINGS[name] for name in names), "seeds"]]
    for method, metrics in compared.items():
        lines.append([method, *(written(metrics[name]) for name in names), str(len(runs[method]))])
    return lines


def _formulas(runs: Runs) -> list[str]:
    return [FORMULAS[name] for name in measured_by_any(compare(runs))]


def _rich(lines: Sequence[Sequence[str]], *, title: str, below: Sequence[str]) -> Group:
    """Return a table with lines below it. Every cell is a `Text`, so that Rich does not read `[red]` as markup."""
    table = _table([Text(printable(heading)) for heading in lines[0]], title)
    for line in lines[1:]:
        table.add_row(*(Text(printable(cell)) for cell in line))
    return Group(table, Text("\n".join(["", *below]), style="dim"))


def _table(headings: Sequence[Text], title: str) -> RichTable:
    table = RichTable(title=Text(printable(title), style="bold") if title else None, title_justify="left", box=None)
    for column, heading in enumerate(headings):
        table.add_column(heading, justify="right" if column else "left", no_wrap=column > 0)
    return table


def forgetting_table(matrix: AccuracyMatrix) -> Table:
    """Return for each learned task its score when it was just learned, its best and its present score, the change."""
    lines = []
    for j, item in enumerate(verdicts(matrix)):
        later = [score for score in matrix.R[j + 1 :, j].tolist() if not math.isnan(score)]
        changed = NOT_MEASURED if item.newest or math.isnan(item.change) else signed(item.change)
        lines.append([item.task, number(item.learned), number(max(later, default=None)), number(item.now), changed])
    return Table(headings=["task", "just learned", "best", "now", "change since learned"], lines=lines)


def judged_table(judged: Judged) -> Table:
    """Return a line for each task that the verdict is on: scores of both versions, the change with its interval."""
    lines = [
        [
            item.task,
            f"{MARKS[item.verdict]} {item.verdict}",
            number(item.old),
            number(item.new),
            f"{signed(item.change)} ({signed(item.low)} to {signed(item.high)})",
            str(item.lost),
            str(item.won),
            str(item.rows),
        ]
        for item in judged.tasks
    ]
    change = f"change ({judged.confidence} % interval)"
    headings = ["task", "verdict", judged.old, judged.new, change, "right to wrong", "wrong to right", "rows"]
    return Table(headings=headings, lines=lines, left=2, marked=True)


MARKS = {"ship": "✓", "hold": "✗", "inconclusive": "?"}
"""What stands before a verdict, so that its colour is not needed."""


def matrix_markdown(matrix: AccuracyMatrix) -> str:
    """Return the score matrix as a Markdown table, without rows and columns that have no score."""
    R = matrix.R.tolist()
    columns = [j for j in range(len(matrix.tasks)) if any(not math.isnan(row[j]) for row in R)]
    lines = [["after", *(matrix.tasks[j] for j in columns)]]
    for name, row in zip(matrix.row_names(), R, strict=True):
        if not all(map(math.isnan, row)):
            lines.append([name, *(number(row[j]) for j in columns)])
    return markdown_table(lines)


def markdown_table(lines: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Return a Markdown table of plain text: the first line is the heading; columns after `left` are right-aligned."""
    heading, *rest = [f"| {' | '.join(map(escaped, line))} |" for line in lines]
    rule = f"|{' --- |' * left}{' ---: |' * (len(lines[0]) - left)}"
    return "\n".join([heading, rule, *rest]) + "\n"


def escaped(text: str) -> str:
    """Return `text` for a Markdown cell or line: on one line, with the characters escaped that Markdown or HTML reads.

    So are the characters that make a link of an address: that of `://` and of `www.`, and `@`.
    """
    return _SPECIAL.sub(r"\\\1", " ".join(printable(text).split()))


_SPECIAL = re.compile(r"([\\`*{}\[\]<>|#~&!$@]|(?<!\w)_|_(?!\w)|:(?=//)|(?<=\bwww)\.)", re.IGNORECASE)
