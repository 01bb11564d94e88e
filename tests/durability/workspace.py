"""A workspace that has been through everything: a rollback, a held version, evidence, an unfinished training."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from transformers import TrainerCallback

from gorp.progress import Progress
from gorp.workspace import Workspace, load_config, run_sequence
from tests.command import gorp
from tests.workspace.project import make_project, task, write_config, write_rows


NAMES = ("one", "two", "three", "four")
GATE = {"margin": 2.0, "guard": "general.txt"}
"""The guard text informs: it has no margin."""

GENERAL = """\
The early market opened late, and the world of sports is good.

A green light is not a red light, and business is never late.

The world is early today, and the news of sports is true.
"""


class Stop(Exception):
    """Raised where the process is to end."""


class Stopping(Progress):
    """Stops a training when it has done a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    @contextmanager
    def training(self, name: str) -> Iterator[TrainerCallback]:
        yield _Stopped(self.step)


class _Stopped(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise Stop


def must(*arguments: object) -> Result:
    """Run a command that must succeed."""
    done = gorp(*arguments)
    assert done.exit_code == 0, (arguments, done.output, done.exception)
    return done


def configure(folder: Path, count: int, *, inconclusive: str = "ship") -> Path:
    """Write the YAML with the first `count` tasks."""
    return write_config(
        folder, tasks=[task(name) for name in NAMES[:count]], gate={**GATE, "inconclusive": inconclusive}
    )


def make_workspace(folder: Path) -> Path:
    """Return the project's folder; its workspace is `run`.

    v1 (one) and v2 (two) were trained and rolled back to v1 and forward again; v3 (three) is held, because six rows
    decide nothing and the gate holds then; task four was killed at its fifth step, with checkpoints at two and four.
    """
    make_project(folder)
    (folder / "general.txt").write_text(GENERAL)
    for number, name in enumerate(NAMES[2:], 1):
        write_rows(folder / f"{name}.jsonl", number + 1, 24)
        write_rows(folder / f"{name}_eval.jsonl", number + 1, 6)
    path = configure(folder, 2)
    must("train", path)
    must("rollback", path)
    must("promote", path, "--anyway", "the rollback was a mistake")
    assert gorp("train", configure(folder, 3, inconclusive="hold")).exit_code in (3, 4)
    with pytest.raises(Stop):
        run_sequence(load_config(configure(folder, 4)), folder / "run", progress=Stopping(5))
    store = Workspace(folder / "run")
    assert store.current().name == "v2" and not store.version("v3").accepted
    assert len(list(store.run_folder("four").glob("checkpoint-*"))) == 2
    assert gorp("gate", path).exit_code == 4
    return folder


def files_of(folder: Path) -> list[Path]:
    """Return every file below a folder, sorted."""
    return [Path(top, name) for top, _, names in sorted(os.walk(folder)) for name in sorted(names)]


def contents_of(folder: Path) -> dict[Path, bytes]:
    """Return the content of every file below a folder."""
    return {path: path.read_bytes() for path in files_of(folder)}
