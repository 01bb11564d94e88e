"""Find training rows that ask what a row of an eval set asks, in files of any size.

Two rows ask the same if what they ask is equal in Unicode's form NFC and up to blanks; template, label set and chat
template do not count. Only 64 bits of a hash of each eval row are kept: among 20 million rows and a thousand eval rows,
a pair that differs is taken for equal with a probability of one in a billion.
"""

from array import array
from collections.abc import Collection
from typing import Any

import numpy as np

from gorp.data.row_index import BLOCK, EXAMPLES, Array, normal, text_hash


class EvalRows:
    """The rows of an eval set: hashes of what they ask, and their lines."""

    def __init__(self, task: str, *, rendered: bool = False) -> None:
        """Begin without rows.

        Args:
            task: The task that is scored on them.
            rendered: Whether only the rendered prompts are known, as of rows that a workspace keeps.
        """
        self.task, self.rendered = task, rendered
        self._hashes, self._lines = array("Q"), array("Q")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._hashes)

    def add(self, text: str, line: int) -> None:
        """Add a row: what it asks, or its prompt if `rendered`."""
        self._hashes.append(text_hash(normal(text)))
        self._lines.append(line)

    def distinct(self) -> tuple[Array, Array, Array]:
        """Return the distinct hashes in ascending order, the first line of each, and how many rows have it."""
        hashes = np.frombuffer(self._hashes, np.uint64) if len(self) else np.empty(0, np.uint64)
        lines = np.frombuffer(self._lines, np.uint64) if len(self) else hashes
        found, first, times = np.unique(hashes, return_index=True, return_counts=True)
        return found, lines[first], times


class Overlaps:
    """Looks rows up in eval sets, many at a time."""

    def __init__(self, sets: list[EvalRows]) -> None:
        """Take the eval sets."""
        self._sets = [(rows.task, rows.rendered, *rows.distinct()) for rows in sets if len(rows)]
        self._asked, self._prompts, self._lines = array("Q"), array("Q"), array("Q")
        self.asked = any(not rendered for _, rendered, *_ in self._sets)
        """Whether any set needs to know what a row asks."""
        self.prompts = any(rendered for _, rendered, *_ in self._sets)
        """Whether any set needs a row's rendered prompt."""
        self._hits = [(array("Q"), array("Q")) for _ in self._sets]
        """For each set, the lines of the rows that were found, and the places of their hashes in the set."""

    def look(self, asked: str, prompt: str, line: int) -> None:
        """Look up a row."""
        self._asked.append(text_hash(normal(asked)) if self.asked else 0)
        self._prompts.append(text_hash(normal(prompt)) if self.prompts else 0)
        self._lines.append(line)
        if len(self._lines) == BLOCK:
            self._search()

    def _search(self) -> None:
        if not len(self._lines):
            return
        rows = {False: np.frombuffer(self._asked, np.uint64), True: np.frombuffer(self._prompts, np.uint64)}
        numbers = np.frombuffer(self._lines, np.uint64)
        for (_, rendered, hashes, *_), (hit, places) in zip(self._sets, self._hits, strict=True):
            place = np.minimum(np.searchsorted(hashes, rows[rendered]), len(hashes) - 1)
            same = np.flatnonzero(hashes[place] == rows[rendered])
            hit.frombytes(numbers[same].tobytes())
            places.frombytes(place[same].astype(np.uint64).tobytes())
        self._asked, self._prompts, self._lines = array("Q"), array("Q"), array("Q")

    def found(self, *, without: Collection[int] = ()) -> dict[str, dict[str, Any]]:
        """Return what was found, for each task with overlaps.

        Args:
            without: Lines of rows that do not count.

        Returns:
            Task -> `rows`, the number of rows that ask what an eval row asks; `eval_rows`, the number of these eval
            rows; and `lines`, the first pairs of the lines of a row and an eval row.
        """
        self._search()
        found = {}
        for (task, _, _, lines, times), (hit, places) in zip(self._sets, self._hits, strict=True):
            rows, place = np.array(hit, np.uint64), np.array(places, np.int64)
            counted = ~np.isin(rows, np.array(sorted(without), np.uint64))
            rows, place = rows[counted], place[counted]
            if len(rows):
                pairs = zip(rows[:EXAMPLES].tolist(), lines[place[:EXAMPLES]].tolist(), strict=True)
                asked = int(times[np.unique(place)].sum())
                found[task] = {"rows": len(rows), "lines": list(pairs), "eval_rows": asked}
        return found
