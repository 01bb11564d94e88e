"""A disk that is full: 20 times in `gorp train`, and in every other command that writes.

Each time the command ends with exit code 1 and a sentence that names the disk and says what to do; every version is
whole. With room again the same command goes on, and the project is then what it is after the unbroken command. Commands
that write nothing work on a full disk, and where nothing may be written.
"""

import random
import re
from collections.abc import Iterator

import pytest

from tests.durability.disks import PAGE, Disk, mounted
from tests.durability.story import SCRIPT


SEED = 20261127
LARGEST = 600 * 1024
"""Room in bytes with which `gorp train` always ends: checkpoints of a step are some 250 kB."""
TRAIN = 20
"""Points at which the disk is full in `gorp train`."""
OTHERS = [number for number, step in enumerate(SCRIPT) if step.verb != "train"]
MESSAGE = re.compile(
    r"gorp: .*(\(disk /.*, [\d.]+ MiB free\).*Free some space or allow writing|has [\d.]+ MB free\. Free some space)",
    re.DOTALL,
)
"""The second form is that of `gorp export`, which compares sizes before it writes."""


@pytest.fixture(scope="module")
def disk(reference) -> Iterator[Disk]:
    """A disk under the folder of all runs; its content is put there by `reference.begin`."""
    with mounted(reference.work) as found:
        yield found


def check_full(done) -> None:
    assert done.code == 1 and done.is_clean and MESSAGE.search(done.err), f"{done.code} {done.err}"


@pytest.mark.slow
@pytest.mark.parametrize("point", range(TRAIN))
def test_training_on_a_full_disk_says_so_and_goes_on_when_there_is_room(commands, reference, disk, figures, point):
    steps = [number for number, step in enumerate(SCRIPT) if step.verb == "train"]
    number, draw = steps[point % len(steps)], random.Random(f"{SEED} {point}")
    room = draw.randrange(0, LARGEST)
    while True:  # with enough room nothing fails: then half of it
        step = reference.begin(number)
        disk.leave(room)
        done = commands.run(step.arguments, reference.work)
        if done.code == 1:
            break
        assert room and done.code == step.code, done.err
        room //= 2
        disk.grow()
    disk.grow()
    check_full(done)
    figures.add("train", "full", "said so")
    reference.check_whole(commands, number)
    figures.add("train", "whole")
    reference.repeat(commands, number)
    figures.add("train", "same end")


@pytest.mark.slow
@pytest.mark.parametrize("pages", range(3))
@pytest.mark.parametrize("number", OTHERS)
def test_other_commands_on_a_full_disk_say_so_and_end_when_there_is_room(
    commands, reference, disk, figures, number, pages
):
    step = reference.begin(number)
    disk.leave(pages * PAGE)
    done = commands.run(step.arguments, reference.work)
    disk.grow()
    if pages and done.code == step.code:
        figures.add(step.verb, "had room")
        return
    check_full(done)
    figures.add(step.verb, "full", "said so")
    reference.check_whole(commands, number)
    figures.add(step.verb, "whole")
    reference.repeat(commands, number)
    figures.add(step.verb, "same end")


WRITERS = {
    "export": ("export", "bot.yaml", "served"),
    "export lora": ("export", "bot.yaml", "served", "--to", "lora", "--each"),
    "report": ("report", "bot.yaml", "--out", "page.html", "--markdown", "page.md"),
    "eval": ("eval", "bot.yaml"),
}
READERS = {
    "status": ("status", "bot.yaml"),
    "log": ("log", "bot.yaml"),
    "diff": ("diff", "bot.yaml"),
    "ask": ("ask", "bot.yaml", "The light 3 is green. Answer:"),
    "doctor": ("doctor", "bot.yaml"),
    "validate": ("validate", "bot.yaml"),
    "gate": ("gate", "bot.yaml", "--dry-run"),
    "train": ("train", "bot.yaml", "--dry-run"),
    "gc": ("gc", "bot.yaml", "--dry-run"),
}


@pytest.mark.slow
@pytest.mark.parametrize("pages", [0, 3, 8, 28, 32])
@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_beside_the_versions_is_written_whole_or_not_at_all(
    commands, reference, disk, figures, name, pages
):
    reference.begin_after_all()
    disk.leave(pages * PAGE)
    done = commands.run(WRITERS[name], reference.work)
    disk.grow()
    if pages and done.code == 0:
        figures.add(name, "had room")
        return
    check_full(done)
    figures.add(name, "full", "said so")
    reference.check_end()
    figures.add(name, "whole", "same end")
    assert commands.run(WRITERS[name], reference.work).code == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_reading_works_on_a_full_disk(commands, reference, disk, figures, name):
    reference.begin_after_all()
    disk.leave(0)
    done = commands.run(READERS[name], reference.work)
    disk.grow()
    assert done.code == 0 and done.is_clean, done.err
    figures.add(name, "read")
    reference.check_end()


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SCRIPT)))
def test_where_nothing_may_be_written_a_command_says_so(commands, reference, disk, figures, number):
    step = reference.begin(number)
    disk.forbid_writing()
    done = commands.run(step.arguments, reference.work)
    disk.grow()
    check_full(done)
    figures.add(step.verb, "read-only", "said so")
    reference.repeat(commands, number)
    figures.add(step.verb, "same end")


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS | {"export": (), "report": ()})
def test_reading_works_where_nothing_may_be_written(commands, reference, disk, figures, name, tmp_path):
    arguments = (
        READERS.get(name)
        or {
            "export": ("export", "bot.yaml", str(tmp_path / "served")),
            "report": ("report", "bot.yaml", "--out", str(tmp_path / "page.html")),
        }[name]
    )
    reference.begin_after_all()
    disk.forbid_writing()
    done = commands.run(arguments, reference.work)
    disk.grow()
    assert done.code == (1 if name == "doctor" else 0) and done.is_clean, done.out + done.err
    assert name != "doctor" or "cannot be read or written" in done.out, done.out  # a problem that it finds
    figures.add(name, "read-only", "read")
    reference.check_end()
