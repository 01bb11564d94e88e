"""Write a page as one HTML file that loads nothing and runs no script."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gorp.evaluation import FORMULAS, MEANINGS
from gorp.printable import printable
from gorp.report.comparison import compare, measured_by_any, panels, written
from gorp.report.content import Layer, Page, Sample
from gorp.report.figures import TOGETHER, accuracy_over_tasks, heat_map, scores_over_tasks
from gorp.report.tables import MARKS, forgetting_table, judged_table, spread_reading
from gorp.report.wording import HEADINGS, MATRIX_READING, clipped, number
from gorp.storage import write_atomic


MAX_SAMPLES = 8
"""Most answers that are shown under one heading."""

FULLEST = 12
"""Most layers that are shown before the reader asks for all."""

LONGEST = 2000
"""Most characters of a prompt or an answer on the page."""


def write_page(page: Page, path: Path, *, mode: int | None = None) -> None:
    """Write the page to `path` atomically, with the permissions `mode` (None for those of a new file)."""
    write_atomic(path, render_page(page).encode(), mode=mode)


def render_page(page: Page) -> str:
    """Return the page as HTML.

    Raises:
        ValueError: If `page.runs` has no method, or a method without a matrix.
    """
    compared = compare(page.runs)
    measured = measured_by_any(compared)
    matrices = panels(page.runs)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            marks=MARKS,
            judged=None if page.judged is None else judged_table(page.judged),
            headings=[HEADINGS[name] for name in measured],
            summary=[
                (method, [written(row[name]) for name in measured], len(page.runs[method]))
                for method, row in compared.items()
            ],
            several_seeds=any(len(runs) > 1 for runs in page.runs.values()),
            spread_reading=spread_reading(page.runs),
            matrix_reading=MATRIX_READING,
            formulas=[(HEADINGS[name], FORMULAS[name], MEANINGS[name]) for name in measured],
            curve=Markup(accuracy_over_tasks(page.runs)) if page.compares else "",
            panels=[
                {
                    "name": name,
                    "narrow": len(matrix.tasks) <= TOGETHER,
                    "map": Markup(heat_map({name: matrix})),
                    "lines": Markup(scores_over_tasks(matrix, title=name)),
                    "forgetting": forgetting_table(matrix),
                    "tasks": matrix.tasks,
                    "rows": [*zip(matrix.row_names(), matrix.R.tolist(), strict=True)],
                }
                for name, matrix in matrices.items()
            ],
            fullest=_fullest(page.layers),
        )
    )


def evenly(rows: Sequence[Sample]) -> list[Sample]:
    """Return at most `MAX_SAMPLES` of the rows, at even distances."""
    count = min(len(rows), MAX_SAMPLES)
    return [rows[position * len(rows) // count] for position in range(count)]


def _fullest(layers: Sequence[Layer]) -> list[Layer]:
    """Return the `FULLEST` layers with the largest share, fullest first; all in their order if there are no more."""
    if len(layers) <= FULLEST:
        return list(layers)
    return sorted(layers, key=lambda layer: -layer.share)[:FULLEST]


def _environment() -> Environment:
    """Return a Jinja environment that escapes everything except our own figures; an undefined name is an error."""
    environment = Environment(
        loader=PackageLoader("gorp.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    filters: dict[str, Any] = {"number": number, "clip": lambda text: clipped(text, LONGEST)}
    environment.filters |= filters
    return environment
