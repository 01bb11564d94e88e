"""A project that was moved or copied works at its new place, and the old place is neither read nor written."""

import shutil
import sys

import pytest

from tests.command import gorp
from tests.durability.workspace import NAMES, make_workspace
from tests.workspace.project import tree_hash


pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

VERBS = {
    "status": ("status", "RUN"),
    "log": ("log", "RUN"),
    "diff": ("diff", "RUN"),
    "gate": ("gate", "RUN", "--verify"),
    "ask": ("ask", "RUN", "a green light"),
    "doctor": ("doctor", "RUN"),
    "report": ("report", "RUN", "--out", "PROJECT/page.html"),
    "eval": ("eval", "RUN"),
    "rollback": ("rollback", "RUN", "--dry-run"),
    "promote": ("promote", "RUN", "--dry-run"),
    "gc": ("gc", "RUN", "--dry-run"),
    "export": ("export", "RUN", "PROJECT/out"),
    "lora": ("export", "RUN", "PROJECT/adapters", "--to", "lora"),
    "train": ("train", "PROJECT/run.yaml"),
}


class Watch:
    """The files below a folder that this process opens; an audit hook cannot be removed, so there is one for all."""

    folder, opened = "", list[str]()

    def __call__(self, event: str, arguments: tuple) -> None:
        if event in ("open", "os.listdir", "os.scandir") and self.folder and isinstance(arguments[0], str):
            if arguments[0].startswith(f"{self.folder}/"):
                self.opened.append(arguments[0])


WATCH = Watch()
sys.addaudithook(WATCH)


@pytest.fixture
def project(tmp_path):
    return make_workspace(tmp_path / "old")


def words(command, folder):
    return [word.replace("RUN", f"{folder}/run").replace("PROJECT", str(folder)) for word in command]


@pytest.mark.parametrize("how", ["moved", "copied"])
def test_a_project_at_another_place_works(project, how):
    """Model and YAML go with it. Moved: the old place is gone; copied: it is there, and no file of it is opened."""
    new = project.parent / "elsewhere/deeper/new"
    new.parent.mkdir(parents=True)
    project.rename(new) if how == "moved" else shutil.copytree(project, new)
    before = tree_hash(project)
    for command in VERBS.values():
        WATCH.folder, WATCH.opened = str(project), []
        done = gorp(*words(command, new))
        WATCH.folder = ""
        assert done.exit_code in (0, 4), (command, done.output)
        assert WATCH.opened == [] and f"{project}/" not in done.output
    assert tree_hash(project) == before


def test_a_workspace_alone_works_where_the_model_is_named(project):
    """Without its YAML, its rows and its model: what needs the model says so, and takes it from --base."""
    new = project.parent / "alone"
    new.mkdir()
    shutil.copytree(project / "run", new / "run")
    shutil.move(project / "model", project.parent / "model")
    for name in NAMES:
        (project / f"{name}.jsonl").unlink()
    (project / "run.yaml").unlink()
    before = tree_hash(project)
    for name in ("status", "log", "diff", "gate", "report", "promote", "gc"):
        done = gorp(*words(VERBS[name], new))
        assert done.exit_code in (0, 4), (name, done.output)
    for name in ("ask", "rollback", "export", "lora"):
        done = gorp(*words(VERBS[name], new))
        assert done.exit_code in (1, 2) and "model" in done.output, (name, done.output)
        done = gorp(*words(VERBS[name], new), "--base", project.parent / "model")
        assert done.exit_code == 0, (name, done.output)
    assert tree_hash(project) == before
