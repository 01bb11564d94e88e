"""Damage anywhere in a workspace is detected with the file named, or has provably no effect. It is never silent.

Every place is judged in the same way: the commands that read a workspace are run, and for the files of an unfinished
training also `gorp train`. A command either gives the result of the whole workspace or names the damaged file, and some
command names it unless the damage has no effect: see `harmless`.
"""

import json
import math
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gorp.cli import console
from tests.command import gorp
from tests.durability.workspace import contents_of, files_of, make_workspace
from tests.workspace.project import weights


pytestmark = pytest.mark.slow

PLACES, PART, SEED = 500, 25, 20261127
"""Places at which one byte is changed; places in one test; seed of the first part."""

READERS = {
    "status": ("status", "--json"),
    "log": ("log",),
    "diff": ("diff",),
    "first gate": ("gate", "--version", "v1", "--verify"),
    "gate": ("gate", "--verify"),
    "held gate": ("gate", "--version", "v3", "--verify"),
    "ask": ("ask", "a green light"),
    "doctor": ("doctor", "--json"),
}
"""The commands that are run on each damaged workspace; the workspace comes after the first word."""

NO_RESULT = {
    "eval/matrix.csv": "made anew from scores.json by `gorp train`; no command reads it",
    "run/four/checkpoint-2": "not read, because checkpoint-4 is whole",
}
"""Files on which no result depends, and why."""

MADE_ANEW = {
    "config.json": "the current version has the same configuration; `gorp train` writes it anew",
    "gorp-workspace.json": "the workspace is known by its base version and ledger; `gorp train` marks it anew",
}
"""Files without which the result is the same, and why."""


@pytest.fixture(scope="module", autouse=True)
def unfolded():
    """No line of an output is folded, so that paths are whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "PLAIN_WIDTH", 10_000)
        yield


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The project, its workspace whole; a test that damages a file restores it."""
    return make_workspace(tmp_path_factory.mktemp("flips"))


@pytest.fixture(scope="module")
def whole(project):
    """What each command says of the whole workspace; what its unfinished training says, and with which weights it ends.

    A workspace that was restored must give the same results, or differences would prove nothing.
    """
    said = [{name: said_by(project / "run", command) for name, command in READERS.items()} for _ in range(2)]
    assert said[0] == said[1]
    return said[0], *trained(project)


def said_by(root: Path, command: tuple[str, ...]) -> tuple[int, str]:
    """Return exit code and output of a command, without sizes of files and of the disk."""
    done = gorp(command[0], root, *command[1:])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        return -1, f"{type(done.exception).__name__}: {done.exception}"
    return done.exit_code, re.sub(r'"(disk_)?bytes": \d+|[\d.]+ [KMG]iB|"gc_would_free": \d+', "", done.output)


def trained(project: Path) -> tuple[str, dict | None]:
    """Continue the unfinished training in a copy; return the output, and the weights, None if it refused."""
    copy = project.parent / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(project, copy)
    done = gorp("train", copy / "run.yaml")
    traceback = done.exception is not None and not isinstance(done.exception, SystemExit)
    output = f"traceback: {done.exception!r}" if traceback else done.output
    return output, weights(copy / "run", "v4") if done.exit_code == 0 else None


def named(place: str, root: Path, output: str, whole: str) -> bool:
    """Whether an output names a file below `root` in a line that the output on the whole workspace does not have.

    The path, absolute or relative to `root`, must be there whole: `model/config.json` does not name `config.json`.
    """
    path = re.compile(rf"(?<![\w./-])({re.escape(str(root))}/)?{re.escape(place)}(?![\w/-]|\.\w)")
    known = set(whole.splitlines())
    return any(path.search(line) for line in output.splitlines() if line not in known)


def harmless(path: Path, root: Path, before: bytes) -> str | None:
    """Return why the damage of a file has no effect, None if it is not known to have none."""
    place = path.relative_to(root).as_posix()
    for start, why in NO_RESULT.items():
        if place == start or place.startswith(f"{start}/"):
            return why
    if not path.is_file():
        return MADE_ANEW.get(place)
    after = path.read_bytes()
    if place == "CURRENT" and before.split() == after.split():
        return "white space of CURRENT"
    if path.suffix == ".json" and read(before) == read(after):
        return "white space of a JSON file"
    if place == "gorp-workspace.json" and read(before)["format"] == (read(after) or {}).get("format"):
        return "the sentence for people in the mark"
    return None


def read(content: bytes) -> Any:
    """Return a JSON value, None for what is not one."""
    try:
        return json.loads(content)
    except ValueError:
        return None


def outcome(project: Path, path: Path, before: bytes, whole: tuple[dict, str, dict | None]) -> str:
    """Return `detected`, `harmless: WHY`, or what is wrong, of a file of the workspace that was just damaged."""
    root, found, detected = project / "run", list[str](), False
    place = path.relative_to(root).as_posix()
    for name, command in READERS.items():
        code, said = said_by(root, command)
        if code == -1:
            return f"TRACEBACK in {name}: {said}"
        if (code, said) == whole[0][name]:
            continue
        if not named(place, root, said, whole[0][name][1]):
            found.append(f"SILENT in {name}, which says: {said[-300:]}")
        detected = True
    if found:
        return "; ".join(found)
    if path.is_relative_to(root / "run"):
        said, ends = trained(project)
        if said.startswith("traceback"):
            return f"TRACEBACK in train: {said}"
        if ends is not None and ends != whole[2]:
            return "SILENT in train: other weights"
        if not named(place, project.parent / "copy/run", said, whole[1]):
            return "harmless: the training ends with the same weights" if ends else f"SILENT in train: {said[-300:]}"
        return "detected"
    if detected:
        return "detected"
    why = harmless(path, root, before)
    return "SILENT: no command says anything" if why is None else f"harmless: {why}"


def judged(project: Path, whole: tuple[dict, str, dict | None], damages: Iterator[tuple[Path, str, Callable]]) -> None:
    """Damage one file after another, restore it, and check that no damage was silent and nothing else was written."""
    contents, counts, wrong = contents_of(project), Counter[str](), []
    for path, how, damage in damages:
        damage(path)
        damaged = path.read_bytes() if path.is_file() else None
        found = outcome(project, path, contents[path], whole)
        assert (path.read_bytes() if path.is_file() else None) == damaged, (path, how, "a reading command wrote")
        path.write_bytes(contents[path])
        counts[found if found.startswith("harmless") else found.split()[0]] += 1
        if not found.startswith(("detected", "harmless")):
            wrong.append(f"{path.relative_to(project / 'run')}, {how}: {found}")
    print(dict(counts))
    assert contents_of(project) == contents
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("part", range(PLACES // PART))
def test_a_changed_byte_is_detected_or_has_no_effect(project, whole, part):
    """A file is chosen with a weight of the logarithm of its size; in tensors, half of the places are in the header."""
    chance = random.Random(SEED + part)
    paths = files_of(project / "run")
    chosen = chance.choices(paths, [math.log2(path.stat().st_size) for path in paths], k=PART)

    def damages():
        for path in chosen:
            size = path.stat().st_size
            header = path.suffix == ".safetensors" and chance.random() < 0.5
            place = chance.randrange(min(size, 4000) if header else size)
            other = chance.randrange(1, 256)

            def flip(path, place=place, other=other):
                content = bytearray(path.read_bytes())
                content[place] ^= other
                path.write_bytes(content)

            yield path, f"byte {place} ^ {other}", flip

    judged(project, whole, damages())


DAMAGES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda path: path.write_bytes(b""),
    "cut in half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_file_that_is_not_whole_is_detected_or_has_no_effect(project, whole, how):
    judged(project, whole, ((path, how, DAMAGES[how]) for path in files_of(project / "run")))
