"""One server and one unbroken run for all tests of this folder; and the tables of figures, shown at the end by -s."""

from collections import Counter
from collections.abc import Iterator

import pytest
from transformers.utils import logging

from tests.durability.commands import Commands
from tests.durability.reference import Reference


logging.disable_progress_bar()


class Figures:
    """Counts what was tried, by row and column."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, row: str, *columns: str) -> None:
        """Count one try in each of `columns`."""
        self.counts.setdefault(row, Counter()).update(columns)

    def table(self) -> str:
        """Return the counts as lines of text, with their sums."""
        columns = list(dict.fromkeys(column for row in self.counts.values() for column in row))
        total = Counter({column: sum(row[column] for row in self.counts.values()) for column in columns})
        lines = [["", *columns], *([name, *(str(row[c]) for c in columns)] for name, row in self.counts.items())]
        lines.append(["all", *(str(total[column]) for column in columns)])
        widths = [max(len(line[number]) for line in lines) for number in range(len(columns) + 1)]
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
        )


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    server = Commands(tmp_path_factory.mktemp("said"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def reference(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference.record(commands, tmp_path_factory.mktemp("reference"))


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    found = Figures()
    yield found
    print(f"\n\n{request.module.__doc__.splitlines()[0]}\n{found.table()}")
