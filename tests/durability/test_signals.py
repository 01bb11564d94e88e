"""SIGINT and SIGTERM, 20 times each in `gorp train` and 20 times each in the other commands.

A command ends with 130 or 143 and a sentence, or it had ended before. In training the running step is saved, and the
same command goes on from it. Every version is whole, and the project is then what it is after the unbroken command.
"""

import random
import re
import signal
import time

import pytest

from tests.durability.story import SCRIPT


SEED = 20261127
TRIES = 20
CODES = {signal.SIGINT: (130, "interrupted"), signal.SIGTERM: (143, "terminated")}
TRAIN = [number for number, step in enumerate(SCRIPT) if step.verb == "train"]
OTHERS = [number for number, step in enumerate(SCRIPT) if step.verb != "train"]
BEGUN = 0.03
"""Seconds in which the process sets itself up as a shell would; see `tests.durability.server`."""


def signals(steps: list[int]) -> list[tuple[signal.Signals, int, int]]:
    return [(number, each, steps[each % len(steps)]) for number in CODES for each in range(TRIES)]


def interrupt(commands, reference, figures, number: signal.Signals, at: int, share: float) -> tuple[bool, str]:
    """Start a step, send a signal after a share of its time; return whether that ended it, and what it said."""
    step = reference.begin(at)
    running = commands.start(step.arguments, reference.work)
    time.sleep(BEGUN + share * reference.seconds[at])
    running.send(number)
    done, (code, word) = running.wait(), CODES[number]
    assert done.is_clean, done.err
    row = f"{number.name} {step.verb}"
    if done.code in (code, -number) and not done.out + done.err:  # the command had not begun
        figures.add(row, "tries", "not begun")
        return False, ""
    if done.code != code:
        assert done.code == step.code, f"{done.code}: {done.err}"
        figures.add(row, "tries", "had ended")
        return False, done.err
    assert f"gorp: {word}." in done.err, done.err
    figures.add(row, "tries", "ended by it")
    return True, done.err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "each", "at"), signals(TRAIN))
def test_a_signal_in_training_saves_the_step_and_the_same_command_goes_on(
    commands, reference, figures, number, each, at
):
    share = random.Random(f"{SEED} {number} {each}").random()
    ended, said = interrupt(commands, reference, figures, number, at, share)
    reference.check_whole(commands, at)
    saved = re.search(r"Step (\d+) of 12 of task (\w+) is saved", said)
    row = f"{number.name} train"
    if ended and saved:
        checkpoint = reference.work / "bot" / "run" / saved[2] / f"checkpoint-{saved[1]}" / "complete.json"
        assert checkpoint.is_file()
        figures.add(row, "step saved")
    figures.add(row, "whole")
    reference.repeat(commands, at)
    figures.add(row, "same end")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "each", "at"), signals(OTHERS))
def test_a_signal_in_another_command_leaves_nothing_half_done(commands, reference, figures, number, each, at):
    share = random.Random(f"{SEED} {number} {each} others").random()
    interrupt(commands, reference, figures, number, at, share)
    reference.check_whole(commands, at)
    row = f"{number.name} {SCRIPT[at].verb}"
    figures.add(row, "whole")
    reference.repeat(commands, at)
    figures.add(row, "same end")
