"""Write a page as Markdown: the same content without the figures, for a repository or a ticket."""

from collections.abc import Iterator, Sequence

from gorp.printable import printable
from gorp.report.comparison import panels
from gorp.report.content import Layer, Page, Samples, Table
from gorp.report.tables import (
    comparison_markdown,
    escaped,
    forgetting_table,
    judged_table,
    markdown_table,
    matrix_markdown,
)
from gorp.report.wording import MATRIX_READING, clipped


LONGEST = 200
"""Most characters of a question or an answer in a cell."""

Section = tuple[str, list[str]]
"""Heading -> blocks of Markdown."""


def page_markdown(page: Page) -> str:
    """Return the page as Markdown; every text is escaped.

    Raises:
        ValueError: If `page.runs` has no method, or a method without a matrix.
    """
    parts = [f"# {escaped(page.title)}\n"]
    if page.headline:
        parts.append(f"**{escaped(page.headline)}**\n")
    if page.about:
        parts.append(f"{escaped(page.about)}\n")
    parts += [_list(page.warnings)] * bool(page.warnings)
    parts += [_list(f"{name}: {value}" for name, value in page.figures.items())] * bool(page.figures)
    for heading, blocks in _sections(page):
        if blocks:
            parts += [f"## {escaped(heading)}\n", *blocks]
    return "\n".join(parts)


def _sections(page: Page) -> Iterator[Section]:
    matrices = panels(page.runs)
    titled = len(matrices) > 1

    def each(table: str, name: str) -> str:
        return f"### {escaped(name)}\n\n{table}" if titled else table

    if page.judged is not None and page.judged.tasks:
        lines = [_table(judged_table(page.judged)), _list(item.sentence for item in page.judged.tasks)]
        yield "Verdict on each task", lines
    guard = [] if page.guard is None else [_table(page.guard)]
    guard += (
        []
        if page.judged is None or not page.judged.guard
        else [_list(filter(None, [page.judged.guard, page.judged.guard_since]))]
    )
    yield "Guard text", guard
    scores = [each(matrix_markdown(matrix), name) for name, matrix in matrices.items()]
    yield "Score on every task, after every task", [*scores, f"{MATRIX_READING}\n"]
    yield "Forgetting", [each(_table(forgetting_table(matrix)), name) for name, matrix in matrices.items()]
    yield page.samples_heading, [_samples(samples) for samples in page.samples if samples.rows]
    yield "Summary", [comparison_markdown(page.runs)]
    yield page.layers_heading, [_layers(page.layers)] * bool(page.layers)
    costs = [] if page.costs is None else [_table(page.costs), f"{escaped(page.costs_note)}\n"]
    yield "Cost of each version", costs
    facts = [_list(f"{name}: {value}" for name, value in page.facts.items())] * bool(page.facts)
    facts += [f"### Notes\n\n{_list(page.notes)}"] * bool(page.notes)
    facts += [_command(what, command) for what, command in page.commands.items()]
    yield "Evidence", facts


def _table(table: Table) -> str:
    return markdown_table([table.headings, *table.lines], left=table.left)


def _list(lines: Iterator[str] | Sequence[str]) -> str:
    return "".join(f"- {escaped(line)}\n" for line in lines)


def _command(what: str, command: str) -> str:
    """Return a command as a block of code, which needs no escapes, on one line."""
    return f"{escaped(what)}\n\n    {' '.join(printable(command).split())}\n"


def _samples(samples: Samples) -> str:
    models = list(samples.rows[0].answers)
    lines = [["question", "correct answer", *models]]
    for row in samples.rows:
        answers = [f"{'✓' if answer.correct else '✗'} {answer.text}" for answer in row.answers.values()]
        lines.append([clipped(text, LONGEST) for text in (row.question, row.expected, *answers)])
    shown = f"{len(lines) - 1} of {samples.of} rows, {samples.chosen}."
    left_out = f"\n{escaped(shown)}\n" if samples.of > len(samples.rows) else ""
    return f"### {escaped(samples.heading)}\n\n{markdown_table(lines, left=2 + len(models))}{left_out}"


def _layers(layers: Sequence[Layer]) -> str:
    lines = [[layer.name, str(layer.directions), f"{100 * layer.share:.1f} %", str(layer.released)] for layer in layers]
    return markdown_table([["layer", "directions", "of its inputs", "released in the last task"], *lines])
