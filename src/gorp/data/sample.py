"""Keep all rows of a small file, or a random sample of a large one, and the longest rows."""

import heapq
import random
from typing import Generic, TypeVar


T = TypeVar("T")

MOST_ROWS, MOST_CHARACTERS = 20_000, 16_000_000
"""Limits up to which all rows are kept."""

LONGEST = 16
"""Rows with the longest prompt, and with the longest answer, that are kept in any case."""


class Sample(Generic[T]):
    """A sample of the rows that are offered, without replacement; each row has the same chance.

    Every row draws a number, and the rows with the lowest are kept: as many as the limits allow.
    """

    def __init__(self, *, most_rows: int = MOST_ROWS, most_characters: int = MOST_CHARACTERS) -> None:
        """Begin without rows; the draw is the same every time."""
        self._random = random.Random(0).random
        self._rows, self._characters = most_rows, most_characters
        self._kept: list[tuple[float, int, T, int]] = []
        self._longest: tuple[list[tuple[int, int, T]], ...] = ([], [])
        self._shortest = [-1, -1]  # of the longest ones that are kept, once there are as many as wanted
        self._size, self.offered, self._least = 0, 0, -1.0

    def offer(self, row: T, prompt: int, answer: int) -> None:
        """Offer the next row, with the characters of its prompt and answer."""
        number, self.offered = self.offered, self.offered + 1
        draw, kept = -self._random(), self._kept
        if draw > self._least:
            heapq.heappush(kept, (draw, number, row, prompt + answer))
            self._size += prompt + answer
            while len(kept) > 1 and (len(kept) > self._rows or self._size > self._characters):
                self._size -= heapq.heappop(kept)[3]
                self._least = kept[0][0]  # rows are left out, so from now on only a better draw is kept
        if prompt > self._shortest[0]:
            self._shortest[0] = _keep_longest(self._longest[0], prompt, number, row)
        if answer > self._shortest[1]:
            self._shortest[1] = _keep_longest(self._longest[1], answer, number, row)

    @property
    def complete(self) -> bool:
        """Whether all rows were kept."""
        return len(self._kept) == self.offered

    @property
    def drawn(self) -> int:
        """Number of rows of the random sample."""
        return len(self._kept)

    def rows(self) -> list[T]:
        """Return the sample and the longest rows, in the order in which they were offered."""
        found = {number: row for _, number, row, _ in self._kept}
        for longest in self._longest:
            found |= {-number: row for _, number, row in longest}
        return [found[number] for number in sorted(found)]


def _keep_longest(longest: list[tuple[int, int, T]], length: int, number: int, row: T) -> int:
    """Add a row to the longest ones; return the length that a further one must exceed."""
    if len(longest) < LONGEST:
        heapq.heappush(longest, (length, -number, row))
    else:
        heapq.heapreplace(longest, (length, -number, row))
    return longest[0][0] if len(longest) == LONGEST else -1
