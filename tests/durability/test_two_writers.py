"""Two commands that write at once, 110 times; and commands that read while another one writes, 20 times.

One of two writers goes on and the other is refused with the name of the first, or they go one after the other. What is
there afterwards is what one of them alone, or both in one order, would have made. Readers are asked while the writer
is stopped in the middle of its work, so one that waited for it would never end.
"""

import json
import os
import random
import re
import signal
import socket
import time

import pytest

from gorp.workspace import Workspace
from tests.durability.commands import Done
from tests.durability.reference import current
from tests.durability.state import Contents, differences, state


SEED = 20261127
PROMOTE = ("promote", "bot.yaml", "--version", "v2", "--anyway", "one is no longer asked")
TRAIN = ("train", "bot.yaml")
ADD = {name: ("add", name, f"{name}.jsonl", "--eval", f"{name}_eval.jsonl") for name in ("two", "three")}
INIT = ("init", "./model", "--out", "bot.yaml")
PAIRS = {
    "init, init": (0, INIT, INIT),
    "train, train, new": (3, TRAIN, TRAIN),
    "train, train": (8, TRAIN, TRAIN),
    "train, promote": (8, TRAIN, PROMOTE),
    "rollback, promote": (5, ("rollback", "bot.yaml", "v0"), PROMOTE),
    "gc, train": (11, ("gc", "bot.yaml"), ("train", "bot.yaml", "--restart")),
    "add, add": (2, ADD["two"], ADD["three"]),
    "add, train": (3, ADD["three"], TRAIN),
    "gate, train": (8, ("gate", "bot.yaml", "--version", "v2"), TRAIN),
}
"""Name -> step of the script before which the project is, and the two commands."""
TRIES = {
    "init, init": 10,
    "train, train, new": 10,
    "train, train": 15,
    "train, promote": 15,
    "rollback, promote": 20,
    "gc, train": 15,
    "add, add": 15,
    "add, train": 5,
    "gate, train": 5,
}
READ = 20
MEANWHILE = (
    r"another process has made v\d+ the current version in the meantime|was changed while the rows were read"
    r"|bot\.yaml: exists, and is not overwritten"
)
"""Of a command that saw, when it was to write, that another one had written."""


@pytest.fixture(scope="module")
def legal(commands, reference):
    """Return what the project may be after a pair: after either command alone, and after both in either order."""
    known: dict[str, list[Contents]] = {}

    def find(pair: str) -> list[Contents]:
        if pair not in known:
            number, first, second = PAIRS[pair]
            known[pair] = []
            for order in ((first,), (second,), (first, second), (second, first)):
                reference.begin(number)
                for arguments in order:
                    assert commands.run(arguments, reference.work).is_clean
                known[pair].append(state(reference.work))
        return known[pair]

    return find


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pair", "number"), [(pair, number) for pair, count in TRIES.items() for number in range(count)]
)
def test_of_two_writers_one_goes_on_or_they_go_one_after_the_other(commands, reference, figures, legal, pair, number):
    allowed, draw = legal(pair), random.Random(f"{SEED} {pair} {number}")
    before, *both = PAIRS[pair]
    reference.begin(before)
    order = draw.sample((0, 1), 2)
    longest = reference.seconds[before] if both[order[0]][0] == "train" else 0.3
    first = commands.start(both[order[0]], reference.work)
    time.sleep(draw.uniform(0, longest))
    second = commands.start(both[order[1]], reference.work)
    ended = dict(zip(order, (first.wait(), second.wait()), strict=True))
    assert all(done.is_clean for done in ended.values()), [done.err for done in ended.values()]
    refused = [number for number, done in ended.items() if is_refused(done, first.pid, second.pid)]
    assert len(refused) == 1 if pair == "init, init" else len(refused) < 2
    if refused:  # then it is as if only the other one had been said
        allowed = [allowed[1 - refused[0]]]
    found = state(reference.work)
    nearest = min((differences(found, each) for each in allowed), key=len)
    assert not nearest, "\n".join(nearest)
    figures.add(pair, "tries", "one refused" if refused else "one after the other", "a legal end")


def is_refused(done: Done, *processes: int) -> bool:
    """Whether a command was refused because of the other one; the message must say which, where and since when."""
    if re.search(MEANWHILE, done.err):
        return True
    if "another gorp process writes there" not in done.err:
        return False
    holder = re.search(r"\(process (\d+) on (\S+) since (20\S+): `(gorp [^`]+)`\)\. Wait until it ends", done.err)
    starting = "(just started)" in done.err
    assert starting or (holder and int(holder[1]) in processes and holder[2] == socket.gethostname()), done.err
    return done.code == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", range(READ))
def test_readers_are_neither_stopped_nor_misled_by_a_writer(commands, reference, figures, number):
    draw = random.Random(f"{SEED} read {number}")
    before = (3, 8, 10, 11)[number % 4]
    step = reference.begin(before)
    writer = commands.start(step.arguments, reference.work)
    time.sleep(draw.uniform(0, reference.seconds[before]))
    writer.send(signal.SIGSTOP)
    try:
        now = current(reference.work)
        shown = commands.run(("status", "bot.yaml", "--json"), reference.work)
        if now is None:
            assert shown.code == 1 and "gorp train" in shown.err
            figures.add("before v0", "tries", "said so")
        else:
            assert shown.code == 0
            assert json.loads(shown.out)["current"] in (*reference.currents[before : before + 2], now)
            for arguments in (
                ("log", "bot.yaml"),
                ("ask", "bot.yaml", "The light 7 is red. Answer:"),
                ("doctor", "bot"),
            ):
                done = commands.run(arguments, reference.work)
                known = Workspace(reference.work / "bot").current().contains
                assert done.is_clean and (done.code == 0 or (arguments[0] == "ask" and not known)), done.err
            check_answers(commands, reference, number)
            figures.add("with versions", "tries", "right")
    finally:
        os.kill(writer.pid, signal.SIGCONT)
    assert writer.wait().code == step.code
    assert not differences(state(reference.work), state(reference.snapshots[before + 1]))
    figures.add("before v0" if now is None else "with versions", "writer as alone")


def check_answers(commands, reference, number: int) -> None:
    """Check that `gorp ask` gives an answer that is recorded, and that `gorp diff` works between learned versions."""
    store = Workspace(reference.work / "bot")
    version = store.current()
    if not version.contains:
        return
    samples = reference.work / "bot" / "eval" / "samples" / f"{version.name}-{version.contains[-1]}.jsonl"
    sample = json.loads(samples.read_text().splitlines()[number % 9])
    asked = commands.run(("ask", "bot", sample["prompt"], "--version", version.name, "--json"), reference.work)
    assert asked.code == 0 and json.loads(asked.out)["answer"] == sample["answer"], asked.err
    compared = commands.run(("diff", "bot", "v0", version.name), reference.work)
    assert compared.code == 0 and compared.is_clean, compared.err
