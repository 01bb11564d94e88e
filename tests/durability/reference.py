"""The run that nothing interrupts, with which every interrupted one is compared."""

import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.durability.answers import answers
from tests.durability.commands import Commands
from tests.durability.state import Contents, differences, state
from tests.durability.story import SCRIPT, Step, check, edit, make_project, play


@dataclass(frozen=True)
class Reference:
    """What the unbroken run was, step by step. All runs are in the same folder `work`: the workspace names paths."""

    work: Path
    snapshots: list[Path]
    """Copies of `work` before each step, its edit included, and after the last one."""
    operations: list[list[str]]
    """The file operations of each step."""
    seconds: list[float]
    """How long each step took."""
    answers: dict[str, bytes]
    """Version -> its logits, for every version there ever was."""
    currents: list[str | None]
    """The current version before each step and after the last one."""

    @classmethod
    def record(cls, commands: Commands, folder: Path) -> "Reference":
        """Run the script in `folder`, which is created."""
        work = folder / "work"
        work.mkdir(parents=True)
        make_project(work)
        snapshots, operations, seconds, known, currents = [], [], [], {}, []
        for number, step in enumerate(SCRIPT):
            edit(step, work)
            snapshots.append(shutil.copytree(work, folder / f"before-{number}"))
            currents.append(current(work))
            log, begun = folder / f"operations-{number}", time.monotonic()
            done = commands.run(step.arguments, work, operations=log)
            seconds.append(time.monotonic() - begun)
            check(step, done, repeated=False)
            operations.append(log.read_text().splitlines())
            known |= answers(work)
        snapshots.append(shutil.copytree(work, folder / "end"))
        return cls(work, snapshots, operations, seconds, known, [*currents, current(work)])

    def begin(self, number: int) -> Step:
        """Put the project into the state before a step, and return the step."""
        self._copy(self.snapshots[number])
        return SCRIPT[number]

    def begin_after_all(self) -> None:
        """Put the project into the state at the end of the script."""
        self._copy(self.snapshots[-1])

    def _copy(self, snapshot: Path) -> None:
        for path in self.work.iterdir():  # the folder stays: it may be where a disk is mounted
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        shutil.copytree(snapshot, self.work, dirs_exist_ok=True)

    def check_whole(self, commands: Commands, number: int) -> None:
        """Check the project after a step was interrupted: it opens, and every version in it answers as it did."""
        shown = commands.run(["status", "bot.yaml"], self.work)
        now = current(self.work)
        assert shown.is_clean
        if now is None:
            assert self.currents[number] is None and shown.code in (1, 2), shown.err
            assert number == 0 or "gorp train" in shown.err, shown.err
        else:
            assert shown.code == 0, shown.err
        found = answers(self.work)
        assert {name: self.answers[name] for name in found} == found
        assert {self.currents[number], now} - {None} <= set(found)

    def repeat(self, commands: Commands, number: int) -> None:
        """Repeat a step that was interrupted, and compare the project with what it was after that step."""
        step = SCRIPT[number]
        check(step, commands.run(step.arguments, self.work), repeated=True)
        if number + 1 < len(SCRIPT):
            edit(SCRIPT[number + 1], self.work)  # as in the snapshot
        found = differences(state(self.work), state(self.snapshots[number + 1]))
        assert not found, "\n".join(found)

    def go_on(self, commands: Commands, number: int) -> None:
        """Repeat a step that was interrupted, play the rest of the script, and compare the end."""
        step = SCRIPT[number]
        check(step, commands.run(step.arguments, self.work), repeated=True)
        play(commands, self.work, SCRIPT[number + 1 :])
        self.check_end()

    def check_end(self) -> None:
        """Check that the project is in the state in which the unbroken run ended."""
        found = differences(state(self.work), self.end)
        assert not found, "\n".join(found)

    @cached_property
    def end(self) -> Contents:
        """The state in which the unbroken run ended."""
        return state(self.snapshots[-1])


def current(folder: Path) -> str | None:
    """Return the version that CURRENT names in a project, or None if there is no such file."""
    path = folder / "bot" / "CURRENT"
    return path.read_text().split()[0] if path.is_file() else None
