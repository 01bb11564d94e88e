"""One HTML page about a run or a comparison: a single file that loads nothing, runs no script, and can be mailed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gorp.evaluation import FORMULAS, MEANINGS, AccuracyMatrix
from gorp.report.comparison import Runs, compare, panels, written
from gorp.report.figures import accuracy_over_tasks, heat_map, matrices_per_line
from gorp.report.tables import spread_reading
from gorp.report.wording import HEADINGS, MATRIX_READING, number, printable
from gorp.storage import write_atomic


MAX_SAMPLES = 8
"""Answers shown under one heading, taken at even distances."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page tells. Every text may hold anything; it is shown as it is, never read as HTML."""

    title: str
    """Heading of the page, and name of its tab."""
    runs: Runs
    """Method -> its accuracy matrices, one a seed; at least one of each."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was run, in the order shown: "model" -> its name, "seed" -> "0", ..."""
    notes: Sequence[str] = ()
    """What a reader should know before believing the numbers, a sentence each."""
    samples: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)
    """Heading -> answers as in `TaskScore.samples`; at most `MAX_SAMPLES` of them are shown."""


def write_page(page: Page, path: Path) -> None:
    """Write the page to `path`, whole or not at all."""
    write_atomic(path, render_page(page).encode())


def render_page(page: Page) -> str:
    """The page as HTML.

    Raises:
        ValueError: If `page.runs` has no method, or a method without a matrix.
    """
    compared = compare(page.runs)
    matrices = panels(page.runs)
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            page=page,
            headings=HEADINGS,
            summary=[
                (method, [*map(written, row.values())], len(page.runs[method])) for method, row in compared.items()
            ],
            several_seeds=any(len(runs) > 1 for runs in page.runs.values()),
            spread_reading=spread_reading(page.runs),
            matrix_reading=MATRIX_READING,
            formulas=[(HEADINGS[name], formula, MEANINGS[name]) for name, formula in FORMULAS.items()],
            curve=Markup(accuracy_over_tasks(page.runs)),
            heat_maps=[Markup(heat_map(line)) for line in _lines(matrices)],
            matrices=[
                (name, matrix.tasks, [*zip(matrix.row_names(), matrix.R.tolist(), strict=True)])
                for name, matrix in matrices.items()
            ],
            samples=[(heading, len(rows), _some(rows)) for heading, rows in page.samples.items() if rows],
        )
    )


def _lines(matrices: Mapping[str, AccuracyMatrix]) -> Iterator[dict[str, AccuracyMatrix]]:
    per_line = matrices_per_line(matrices)
    for start in range(0, len(matrices), per_line):
        yield dict(list(matrices.items())[start : start + per_line])


def _some(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    count = min(len(samples), MAX_SAMPLES)
    return [samples[position * len(samples) // count] for position in range(count)]


def _environment() -> Environment:
    """Everything printed is escaped, except the figures drawn here; a name missing in the template is an error."""
    environment = Environment(
        loader=PackageLoader("gorp.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["number"] = number
    return environment
