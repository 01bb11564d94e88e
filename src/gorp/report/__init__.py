"""Present the scores of a run or a comparison: tables, figures, and an HTML page.

wording.py      formatting of names and numbers
comparison.py   several methods over several seeds: mean and standard deviation
verdict.py      one sentence for each task: its score and its change
tables.py       tables for the terminal (Rich) and in Markdown
figures.py      SVG figures, drawn with matplotlib
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
