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
        self._size, self.offered = 0, 0

    def offer(self, row: T, prompt: int, answer: int) -> None:
        """Offer the next row, with the characters of its prompt and answer."""
        number, self.offered = self.offered, self.offered + 1
        kept, size, draw = self._kept, prompt + answer, -self._random()
        if len(kept) < number and draw < kept[0][0]:  # rows were left out, and this one drew a higher number
            pass
        else:
            heapq.heappush(kept, (draw, number, row, size))
            self._size += size
            while len(kept) > 1 and (len(kept) > self._rows or self._size > self._characters):
                self._size -= heapq.heappop(kept)[3]
        for longest, length in zip(self._longest, (prompt, answer), strict=True):
            if len(longest) < LONGEST:
                heapq.heappush(longest, (length, -number, row))
            elif length > longest[0][0]:
                heapq.heapreplace(longest, (length, -number, row))

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
