"""What a terminal shows of results: tables on standard output.

Names of tasks and files are printed as they are: nothing in them is read as markup. Needs neither torch nor
transformers; a running training is shown by `gorp.live`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gorp.evaluation import FORMULAS, MEANINGS
from gorp.report.wording import number, printable


PLAIN_WIDTH = 160
"""Columns of a table that goes to a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """A console on standard output or the error stream."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def measures_table(measures: Mapping[str, float | None]) -> Table:
    """Each measure with its formula and what it means; a dash where cells it needs were not measured."""
    table = empty_table("percent; differences in percentage points", ["formula"], [""])
    table.add_column("meaning")
    for name, formula in FORMULAS.items():
        add_row(table, formula, number(measures.get(name)), MEANINGS[name])
    return table


def versions_table(versions: Sequence[Mapping[str, Any]], current: str) -> Table:
    """The versions of a workspace, the current one marked."""
    right = ["leak", "capacity", "kept", "seconds"]
    table = empty_table("versions", ["", "version", "parent", "learned last", "made"], right)
    for item in versions:
        leak = "–" if item["leak"] is None else f"{item['leak']:.1e}"
        capacity = "–" if item["capacity_max"] is None else f"{100 * item['capacity_max']:.1f} %"
        kept = f"{item['footprint_bytes'] / 2**20:.1f} MiB"
        mark = "*" if item["version"] == current else ""
        names = (item["version"], item["parent"] or "–", item["task"] or "base model", item["created"][:16])
        add_row(table, mark, *names, leak, capacity, kept, f"{item['seconds']:.1f}")
    return table


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
