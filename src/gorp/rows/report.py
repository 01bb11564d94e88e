"""What was found in the rows of tasks: facts as JSON values, problems, and warnings, each with line numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gorp.data.row_index import EXAMPLES
from gorp.data.source import Source
from gorp.errors import ConfigError, GorpError
from gorp.progress import Progress
from gorp.rows.scan import Scan, TaskRows, unit_of
from gorp.rows.token_counts import Reader, masked_row, token_counts
from gorp.storage import file_sha256


NAMED = 3
"""Findings of a kind that a warning names; the facts have more."""


@dataclass
class Report:
    """What the rows of tasks are like."""

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task -> its facts, as JSON values."""
    problems: list[str] = field(default_factory=list)
    """What must be corrected before training."""
    warnings: list[str] = field(default_factory=list)
    """What a user should know."""
    invalid: bool = False
    """Whether a problem is one of the configuration."""

    def refuse(self, error: GorpError) -> None:
        """Add an error to the problems."""
        self.problems.append(str(error))
        self.invalid |= isinstance(error, ConfigError)

    def to_dict(self) -> dict[str, Any]:
        """Return facts, problems and warnings as JSON values."""
        return {"tasks": self.tasks, "problems": self.problems, "warnings": self.warnings}

    def add_overlaps(self, task: TaskRows, found: Mapping[str, Mapping[str, Any]]) -> None:
        """Add what `Overlaps.found` returned for the training rows of a task."""
        name, unit = task.spec.name, unit_of(task.train)
        for other, facts in found.items():
            of = "its own eval set" if other == name else f"the eval set of {other}"
            pairs = _some([f"{unit} {line} (eval: {same})" for line, same in facts["lines"]], facts["rows"])
            self.warnings.append(
                f"leak: {facts['rows']} training rows of {name} ask what {facts['eval_rows']} rows of {of} ask, so the "
                f"score on those is a training score: {pairs}"
            )
            self.tasks.setdefault(name, {}).setdefault("overlaps", {})[other] = dict(facts)

    def add_shared(self, task: TaskRows, other: TaskRows, facts: Mapping[str, Any]) -> None:
        """Add what `SharedPrompts.found` returned for two tasks."""
        name, there = task.spec.name, other.spec.name
        wanted = facts["other_answers"]
        answers = f"{wanted} of them with another answer" if wanted else "with the same answers"
        pairs = [
            f"{unit_of(task.train)} {line} ({there}: {unit_of(other.train)} {same})" for line, same in facts["lines"]
        ]
        self.warnings.append(
            f"{facts['prompts']} prompts of {name} are also in task {there}, {answers}: "
            f"{_some(pairs, wanted or facts['prompts'])}"
        )
        self.tasks.setdefault(name, {}).setdefault("shared_prompts", {})[there] = dict(facts)

    def describe(
        self, task: TaskRows, scans: Mapping[str, Scan | None], reader: Reader | None, progress: Progress
    ) -> None:
        """Add the facts of a checked task, and what is wrong with its rows.

        Args:
            task: The task.
            scans: "train" and "eval" -> what was found there, or None.
            reader: What the rows are measured with; None if the model cannot be read.
            progress: Shows the progress.
        """
        spec, before = task.spec, self.tasks.get(task.spec.name, {})
        facts = self.tasks[spec.name] = {
            "format": task.format,
            "labels": None if task.labels is None else list(task.labels),
            "metric": spec.metric or "exact_match",
            "notes": list(task.notes),
            "overlaps": before.get("overlaps", {}),
            "shared_prompts": before.get("shared_prompts", {}),
        }
        for part, source in (("train", task.train), ("eval", task.held_out)):
            found = scans[part]
            if source is None or found is None:
                continue
            facts[part] = _facts(found, source)
            facts["notes"] += [f"{part}: {note}" for note in found.notes]
            self._add_problems(spec.name, part, found)
            self.warnings += _about_repeats(f"task {spec.name}, {part}", found, unit_of(source))
            if reader is not None and found.sample and not found.problems.count:
                facts[part]["tokens"] = self._count(task, part, found, reader, progress)
        train = scans["train"]
        if reader is not None and train is not None and train.sample and not train.problems.count:
            try:
                facts["example"] = masked_row(train.sample[0], reader)
            except GorpError as error:
                self.refuse(error)
        self.warnings += _about_answers(spec.name, scans)

    def _add_problems(self, name: str, part: str, found: Scan) -> None:
        self.problems += found.problems.first
        more = found.problems.count - len(found.problems.first)
        self.problems += [f"task {name}, {part}: {more} more rows cannot be used"] * (more > 0)

    def _count(self, task: TaskRows, part: str, found: Scan, reader: Reader, progress: Progress) -> dict[str, Any]:
        metric = task.spec.metric or "exact_match"
        counts, problems, warnings = token_counts(
            found.sample, reader, what=task.spec.name, part=part, metric=metric, progress=progress
        )
        self.problems += problems
        self.warnings += warnings
        return counts | {"all_rows": found.complete, "random_rows": found.drawn}


def _facts(found: Scan, source: Source) -> dict[str, Any]:
    """Return the facts of a part of a task as JSON values."""
    return {
        "files": [str(file) for file in source.files],
        "sha256": [file_sha256(file) for file in source.files],
        "bytes": source.size,
        "unit": unit_of(source),
        "columns": list(source.first.values),
        "rows": found.rows,
        "bad_rows": found.problems.count,
        "seconds": round(found.seconds, 2),
        **found.repeats,
        "answers": found.answers,
        "split_off": found.cut,
    }


def repeated(answers: Mapping[str, int] | None) -> bool:
    """Whether answers are few, short and on average given more than once, as labels are."""
    return answers is not None and sum(answers.values()) >= 2 * len(answers)


def _some(items: list[str], total: int) -> str:
    return ", ".join(items[:NAMED]) + ", …" * (total > NAMED)


def _about_repeats(where: str, found: Scan, unit: str) -> list[str]:
    lines = []
    if (same := found.repeats["duplicates"])["count"]:
        pairs = _some([f"{unit} {copy} (= {first})" for copy, first in same["lines"]], same["count"])
        lines.append(f"{where}: {same['count']} rows are copies of an earlier row: {pairs}")
    if (other := found.repeats["conflicts"])["count"]:
        groups = _some([f"{unit}s {' and '.join(map(str, group))}" for group in other["lines"]], other["count"])
        lines.append(f"{where}: {other['count']} prompts have different answers: {groups}")
    return lines


def _about_answers(name: str, scans: Mapping[str, Scan | None]) -> list[str]:
    """Return a warning if eval wants answers that no training row gives."""
    train, held_out = scans["train"], scans["eval"]
    if train is None or held_out is None or held_out.answers is None or not repeated(train.answers):
        return []
    assert train.answers is not None
    unknown = [answer for answer in held_out.answers if answer not in train.answers]
    rows = sum(held_out.answers[answer] for answer in unknown)
    shown = ", ".join(f"`{answer}`" for answer in unknown[:EXAMPLES])
    return [f"task {name}: {rows} eval rows want answers that no training row gives: {shown}"] * bool(unknown)
