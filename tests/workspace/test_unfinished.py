"""An unfinished task: another task put before it, a renamed or damaged folder, and how it is restarted."""

import json
import shutil

import pytest

from gorp.errors import CheckpointError
from gorp.workspace import Workspace, load_config, plan, run_sequence
from gorp.workspace import run as run_module
from tests.workspace.project import make_project, task, tree_hash, weights, write_config, write_rows


class Stop(Exception):
    """Raised where the process is to end."""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A project whose second task was trained, up to its last checkpoint."""
    folder = tmp_path_factory.mktemp("killed")
    path = make_project(folder)

    def stop(folder, method, sha256):
        if (folder.parent / "v1").exists():
            raise Stop
        return write_state(folder, method, sha256)

    write_state = run_module.write_state
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(run_module, "write_state", stop)
        run_sequence(load_config(path), folder / "work")
    assert list((folder / "work/run/two").glob("checkpoint-*/complete.json"))
    return folder


@pytest.fixture
def project(killed, tmp_path):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    write_rows(tmp_path / "zero.jsonl", 3, 24)
    write_rows(tmp_path / "zero_eval.jsonl", 3, 6)
    return tmp_path


def test_a_task_put_before_it_is_refused_before_anything_is_trained(project):
    path = write_config(project, tasks=[task("one"), task("zero"), task("two")])
    before = tree_hash(project)
    for command in (plan, run_sequence):
        with pytest.raises(CheckpointError, match=r"unfinished training of task `two`, but `tasks:` now lists `zero`"):
            command(load_config(path), project / "work")
    assert tree_hash(project) == before


def test_the_folder_of_a_renamed_task_is_reported_and_left_alone(project):
    (project / "two.jsonl").rename(project / "zwei.jsonl")
    (project / "two_eval.jsonl").rename(project / "zwei_eval.jsonl")
    path = write_config(project, tasks=[task("one"), task("zwei")])
    session = run_module.prepare(load_config(path), Workspace(project / "work"), run_module.Progress())
    [line] = run_module.remarks(session)
    assert "run/two: holds an unfinished training of a task that is not in the configuration" in line


@pytest.mark.parametrize("damage", ["gone", "cut", "changed"])
def test_the_message_for_a_damaged_identity_file_gives_advice(project, damage):
    identity = project / "work/run/two/identity.json"
    content = identity.read_text()
    if damage == "gone":
        identity.unlink()
    else:
        identity.write_text(content[:-9] if damage == "cut" else content.replace('"parent": "v1"', '"parent": "v0"'))
    with pytest.raises(CheckpointError, match=r"identity\.json.*--restart"):
        plan(load_config(project / "run.yaml"), project / "work")


def test_a_restart_that_was_killed_in_the_middle_is_followed_by_a_plain_run(project, killed, monkeypatch):
    """The folder is renamed before it is emptied, so that a partly deleted one is never continued."""
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(Stop))
        run_sequence(load_config(project / "run.yaml"), project / "work", restart=True)
    assert list((project / "work").glob(".gone-*"))
    run_sequence(load_config(project / "run.yaml"), project / "work")
    assert not list((project / "work").glob(".gone-*")) and not (project / "work/run/two").exists()
    run_sequence(load_config(killed / "run.yaml"), project / "whole")
    assert weights(project / "work", "v2") == weights(project / "whole", "v2")


def test_no_version_is_published_after_the_lock_file_was_removed(project, monkeypatch):
    lock = project / "work/gorp.lock"
    monkeypatch.setattr(run_module, "train_task", lambda *_, **__: lock.unlink())
    with pytest.raises(CheckpointError, match=r"gorp\.lock: this lock file was removed while this process held it"):
        run_sequence(load_config(project / "run.yaml"), project / "work")
    assert [e["version"] for e in Workspace(project / "work").ledger() if e["event"] == "version"] == ["v0", "v1"]
    assert json.loads((project / "work/run/two/identity.json").read_text())["task"] == "two"
