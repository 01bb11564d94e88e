"""What a check says, and how a check is run so that its own failure does not hide the others."""

import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from gorp.errors import GorpError, shown


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    level: Literal["ok", "warning", "problem"]
    """A problem keeps gorp from working, or means that something is damaged."""
    what: str
    """The part that was checked, in a word or two."""
    says: str
    advice: str = ""
    """What to do; empty if nothing is to be done."""

    def to_dict(self) -> dict[str, str]:
        """Return the fields as JSON values."""
        return asdict(self)


Check = Callable[[], Iterable[Finding]]


def run(what: str, check: Check) -> Iterator[Finding]:
    """Yield what a check finds; if it raises, that is a problem."""
    try:
        yield from check()
    except GorpError as error:
        yield Finding("problem", what, str(error))
    except Exception as error:  # a library that is broken may raise anything
        text = shown(" ".join(str(error).split()), 300)
        yield Finding("problem", what, f"cannot be checked: {type(error).__name__}: {text}")


def free_bytes(path: Path) -> int:
    """Return the free bytes of the disk that `path` is on, or would be on."""
    place = path.absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def size(count: int) -> str:
    """Return a number of bytes in GiB, or in MiB below one."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
