"""Present the scores of a run or a comparison: tables, figures, and pages as HTML, Markdown and CSV.

wording.py      formatting of names and numbers
comparison.py   several methods over several seeds: mean and standard deviation
verdict.py      one sentence for each task: its score and its change
content.py      what a page is made of
tables.py       tables for the terminal (Rich) and in Markdown
figures.py      SVG figures, drawn with matplotlib
page.py         one self-contained HTML page (page.html.j2, page.css)
markdown.py     the same page as Markdown
spreadsheet.py  scores and verdicts as CSV
"""

from gorp.report.comparison import Runs, Spread, compare, spread
from gorp.report.content import Answer, Judged, JudgedTask, Layer, Page, Sample, Samples, Table
from gorp.report.figures import accuracy_over_tasks, heat_map, picture, scores_over_tasks
from gorp.report.markdown import page_markdown
from gorp.report.page import evenly, render_page, write_page
from gorp.report.spreadsheet import scores_csv
from gorp.report.tables import comparison_markdown, comparison_table, matrix_table
from gorp.report.verdict import TaskVerdict, in_one_line, in_one_sentence, verdicts


__all__ = [
    "Answer",
    "Judged",
    "JudgedTask",
    "Layer",
    "Page",
    "Runs",
    "Sample",
    "Samples",
    "Spread",
    "Table",
    "TaskVerdict",
    "accuracy_over_tasks",
    "compare",
    "comparison_markdown",
    "comparison_table",
    "evenly",
    "heat_map",
    "in_one_line",
    "in_one_sentence",
    "matrix_table",
    "page_markdown",
    "picture",
    "render_page",
    "scores_csv",
    "scores_over_tasks",
    "spread",
    "verdicts",
    "write_page",
]
