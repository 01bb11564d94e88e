"""Declare the range of an option, and whether it may change between tasks, in the annotation of its field.

rank: Annotated[int, Range(1, WIDEST)] = 8
strength: Annotated[float, NOT_NEGATIVE, BETWEEN_TASKS] = 0.5
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from gorp.errors import ConfigError


WIDEST = 100_000
"""Larger than the width of any layer; upper bound of options that count directions of a layer."""


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, without nan and infinity."""

    low: float
    high: float = math.inf
    open_low: bool = False
    """Whether `low` itself is excluded."""
    open_high: bool = False
    """Whether `high` itself is excluded."""

    def __contains__(self, value: float) -> bool:
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low}" if self.open_low else f"at least {self.low}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high}"


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
COUNT = Range(1)
FRACTION = Range(0, 1)
BELOW_ONE = Range(0, 1, open_high=True)


@dataclass(frozen=True)
class BetweenTasks:
    """Marks an option that may change between tasks.

    Such an option affects only how the next task is learned and how much of it is kept. All other options affect the
    shape or meaning of what earlier tasks stored, or which weights are protected, and must not change.
    """


BETWEEN_TASKS = BetweenTasks()


def ranges(cls: type) -> dict[str, Range]:
    """Return the range of every field of a dataclass that declares one."""
    return {name: extra for name, extra in _extras(cls) if isinstance(extra, Range)}


def may_change(cls: type) -> tuple[str, ...]:
    """Return the fields of a dataclass that are marked `BETWEEN_TASKS`."""
    return tuple(name for name, extra in _extras(cls) if isinstance(extra, BetweenTasks))


def _extras(cls: type) -> Iterator[tuple[str, Any]]:
    """Yield (field, extra) for every extra argument of `Annotated` in the types of the fields."""
    for name, hint in get_type_hints(cls, include_extras=True).items():
        for part in (hint, *get_args(hint)):  # the parts of `Annotated[int, Range(1)] | None`
            if get_origin(part) is Annotated:
                yield from ((name, extra) for extra in part.__metadata__)


def check_ranges(config: Any, prefix: str = "") -> None:
    """Check that every number is in the range of its field; None is always allowed.

    Args:
        config: An instance of a dataclass.
        prefix: Text before the field's name in the message, for example "method.".

    Raises:
        ConfigError: If a number is outside its range; the message has the range.
    """
    allowed = ranges(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if field.name in allowed and value is not None and value not in allowed[field.name]:
            raise ConfigError(f"{prefix}{field.name} is {value}; it must be {allowed[field.name]}.")
