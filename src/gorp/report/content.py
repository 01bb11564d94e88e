"""What a page is made of, whoever fills it: the demo with two methods, a workspace with its versions.

All texts may come from models or data; whatever writes a page escapes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from gorp.report.comparison import Runs


Word = Literal["ship", "hold", "inconclusive"]
"""What a gate says."""


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
    """Model, method or version -> its answer."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Some answers to the questions of a task, all given by the same models."""

    heading: str
    rows: Sequence[Sample]
    """Those to show."""
    of: int
    """Number of rows that they were chosen from."""
    chosen: str
    """Which were chosen, as a phrase: "at even distances", "those that turned wrong first"."""


@dataclass(frozen=True, kw_only=True)
class JudgedTask:
    """A task that an earlier version had learned: what a later version lost or gained on the same rows."""

    task: str
    verdict: Word
    sentence: str
    old: float | None
    """Percent; None without rows."""
    new: float | None
    change: float
    """Percentage points; negative is a loss."""
    low: float
    """Ends of the confidence interval of the change."""
    high: float
    lost: int
    """Rows that turned wrong."""
    won: int
    """Rows that turned right."""
    rows: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The verdict on a version."""

    verdict: Word
    old: str
    """Name of the earlier version."""
    new: str
    """Name of the version that is judged."""
    confidence: int
    """Of the intervals, percent."""
    tasks: Sequence[JudgedTask]
    guard: str = ""
    """A sentence on the guard text; empty without one."""
    guard_since: str = ""
    """A sentence on the guard text since the base model; empty if `guard` already is."""
    guard_verdict: Word | None = None
    """None if the text only informs."""


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How much of a layer's input space is protected."""

    name: str
    directions: int
    share: float
    """Of the layer's input dimensions, 0 to 1."""
    released: int
    """Directions of earlier tasks that the last task released."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Cells of text; the first `left` columns are aligned to the left, the others to the right."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]
    left: int = 1
    marked: bool = False
    """Whether the second column is a verdict, which ends in one of `Word`."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """Content of a page. What is empty is left out."""

    title: str
    """Heading of the page and title of its browser tab."""
    headline: str = ""
    """The result in one sentence."""
    about: str = ""
    """What else a reader must know before the numbers."""
    warnings: Sequence[str] = ()
    """What nobody may miss, one sentence each; shown at the head."""
    judged: Judged | None = None
    """The verdict on the newest version."""
    guard: Table | None = None
    """The loss of each version on the guard text."""
    figures: Mapping[str, str] = field(default_factory=dict)
    """A few numbers for a reader in a hurry: "tasks learned" -> "4"."""
    runs: Runs
    """Method -> its score matrices, one for each seed; at least one method, each with at least one matrix."""
    samples: Sequence[Samples] = ()
    samples_heading: str = "Sample answers"
    layers: Sequence[Layer] = ()
    """In the order of the model."""
    layers_heading: str = "Capacity"
    budget: float | None = None
    """Largest share of a layer's input dimensions that may be protected."""
    costs: Table | None = None
    """Time and disk of each version."""
    costs_note: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Evidence, in the order shown: "model" -> its name, "seed" -> "0", ..."""
    commands: Mapping[str, str] = field(default_factory=dict)
    """What a command does -> the command."""
    notes: Sequence[str] = ()
    """Limits of the numbers that a reader should know, one sentence each."""

    @property
    def compares(self) -> bool:
        """Whether there is anything to compare: several methods, or several seeds of one."""
        return len(self.runs) > 1 or any(len(matrices) > 1 for matrices in self.runs.values())
