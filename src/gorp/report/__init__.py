"""What a run or a comparison looks like to a reader: tables, figures, one page.

wording.py      how names and numbers are written
comparison.py   methods over seeds: mean and spread
verdict.py      what happened to each task, in words
tables.py       Rich and Markdown
figures.py      SVG through matplotlib
page.py         one self-contained HTML page (page.html.j2)
"""

from gorp.report.comparison import Runs, Spread, compare, spread
from gorp.report.figures import accuracy_over_tasks, heat_map, picture
from gorp.report.page import Answer, Page, Sample, render_page, write_page
from gorp.report.tables import comparison_markdown, comparison_table, matrix_table
from gorp.report.verdict import TaskVerdict, in_one_line, in_one_sentence, verdicts


__all__ = [
    "Answer",
    "Page",
    "Runs",
    "Sample",
    "Spread",
    "TaskVerdict",
    "accuracy_over_tasks",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "heat_map",
    "in_one_line",
    "in_one_sentence",
    "matrix_table",
    "picture",
    "render_page",
    "spread",
    "verdicts",
    "write_page",
]
