"""What a run or a comparison looks like to a reader: tables, figures, one page.

wording.py      how names and numbers are written
comparison.py   methods over seeds: mean and spread
tables.py       Rich and Markdown
figures.py      SVG through matplotlib
page.py         one self-contained HTML page (page.html.j2)
"""

from gorp.report.comparison import Runs, Spread, compare, spread
from gorp.report.figures import accuracy_over_tasks, heat_map
from gorp.report.page import Page, render_page, write_page
from gorp.report.tables import comparison_markdown, comparison_table, matrix_markdown, matrix_table


__all__ = [
    "Page",
    "Runs",
    "Spread",
    "accuracy_over_tasks",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "heat_map",
    "matrix_markdown",
    "matrix_table",
    "render_page",
    "spread",
    "write_page",
]
