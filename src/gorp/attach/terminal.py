"""What a protected task prints: a bar while rows are read, what was saved, and a task that nobody saved."""

import atexit
from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from tqdm.auto import tqdm

from gorp.core.distributed import rank
from gorp.workspace.version import Version


class ReadingBar:
    """A bar that shows how far the reading of a task's rows is; it is `TaskContext.reading`.

    Args:
        task: Name of the task.
        shown: Whether there is a bar at all.
    """

    def __init__(self, task: str, *, shown: bool) -> None:
        self._task, self._shown, self._bar = task, shown, None

    def __call__(self, done: int, total: int) -> None:
        """Show that `done` of `total` passes are finished; on the first rank."""
        if not self._shown or rank() != 0:
            return
        bar: Any = self._bar or tqdm(total=total, desc=f"gorp reads rows of {self._task}", unit="batch", leave=False)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
        self._bar = None if done == total else bar


def saved_lines(version: Version, task: str, *, has_adapter: bool) -> Iterator[str]:
    """Yield what a user should know of a task that was saved.

    Args:
        version: The new version.
        task: Name of the task.
        has_adapter: Whether the user's own adapter is on the model.
    """
    root = version.folder.parent.parent
    leak = "" if version.record.get("leak") is None else f", leak {version.record['leak']:.1e}"
    yield f"task `{task}` is saved as {version.name} in {root}{leak}"
    yield from version.record["warnings"]
    if has_adapter:
        yield (
            f"to serve it, use `gorp export {root}`: the adapter of this task alone lacks what earlier tasks and cores "
            "changed"
        )


_reminders: WeakKeyDictionary[Any, Callable[[Any], str | None]] = WeakKeyDictionary()


def remind_at_exit(task: Any, line: Callable[[Any], str | None]) -> None:
    """Print `line(task)` when the process exits, unless it is None or the task no longer exists."""
    _reminders[task] = line


@atexit.register
def _print_reminders() -> None:
    for task, line in _reminders.items():
        if (text := line(task)) is not None and rank() == 0:
            print(f"gorp: {text}")
