"""One HTML page about a run or a comparison: a single file that loads nothing, runs no script, and can be mailed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from gorp.evaluation import FORMULAS, MEANINGS
from gorp.printable import printable
from gorp.report.comparison import Runs, compare, measured_by_any, panels, written
from gorp.report.figures import accuracy_over_tasks, heat_map
from gorp.report.tables import spread_reading
from gorp.report.wording import HEADINGS, MATRIX_READING, number
from gorp.storage import write_atomic


MAX_SAMPLES = 8
"""Questions shown under one heading, taken at even distances."""

NARROW = 6
"""Tasks whose heat map can be read on a telephone; a wider one scrolls inside its frame."""


class Answer(NamedTuple):
    """What one model said."""

    text: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A question, and what the models said."""

    question: str
    """What a reader needs to see of the prompt."""
    prompt: str
    """All of it."""
    expected: str
    answers: Mapping[str, Answer]
    """Model -> its answer."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """What a page tells. Every text may hold anything; it is shown as it is, never read as HTML."""

    title: str
    """Heading of the page, and name of its tab."""
    headline: str = ""
    """The result in one sentence."""
    about: str = ""
    """What this is, for someone who has never heard of it."""
    runs: Runs
    """Method -> its accuracy matrices, one a seed; at least one of each."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What was run, in the order shown: "model" -> its name, "seed" -> "0", ..."""
    notes: Sequence[str] = ()
    """What a reader should know before believing the numbers, a sentence each."""
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """Heading -> questions with the answers of the same models to each; at most `MAX_SAMPLES` of them are shown."""


def write_page(page: Page, path: Path) -> None:
    """Write the page to `path`, whole or not at all."""
    write_atomic(path, render_page(page).encode())


def render_page(page: Page) -> str:
    """The page as HTML.

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
            headings=[HEADINGS[name] for name in measured],
            summary=[
                (method, [written(row[name]) for name in measured], len(page.runs[method]))
                for method, row in compared.items()
            ],
            several_seeds=any(len(runs) > 1 for runs in page.runs.values()),
            spread_reading=spread_reading(page.runs),
            matrix_reading=MATRIX_READING,
            formulas=[(HEADINGS[name], FORMULAS[name], MEANINGS[name]) for name in measured],
            curve=Markup(accuracy_over_tasks(page.runs)),
            heat_maps=[
                (name, len(matrix.tasks) <= NARROW, Markup(heat_map({name: matrix})))
                for name, matrix in matrices.items()
            ],
            matrices=[
                (name, matrix.tasks, [*zip(matrix.row_names(), matrix.R.tolist(), strict=True)])
                for name, matrix in matrices.items()
            ],
            samples=[(heading, len(rows), _some(rows)) for heading, rows in page.samples.items() if rows],
        )
    )


def _some(samples: Sequence[Sample]) -> list[Sample]:
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
