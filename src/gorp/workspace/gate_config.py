"""The `gate:` block of the YAML: how much each task may lose, and what becomes of a version that is not shown to do so.

The block influences neither weights nor scores, so it may change at any time.
"""

import os
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from gorp.errors import ConfigError, nearest, shown
from gorp.evaluation.paired import Verdict
from gorp.ranges import Range, check_ranges
from gorp.workspace.blocks import read_block
from gorp.workspace.present import present_yaml, task_names
from gorp.workspace.store import Workspace


MARGIN = 2.0
"""δ in points, unless the user gives another."""

ALLOWED = Range(0, 100, open_low=True, open_high=True)

LARGEST_RISE = 100
"""Largest `guard_margin`, in nats per token; a model that knows nothing of 150,000 tokens is at 12."""


@dataclass(frozen=True, kw_only=True)
class GateConfig:
    """How a new version is judged.

    Raises:
        ConfigError: If a margin is outside its range.
    """

    margin: Annotated[float, ALLOWED] = MARGIN
    """δ, in points: a drop up to this is allowed."""
    margins: dict[str, float] = field(default_factory=dict)
    """Task -> its own δ."""
    inconclusive: Literal["ship", "hold"] = "ship"
    """What a version becomes of which the test rows do not decide."""
    enabled: bool = True
    """Whether `gorp train` judges versions."""
    guard: str | None = None
    """A file with the guard text, on which no task trains; every version is scored on it. Absolute once it is read."""
    guard_margin: Annotated[float, Range(0, LARGEST_RISE)] | None = None
    """Nats per token: a version whose loss on that text is shown to rise by more is held; None: it only informs."""

    def __post_init__(self) -> None:
        check_ranges(self, "gate.")
        if self.guard is not None and not self.guard.strip():
            raise ConfigError("gate.guard is empty; wanted the path of a file of text that no task trains on.")
        if self.guard_margin is not None and self.guard is None:
            raise ConfigError(
                f"gate.guard_margin is {self.guard_margin}, but there is no `gate.guard`. Add `guard:` with a file of "
                "text that no task trains on, or remove the margin."
            )
        for task, margin in self.margins.items():
            if margin not in ALLOWED:
                raise ConfigError(f"gate.margins.{shown(task)} is {margin}; it must be {ALLOWED}.")

    def of(self, tasks: Iterable[str]) -> dict[str, float]:
        """Return the margin of each of `tasks`, in points."""
        return {task: self.margins.get(task, self.margin) for task in tasks}

    def accepts(self, verdict: Verdict) -> bool:
        """Whether a version of this verdict becomes the current one."""
        return verdict == "ship" or (verdict == "inconclusive" and self.inconclusive == "ship")


def read_gate(block: Any, tasks: Collection[str]) -> GateConfig:
    """Check the `gate:` block of a YAML; None is an empty block.

    Args:
        block: The value in the YAML.
        tasks: Names of the tasks in the same YAML.

    Raises:
        ConfigError: If it is not valid, or names a task that is not listed.
    """
    config = read_block(GateConfig, {} if block is None else block, "gate")
    for task in config.margins:
        if task not in tasks:
            raise ConfigError(
                f"gate.margins: no task `{shown(task)}` in `tasks:`; there are {shown(', '.join(tasks), 500)}."
                f"{nearest(task, tasks)}"
            )
    return config


def present_gate(store: Workspace, given: Path | None = None) -> GateConfig:
    """Return the `gate:` block of the YAML as it is now, or that of the last `gorp train` if the YAML cannot be used.

    Args:
        store: The workspace.
        given: The YAML that the user named, if any.

    Raises:
        ConfigError: If the block in the YAML is not valid.
        CheckpointError: If the workspace is damaged.
    """
    accepted, recorded = store.accepted()
    path, block, _ = present_yaml(store, given)
    if block is not None:
        found = read_gate(block.get("gate"), task_names(block))
    else:
        found, path = read_gate(accepted.get("gate"), [str(task["name"]) for task in accepted["tasks"]]), recorded
    if found.guard is None:
        return found
    folder = Path(os.path.realpath(store.root)).parent if path is None else path.parent
    return replace(found, guard=os.path.abspath(folder / os.path.expanduser(found.guard)))
