"""`gorp gc`: what is removed and what never is, a removal that was killed anywhere, and what is known afterwards."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from gorp import sequence
from gorp.errors import CheckpointError, ConfigError
from gorp.storage import read_json, write_json
from gorp.workspace import Workspace, garbage, load_config, lock, run_sequence
from gorp.workspace.gate import gate
from gorp.workspace.gc import collect
from gorp.workspace.rollback import rollback
from gorp.workspace.scores import SCORES_LOCK, Scores
from gorp.workspace.status import status
from gorp.workspace.verify import verify
from tests.command import gorp
from tests.workspace.project import make_project, task, tree_hash, weights, write_config, write_rows


@pytest.fixture(scope="module")
def left(tmp_path_factory):
    """A project with a branch: v2 was left by a rollback, v3 (current) was trained from v1 like it."""
    folder = tmp_path_factory.mktemp("gc")
    run_sequence(load_config(make_project(folder, method={"name": "sequential_lora"})), folder / "run")
    gate(folder / "run")
    rollback(folder / "run")
    write_rows(folder / "three.jsonl", 3, 24)
    write_rows(folder / "three_eval.jsonl", 3, 6)
    path = write_config(folder, method={"name": "sequential_lora"}, tasks=[task("one"), task("three")])
    run_sequence(load_config(path), folder / "run")
    return folder


@pytest.fixture
def project(left, tmp_path):
    shutil.copytree(left, tmp_path / "p")
    return tmp_path / "p"


def names(run):
    return [version.name for version in Workspace(run).versions()]


def check_whole(run):
    """The workspace opens, its versions are unchanged, and the current one is v3."""
    store = Workspace(run)
    assert store.current().name == "v3" and [version.name for version in store.lineage()] == ["v0", "v1", "v3"]
    for version in store.versions():
        version.verify(version.record["base"]["sha256"])
    assert status(run)["current"] == "v3" and not store.remarks() and store.history()[1] is None
    assert "v4" == store.next_name()


def test_the_branch_that_a_rollback_left_goes_and_nothing_else(project):
    run = project / "run"
    kept = {name: weights(run, name) for name in ("v1", "v3")}
    expected = garbage.bytes_of(run / "versions/v2")
    before, state = tree_hash(run), status(run)
    dry = collect(run, dry_run=True)
    assert tree_hash(run) == before
    assert [item["path"] for item in dry["removed"]] == ["versions/v2", "eval/samples/v2-*"]
    assert dry["removed"][0]["bytes"] == expected and dry["bytes"] == state["disk"]["gc_would_free"] > expected
    sha256 = Workspace(run).version("v2").sha256
    done = collect(run)
    assert done["removed"] == dry["removed"] and names(run) == ["v0", "v1", "v3"]
    check_whole(run)
    assert {name: weights(run, name) for name in kept} == kept
    assert not (run / "versions/v2").exists() and not list(run.glob("eval/samples/v2-*"))
    assert "v2" not in Scores(run / "eval").cells and set(Scores(run / "eval").cells) == {"v0", "v1", "v3"}
    event = Workspace(run).ledger()[-1]
    assert (event["event"], event["version"], event["sha256"]) == ("removed", "v2", sha256)
    assert "left by a rollback" in event["why"] and event["bytes"] == expected
    before = tree_hash(run)
    assert collect(run)["removed"] == [] and tree_hash(run) == before
    assert status(run)["disk"]["gc_would_free"] == 0


def test_a_version_that_was_removed_is_named_as_such(project):
    run = project / "run"
    assert verify(run / "eval/gate/v2-v1.json")["verdict"]
    collect(run)
    for ask in (lambda: Workspace(run).version("v2"), lambda: verify(run / "eval/gate/v2-v1.json")):
        with pytest.raises(ConfigError, match=r"version `v2` was removed by `gorp gc` \(20"):
            ask()
    assert gorp("gate", run, "--version", "v2", "--verify").exit_code == 2
    done = gorp("log", run)
    assert done.exit_code == 0 and "removed   v2" in done.stdout and "left by a rollback" in done.stdout


def test_training_goes_on_with_a_new_number(project):
    run = project / "run"
    collect(run)
    tasks = [task("one"), task("three"), task("two")]
    path = write_config(project, method={"name": "sequential_lora"}, tasks=tasks)
    run_sequence(load_config(path), run)
    assert names(run) == ["v0", "v1", "v3", "v4"] and Workspace(run).current().record["parent"] == "v3"


@pytest.mark.parametrize("current", ["v1", "v2"])
def test_what_is_newer_than_the_current_version_stays(project, current):
    """After a rollback, or CURRENT set by hand: the person may still go back to the newer ones."""
    (project / "run/CURRENT").write_text(f"{current}\n")
    assert collect(project / "run")["removed"] == [] and names(project / "run") == ["v0", "v1", "v2", "v3"]


def as_if(run, version, **changes):
    """Write other facts into a version.json, with its digest in the ledger, as if gorp had written them."""
    store = Workspace(run)
    path = run / f"versions/{version}/version.json"
    old = store.version(version).sha256
    write_json(path, read_json(path) | changes)
    events = store.ledger()
    new = garbage.file_sha256(path)
    (run / "ledger.jsonl").unlink()
    for event in events:
        facts = {key: new if value == old else value for key, value in event.items() if key not in ("time", "event")}
        store.log(event["event"], **facts)


@pytest.mark.parametrize("accepted", [True, False])
def test_a_version_that_the_gate_did_not_accept_stays(project, accepted):
    gate = {"verdict": "hold", "accepted": accepted, "against": "v1", "tasks": {}, "margins": {}}
    as_if(project / "run", "v2", gate=gate)
    assert bool(collect(project / "run", dry_run=True)["removed"]) == accepted


def test_a_version_of_a_joint_method_stays(project):
    assert garbage.JOINT == sequence.JOINT
    as_if(project / "run", "v2", task=garbage.JOINT)
    assert collect(project / "run")["removed"] == []


def leftovers(run):
    """Write what killed processes leave; returns the paths that may go."""
    gone = [run / name for name in (".gorp-0123456789abcdef.tmp", "eval/rows/.gorp-0123456789abcdef.tmp")]
    gone += [run / ".gone-0123456789abcdef/x", run / "versions/.tmp-v2/delta.safetensors", run / "run/one/x"]
    for path in [*gone, run / "versions/.tmp-v4/training.json", run / "run/two/identity.json"]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    return gone


def test_leftovers_go_and_unfinished_trainings_stay(project):
    run = project / "run"
    collect(run)
    gone = leftovers(run)
    dry = collect(run, dry_run=True)
    assert len(dry["removed"]) == len(gone) and dry["bytes"] == 2 * len(gone)
    assert collect(run)["bytes"] == dry["bytes"] and not any(path.exists() for path in gone)
    check_whole(run)
    assert (run / "versions/.tmp-v4/training.json").exists() and (run / "run/two/identity.json").exists()
    assert {event["path"] for event in Workspace(run).ledger() if event["event"] == "removed"} == {
        "versions/v2", *(item["path"] for item in dry["removed"])
    }  # fmt: skip


def test_a_training_that_the_yaml_no_longer_lists_goes_only_when_asked(project):
    run = project / "run"
    collect(run)
    leftovers(run)
    collect(run)
    asked = gorp("gc", project / "run.yaml", "--unlisted", "--json")
    assert [item["path"] for item in json.loads(asked.stdout)["removed"]] == ["run/two"]
    assert not (run / "run/two").exists()
    (run / "run/two").mkdir()
    (project / "run.yaml").write_text("{")
    with pytest.raises(ConfigError, match="tasks that are listed are not known"):
        collect(run, unlisted=True)


def test_temporary_files_of_a_running_process_are_not_counted(project):
    run = project / "run"
    collect(run)
    with Workspace(run).writing():
        leftovers(run)
        found = collect(run, dry_run=True)["removed"]
        with pytest.raises(CheckpointError, match="already writing there"):
            collect(run)
    assert [item["path"] for item in found] == ["run/one"]


def test_nothing_outside_is_touched(project):
    run, outside = project / "run", project / "outside"
    shutil.move(run / "versions/v2", outside)
    (run / "versions/v2").symlink_to(outside)
    before = tree_hash(outside)
    with pytest.raises(CheckpointError, match=r"versions/v2: this is a link"):
        collect(run)
    assert tree_hash(outside) == before
    with pytest.raises(CheckpointError):
        collect(project)
    assert not (project / "gorp-workspace.json").exists()


class Stop(BaseException):
    """Raised where the process is to end."""


CALLS = ("os.replace", "os.unlink", "shutil.rmtree", "os.fsync")
"""What changes files, or makes a change durable."""


def killed_at(patch, count, die):
    """Let the process end before the `count`-th call of one of `CALLS`."""
    done = 0

    def counted(call):
        def counting(*arguments, **options):
            nonlocal done
            done += 1
            if done == count:
                die()
            return call(*arguments, **options)

        return counting

    for name in CALLS:
        module = {"os": os, "shutil": shutil}[name.partition(".")[0]]
        patch.setattr(module, name.partition(".")[2], counted(getattr(module, name.partition(".")[2])))


def die():
    raise Stop


def finished_once(run, whole):
    """A second `gorp gc` after a killed one ends as an unbroken one does."""
    collect(run)
    check_whole(run)
    assert names(run) == names(whole) and not list(run.glob(".gone-*"))
    (run / "eval/scores.lock").unlink(missing_ok=True)  # its lock ended with the process
    for part in ("versions", "eval"):
        assert tree_hash(run / part) == tree_hash(whole / part)
    removed = [event["version"] for event in Workspace(run).ledger() if "version" in event and "why" in event]
    assert removed == ["v2"]


@pytest.mark.parametrize("every", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_removal_that_was_killed_leaves_a_whole_workspace_and_is_finished(project, tmp_path, monkeypatch, every):
    shutil.copytree(project, tmp_path / "whole")
    collect(tmp_path / "whole/run")
    for count in range(1, 100, every):
        run = shutil.copytree(project / "run", tmp_path / f"{count}/run")
        with monkeypatch.context() as patch:
            killed_at(patch, count, die)
            try:
                collect(run)
                break
            except Stop:
                pass
        check_whole(run)
        finished_once(run, tmp_path / "whole/run")
    assert 8 < count < 99


KILLED = """
import os, sys
from pathlib import Path
import pytest
from gorp.workspace.gc import collect
from tests.workspace.test_gc import killed_at
killed_at(pytest.MonkeyPatch(), int(sys.argv[2]), lambda: os._exit(9))
collect(Path(sys.argv[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 6, 8])
def test_a_killed_process_leaves_its_lock_and_the_next_one_finishes(project, tmp_path, count):
    shutil.copytree(project, tmp_path / "whole")
    collect(tmp_path / "whole/run")
    done = subprocess.run([sys.executable, "-c", KILLED, str(project / "run"), str(count)], cwd=Path.cwd())
    assert done.returncode == 9
    check_whole(project / "run")
    finished_once(project / "run", tmp_path / "whole/run")


def test_locks_that_a_killed_process_left_are_removed_when_nothing_else_is(project):
    collect(project / "run")
    before = tree_hash(project / "run")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    holder = {"host": socket.gethostname(), "boot": lock._boot(), "pid": ended.pid, "started": "0", "since": "2026"}
    (project / "run" / lock.LOCK).write_text(json.dumps(holder))
    (project / "run/eval" / SCORES_LOCK).touch()
    assert collect(project / "run")["removed"] == []
    assert tree_hash(project / "run") == before


def test_the_log_has_a_line_for_each_event_and_names_a_damaged_one(project):
    run = project / "run"
    Workspace(run).log("promote", version="v3", reason="two rows\nare wrong", by={"name": "a"})
    done = gorp("log", project / "run.yaml")
    lines = done.stdout.splitlines()
    events = Workspace(run).ledger()
    assert done.exit_code == 0 and len(lines) == len(events)
    assert "promote" in lines[-1] and 'reason two rows are wrong, by {"name": "a"}' in lines[-1]
    assert json.loads(gorp("log", run, "--json").stdout) == {"workspace": str(run), "events": events, "problem": None}
    text = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    (run / "ledger.jsonl").write_text("".join([*text[:3], text[3].replace('"v1"', '"v2"'), *text[4:]]))
    bad = gorp("log", run)
    assert bad.exit_code == 1 and len(bad.stdout.splitlines()) == 3
    assert "ledger.jsonl, line 4: damaged" in bad.stderr
    assert "line 4" in json.loads(gorp("log", run, "--json").stdout)["problem"]
    (run / "ledger.jsonl").unlink()
    assert "missing or empty" in gorp("log", run).stderr


def test_the_table_of_versions_has_their_size_and_what_would_be_freed(project):
    done = gorp("status", project / "run")
    assert done.exit_code == 0 and "on disk; `gorp gc` would free" in done.stdout
    versions = json.loads(gorp("status", project / "run", "--json").stdout)["versions"]
    assert [item["disk_bytes"] for item in versions] == [
        garbage.bytes_of(project / "run/versions" / item["version"]) for item in versions
    ]
