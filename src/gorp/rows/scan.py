"""Read the rows of a part of a task once, in bounded memory, and find everything that one reading can tell."""

import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from gorp.data import Form, TaskSpec
from gorp.data.chat import check_turns
from gorp.data.formats import TURNS, Renderer, Unused
from gorp.data.readers import format_of, label_set
from gorp.data.row_index import EXAMPLES, RowIndex, text_hash
from gorp.data.rows import Row
from gorp.data.sample import Sample
from gorp.data.source import Source, open_source
from gorp.data.split import CUT_SEED, dev_indices, row_hash
from gorp.data.task import MAX_CUT_EVAL_ROWS, check_metric, no_eval_rows
from gorp.data.turns import read_turns
from gorp.errors import DataError
from gorp.progress import Progress
from gorp.rows.overlaps import EvalRows, Overlaps


MOST_ANSWERS, LONGEST_ANSWER = 50, 60
"""Answers are counted one by one if there are at most this many, with at most this many characters each."""

OnRow = Callable[[str, str, int], None]
"""Called with what a row asks, its answer and its line."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A row as it is trained."""

    line: int
    prompt: str
    completion: str
    form: Form


@dataclass
class Problems:
    """Errors of rows: how many, and the first ones."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, error: DataError) -> None:
        """Count an error."""
        self.count += 1
        if len(self.first) < EXAMPLES:
            self.first.append(str(error))


@dataclass(frozen=True, kw_only=True)
class TaskRows:
    """A task whose rows can be read one by one."""

    spec: TaskSpec
    train: Source
    held_out: Source | None
    """The rows of `eval`; None if they are split off train."""
    format: str
    labels: tuple[str, ...] | None
    render: Renderer
    notes: tuple[str, ...]


@dataclass(kw_only=True)
class Scan:
    """What one reading of a part of a task found."""

    rows: int
    """Rows that can be used."""
    problems: Problems
    seconds: float
    """Time that the reading took."""
    notes: list[str]
    repeats: dict[str, Any]
    """See `RowIndex.repeats`."""
    sample: list[Rendered]
    """All rows, or a random sample of them and the longest."""
    complete: bool
    """Whether the sample has all rows."""
    drawn: int
    """Number of rows of the random sample."""
    answers: dict[str, int] | None
    """Answer -> number of rows, the most frequent first; None if the answers are many or long."""
    cut: list[int] | None
    """Lines of the rows that are split off as eval; None if that was not asked for or is not known."""


def open_task(spec: TaskSpec, *, tokenizer: PreTrainedTokenizerBase | None, date: str, progress: Progress) -> TaskRows:
    """Open the rows of a task; if the rows have to tell the labels, they are read.

    Raises:
        DataError, ConfigError: As `gorp.data.load_task`.
    """
    train = open_source("train", spec, split=spec.split or "train")
    format = format_of(spec, train)
    held_out = None
    if spec.eval is not None or spec.eval_split is not None:
        held_out = open_source("eval", spec, split=spec.eval_split or "test")
    with _mebibytes(progress, f"reading the labels of {spec.name}", train) as at:
        labels, notes = label_set(spec, format, train, train.rows(bad=lambda error: None, at=at))
    check_metric(spec.metric or "exact_match", labels)
    render = Renderer(format=format, template=spec.template, labels=labels, tokenizer=tokenizer, date=date)
    return TaskRows(spec=spec, train=train, held_out=held_out, format=format, labels=labels, render=render, notes=notes)


def scan(
    task: TaskRows,
    part: str,
    *,
    progress: Progress,
    split: bool = False,
    overlaps: Overlaps | None = None,
    keep: EvalRows | None = None,
    each: OnRow | None = None,
) -> Scan:
    """Read `part` of a task.

    Args:
        task: The task.
        part: "train" or "eval".
        progress: Shows how far the reading is.
        split: Whether eval rows will be split off these rows.
        overlaps: Every row is looked up there.
        keep: Every row is added there.
        each: Called with what a row asks, its answer and its line.
    """
    source, render = _source(task, part), task.render
    turns_column = TURNS.get(task.format)
    began, problems, sample = time.monotonic(), Problems(), Sample[Any]()
    unused, answers, several = Unused(task.format, render.template), _Answers(), 0
    with RowIndex() as index, _mebibytes(progress, f"reading {part} of {task.spec.name}", source) as at:
        for line, row in _numbered(source, source.rows(bad=problems.add, at=at)):
            try:
                if turns_column is not None:  # rendered later, and only the sample: a chat template is slow
                    turns = read_turns(row, turns_column)
                    check_turns(Row(row.place, {"messages": turns}))
                    several += sum(turn["role"] == "assistant" for turn in turns) > 1
                    asked = prompt = "\n".join(str(turn["content"]) for turn in turns[:-1])
                    answer, kept = str(turns[-1]["content"]), (line, row)
                else:
                    prompt, answer, form = render(row)
                    asked, kept = "", Rendered(line, prompt, answer, form)
            except DataError as error:
                problems.add(error)
                continue
            rank = int(row_hash(CUT_SEED, prompt, answer)[:16], 16) if split else 0
            index.add(text_hash(prompt), text_hash(answer), rank, line)
            sample.offer(kept, len(prompt), len(answer))
            unused.add(row)
            answers.add(answer)
            if overlaps is not None or keep is not None or each is not None:
                asked = asked or render.asked(row)
                if overlaps is not None:
                    overlaps.look(asked, prompt, line)
                if keep is not None:
                    keep.add(asked, line)
                if each is not None:
                    each(asked, answer, line)
        rows, complete = _rendered(sample, render, problems), sample.complete
        notes = [*unused.notes(), *_about_turns(several, len(index)), *_about_sample(turns_column, sample)]
        cut = _cut(task, rows, complete, index) if split and not problems.count else None
        if split and cut == []:
            problems.add(no_eval_rows(task.spec.name, len(index)))
        return Scan(
            rows=len(index),
            problems=problems,
            seconds=time.monotonic() - began,
            notes=notes,
            repeats=index.repeats(),
            sample=rows,
            complete=complete,
            drawn=sample.drawn,
            answers=answers.found(),
            cut=cut,
        )


def asked_rows(
    task: TaskRows,
    part: str,
    *,
    progress: Progress,
    prompts: bool = False,
    lines: Collection[int] | None = None,
    each: OnRow | None = None,
) -> Iterator[tuple[str, str, int]]:
    """Yield for each row of a part what it asks, its rendered prompt, and its line; unusable rows are left out.

    Args:
        task: The task.
        part: "train" or "eval".
        progress: Shows how far the reading is.
        prompts: Whether prompts are wanted; otherwise, and for chats, they are empty.
        lines: The lines of the rows that are wanted; None for all.
        each: Called with what a row asks, its answer and its line.
    """
    source, turns_column = _source(task, part), TURNS.get(task.format)
    rendered = turns_column is None and (prompts or each is not None)
    with _mebibytes(progress, f"comparing {part} of {task.spec.name}", source) as at:
        only = lines if len(source.files) == 1 else None
        for line, row in _numbered(source, source.rows(bad=lambda error: None, at=at, only=only)):
            if lines is not None and line not in lines:
                continue
            try:
                asked = task.render.asked(row)
                prompt, answer, _ = task.render(row) if rendered else ("", "", None)
                if turns_column is not None and each is not None:
                    answer = str(read_turns(row, turns_column)[-1]["content"])
            except DataError:
                continue
            if each is not None:
                each(asked, answer, line)
            yield asked, prompt, line


def unit_of(source: Source) -> str:
    """Return what the number of a row counts: "line", "row" or "item"."""
    endings = {file.suffix.lower() for file in source.files}
    if len(source.files) != 1 or endings == {".parquet"}:
        return "row"
    return "item" if endings == {".json"} else "line"


def _source(task: TaskRows, part: str) -> Source:
    source = task.train if part == "train" else task.held_out
    assert source is not None
    return source


def _numbered(source: Source, rows: Iterator[Row]) -> Iterator[tuple[int, Row]]:
    """Yield each row with its number: its line in one file, or a running number if there are several files."""
    for count, row in enumerate(rows, 1):
        yield (count if len(source.files) > 1 else row.number), row


def _rendered(sample: Sample[Any], render: Renderer, problems: Problems) -> list[Rendered]:
    """Return the rows of a sample as they are trained; those of a chat are rendered here."""
    rows = []
    for kept in sample.rows():
        if isinstance(kept, Rendered):
            rows.append(kept)
        elif render.tokenizer is not None:
            line, row = kept
            try:
                rows.append(Rendered(line, *render(row)))
            except DataError as error:
                problems.add(error)
    return rows


def _cut(task: TaskRows, rows: list[Rendered], complete: bool, index: RowIndex) -> list[int] | None:
    if complete and len(rows) == len(index):
        prompts, completions = [row.prompt for row in rows], [row.completion for row in rows]
        drawn = dev_indices(prompts, completions, MAX_CUT_EVAL_ROWS, CUT_SEED)
        return [rows[index].line for index in sorted(drawn)]
    return None if task.format in TURNS else index.drawn(MAX_CUT_EVAL_ROWS)


class _Answers:
    """Counts the rows of each answer, unless there are many answers or long ones."""

    def __init__(self) -> None:
        self._counted: Counter[str] | None = Counter()

    def add(self, answer: str) -> None:
        if self._counted is not None:
            self._counted[answer] += 1
            if len(self._counted) > MOST_ANSWERS or len(answer) > LONGEST_ANSWER:
                self._counted = None

    def found(self) -> dict[str, int] | None:
        """Return the answers with their rows, the most frequent first."""
        return None if self._counted is None else dict(self._counted.most_common())


def _about_turns(several: int, rows: int) -> list[str]:
    return [f"{several} of {rows} conversations have several answers; only the last one is trained"] * bool(several)


def _about_sample(column: str | None, sample: Sample[Any]) -> list[str]:
    if column is None or sample.complete:
        return []
    return [
        f"the chat template was applied to {sample.drawn:,} random rows and the longest, not to all {sample.offered:,}"
    ]


@contextmanager
def _mebibytes(progress: Progress, what: str, source: Source) -> Iterator[Callable[[int], None]]:
    """Show the bytes that are read, in MiB; yield a function to call with their number."""
    size = source.size >> 20
    with progress.counting(f"{what} (MiB)") as show:
        yield lambda done: show(done >> 20, size)
