"""Consoles, and tables of plain text.

Names of tasks and files are printed as plain text, never as Rich markup. This module needs neither torch nor
transformers; `gorp.cli.live` shows a running training.
"""

import re
from collections.abc import Sequence
from datetime import datetime

from rich.console import Console
from rich.table import Table
from rich.text import Text

from gorp.printable import printable


PLAIN_WIDTH = 160
"""Width in characters of output that goes to a file or a pipe."""


def console(*, stderr: bool = False) -> Console:
    """Return a console on stdout or stderr; `PLAIN_WIDTH` wide where that is not a terminal."""
    made = Console(stderr=stderr, highlight=False)
    return made if made.is_terminal else Console(stderr=stderr, highlight=False, width=PLAIN_WIDTH)


def say_on(console: Console, line: str, *, style: str = "") -> None:
    console.print(Text(printable(line), style=style))


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


def fraction(value: float | None) -> str:
    """Return a leak as text: `0.31`, or `1e-7` below 0.01; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.2f}" if value >= 0.01 else re.sub("e-0*", "e-", f"{value:.0e}").replace("0e+00", "0")


def short_date(written: str) -> str:
    """Return a time stamp in local time, in at most 12 characters: `26 Nov 12:44`, `26 Nov 2025` if not this year."""
    when, now = datetime.fromisoformat(written).astimezone(), datetime.now().astimezone()
    return f"{when:%d %b %H:%M}" if when.year == now.year else f"{when:%d %b %Y}"
