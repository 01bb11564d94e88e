"""Find prompts that two tasks both train, and those of them whose answer differs, in files of any size.

Prompts are compared by what they ask, as in `gorp.rows.overlaps`, and answers up to blanks. Two tasks may ask different
things of the same text: tasks with different templates, or without a common label, are not compared.

The hashes of the rows of all tasks are in one `RowIndex`, so memory does not grow with the files.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gorp.data.row_index import EXAMPLES, Array, RowIndex, normal, text_hash
from gorp.rows.scan import TaskRows


Lines = list[tuple[int, int]]


class SharedPrompts:
    """The training rows of tasks that are compared in pairs; to be used in a `with`."""

    def __init__(self, tasks: Sequence[TaskRows], names: Collection[str]) -> None:
        """Begin without rows.

        Args:
            tasks: The tasks, in the order of the configuration.
            names: The tasks that are checked. Each is compared with all earlier tasks, and with later ones that are not
                checked themselves.
        """
        self.pairs = [
            (task.spec.name, other.spec.name)
            for place, task in enumerate(tasks)
            for number, other in enumerate(tasks)
            if task.spec.name in names
            and (number < place or (number > place and other.spec.name not in names))
            and _ask_the_same(task, other)
        ]
        self._numbers = {
            name: number for number, name in enumerate(sorted({name for pair in self.pairs for name in pair}))
        }
        self._index = RowIndex()

    def __enter__(self) -> "SharedPrompts":
        """Return these rows, whose temporary file is removed at the end of the context."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the temporary file."""
        self._index.__exit__()

    def __contains__(self, task: str) -> bool:
        """Whether a task is compared with another one, so that its rows must be added."""
        return task in self._numbers

    def add(self, task: str, asked: str, answer: str, line: int) -> None:
        """Add a training row of a task: what it asks, its answer, its line."""
        self._index.add(text_hash(normal(asked)), text_hash(normal(answer)), self._numbers[task], line)

    def found(self, without: Mapping[str, Collection[int]]) -> dict[tuple[str, str], dict[str, Any]]:
        """Return what was found, for each pair of tasks with common prompts.

        Args:
            without: Task -> lines of rows that do not count, because they are split off as eval.

        Returns:
            The pair -> `prompts`, the number of prompts that both have; `other_answers`, for how many of these the
            first task has an answer that the second has not; and `lines`, pairs of lines, first of such prompts.
        """
        counts = {pair: [0, 0] for pair in self.pairs}
        lines: dict[tuple[str, str], tuple[Lines, Lines]] = {pair: ([], []) for pair in self.pairs}
        for records in self._index.parts("prompt"):
            rows = _of_several_tasks(records)
            rows = {
                name: _counted(rows[rows["rank"] == number], without.get(name, ()))
                for name, number in self._numbers.items()
            }
            for pair in self.pairs:
                each = _compared(rows[pair[0]], rows[pair[1]])
                for place, (count, some) in enumerate(each):
                    counts[pair][place] += count
                    lines[pair][place].extend(some)
        return {
            pair: {"prompts": shared, "other_answers": other, "lines": sorted(lines[pair][other > 0])[:EXAMPLES]}
            for pair, (shared, other) in counts.items()
            if shared
        }


def _ask_the_same(task: TaskRows, other: TaskRows) -> bool:
    """Whether two tasks would ask the same of one text, as far as their templates and labels tell."""
    labels = task.labels is None or other.labels is None or bool(set(task.labels) & set(other.labels))
    return labels and task.spec.template == other.spec.template


def _of_several_tasks(records: Array) -> Array:
    """Return the records whose prompt is in more than one task, sorted by prompt and line."""
    records = records[np.lexsort((records["number"], records["rank"], records["prompt"]))]
    _, begin, size = np.unique(records["prompt"], return_index=True, return_counts=True)
    several = records["rank"][begin] != records["rank"][begin + size - 1]
    return records[np.repeat(several, size)]


def _counted(rows: Array, without: Collection[int]) -> Array:
    return rows[~np.isin(rows["number"], np.array(sorted(without), np.uint32))]


def _compared(mine: Array, theirs: Array) -> tuple[tuple[int, Lines], tuple[int, Lines]]:
    """Return, of the prompts that both have and of those with another answer: how many, and the first lines."""
    prompts, first = np.unique(theirs["prompt"], return_index=True)
    mine = mine[np.isin(mine["prompt"], prompts)]
    other = mine[~np.isin(_pair(mine), _pair(theirs))]
    found = []
    for rows in (mine, other):
        where, begin = np.unique(rows["prompt"], return_index=True)
        few = np.argsort(rows["number"][begin], kind="stable")[:EXAMPLES]
        same = theirs["number"][first[np.searchsorted(prompts, where[few])]]
        found.append((len(where), list(zip(rows["number"][begin[few]].tolist(), same.tolist(), strict=True))))
    return found[0], found[1]


def _pair(rows: Array) -> Array:
    """Return one hash of prompt and answer for each row; uint64 products wrap around."""
    return rows["prompt"] * np.uint64(0x9E3779B97F4A7C15) + rows["answer"]
