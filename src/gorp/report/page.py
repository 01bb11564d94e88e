"""Write one HTML page about a run or a comparison: a single file that loads nothing and runs no script."""

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
"""Most samples shown under one heading; they are taken at even distances."""

NARROW = 6
"""Most tasks of a heat map that is scaled to fit a phone; a wider one scrolls sideways."""


class Answer(NamedTuple):
    """The answer of one model."""

    text: str
    correct: bool


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A question with the answers of several models."""

    question: str
    """The part of the prompt that a reader needs to see."""
    prompt: str
    """The whole prompt."""
    expected: str
    answers: Mapping[str, Answer]
    """Model -> its answer."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content of a page. Every text is escaped, so it may contain anything."""

    title: str
    """Heading of the page and title of its browser tab."""
    headline: str = ""
    """The result in one sentence."""
    about: str = ""
    """What gorp does, for a reader who does not know it."""
    runs: Runs
    """Method -> its score matrices, one for each seed; at least one method, each with at least one matrix."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Configuration of the run, in the order shown: "model" -> its name, "seed" -> "0", ..."""
    notes: Sequence[str] = ()
    """Limits of the numbers that a reader should know, one sentence each."""
    samples: Mapping[str, Sequence[Sample]] = field(default_factory=dict)
    """Heading -> samples, all answered by the same models; at most `MAX_SAMPLES` of them are shown."""


def write_page(page: Page, path: Path) -> None:
    """Write the page to `path` atomically."""
    write_atomic(path, render_page(page).encode())


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
            samples=[(heading, len(rows), _selected(rows)) for heading, rows in page.samples.items() if rows],
        )
    )


def _selected(samples: Sequence[Sample]) -> list[Sample]:
    """Return at most `MAX_SAMPLES` of the samples, at even distances."""
    count = min(len(samples), MAX_SAMPLES)
    return [samples[position * len(samples) // count] for position in range(count)]


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
    environment.filters["number"] = number
    return environment
