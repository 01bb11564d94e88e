"""`kill -9` at 200 seeded moments of a script of all commands that write, and ten times with the installed `gorp`.

After each kill the workspace opens, every version in it is whole and answers with the same bits. The killed command is
said again, then the rest of the script; the project is then what it is after the unbroken run (`state` says what may
differ). Half of the moments are file operations of the command, half are times.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.durability.story import SCRIPT


SEED = 20261127
KILLS = {"init": 16, "add": 24, "train": 64, "gate": 20, "promote": 24, "rollback": 28, "gc": 24}
"""Kills of each command."""
REAL = ("init", "add", "train", "train", "train", "train", "promote", "rollback", "rollback", "gc")
"""Kills of the installed command, whose first seconds are imports."""

ALL = [(verb, number) for verb, count in KILLS.items() for number in range(count)]


def steps_of(verb: str) -> list[int]:
    return [number for number, step in enumerate(SCRIPT) if step.verb == verb]


def moment(reference, verb: str, number: int) -> tuple[int, int | None, float]:
    """Return the step, the operation before which it is killed or None, and the seconds after which it is killed."""
    steps, draw = steps_of(verb), random.Random(f"{SEED} {verb}")
    if number % 2:
        step = steps[number // 2 % len(steps)]
        return step, None, random.Random(f"{SEED} {verb} {number}").uniform(0, 1.05 * reference.seconds[step])
    before = [(step, at) for step in steps for at in range(1, len(reference.operations[step]) + 1)]
    draw.shuffle(before)
    return *before[number // 2 % len(before)], 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "number"), ALL)
def test_a_killed_command_leaves_a_whole_workspace_and_ends_as_the_unbroken_run_when_it_is_repeated(
    commands, reference, figures, verb, number
):
    number, before, seconds = moment(reference, verb, number)
    step = reference.begin(number)
    running = commands.start(step.arguments, reference.work, kill_before=before)
    if before is None:
        time.sleep(seconds)
        running.send(signal.SIGKILL)
    done = running.wait()
    assert done.code == -signal.SIGKILL or before is None, done.err
    kind = "by time" if before is None else "before an operation"
    figures.add(verb, "tries", kind, "killed" if done.code == -signal.SIGKILL else "had ended")
    reference.check_whole(commands, number)
    figures.add(verb, "whole")
    reference.go_on(commands, number)
    figures.add(verb, "same end")


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "number"), [(verb, number) for number, verb in enumerate(REAL)])
def test_so_does_the_installed_command(commands, reference, figures, verb, number):
    draw = random.Random(f"{SEED} installed {number}")
    number = draw.choice(steps_of(verb))
    step = reference.begin(number)
    command = shutil.which("gorp", path=str(Path(sys.executable).parent))
    if command is None:
        pytest.skip("needs the installed command `gorp`")
    imports = 4.0  # about; what happens before is the same for every command
    process = subprocess.Popen(
        [command, *step.arguments],
        cwd=reference.work,
        start_new_session=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(draw.uniform(0, imports + 1.05 * reference.seconds[number]))
    process.kill()
    row = f"installed {verb}"
    figures.add(row, "tries", "by time", "killed" if process.wait() == -signal.SIGKILL else "had ended")
    reference.check_whole(commands, number)
    figures.add(row, "whole")
    reference.go_on(commands, number)
    figures.add(row, "same end")
