"""Going back: the target is checked before the pointer moves, and the next task starts from there."""

import json
from pathlib import Path

import pytest

from gorp.errors import CheckpointError, ConfigError
from gorp.evaluation import TaskScore
from gorp.workspace import Workspace, load_config, run_sequence
from gorp.workspace.rollback import rollback
from gorp.workspace.scores import Scores
from tests.command import gorp
from tests.workspace.project import task, tree_hash, write_config, write_rows


def test_the_version_before_becomes_current_and_the_next_task_starts_from_it(project):
    found = rollback(project / "run")
    assert (found["version"], found["from"], found["forgotten"]) == ("v1", "v2", ["two"])
    assert found["answers"] == 6 and found["differing"] == 0 and found["not_asked"] == []
    store = Workspace(project / "run")
    assert store.current().name == "v1" and store.remarks() == []
    assert store.ledger()[-1]["event"] == "rollback" and store.ledger()[-1]["before"] == "v2"
    write_rows(project / "three.jsonl", 3, 24)
    write_rows(project / "three_eval.jsonl", 3, 6)
    run_sequence(load_config(write_config(project, tasks=[task("one"), task("three")])), project / "run")
    third = store.current()
    assert (third.name, third.record["parent"], third.contains) == ("v3", "v1", ["one", "three"])
    assert (project / "run/versions/v2/version.json").is_file()  # stays


def test_a_version_two_back_and_the_base_model(project):
    assert rollback(project / "run", version="v0")["forgotten"] == ["one", "two"]
    assert Workspace(project / "run").current().name == "v0"
    with pytest.raises(ConfigError, match="v0, the base model"):
        rollback(project / "run")


@pytest.mark.parametrize(
    ("version", "message"), [("v2", "is the current version"), ("v7", "no version `v7`"), ("main", "no version `main`")]
)
def test_an_impossible_target_is_refused(project, version, message):
    before = tree_hash(project / "run")
    with pytest.raises(ConfigError, match=message):
        rollback(project / "run", version=version)
    assert tree_hash(project / "run") == before


def test_a_damaged_target_is_refused_and_the_pointer_stays(project):
    path = project / "run/versions/v1/delta.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    before = tree_hash(project / "run")
    with pytest.raises(CheckpointError, match=r"delta\.safetensors: damaged"):
        rollback(project / "run")
    assert tree_hash(project / "run") == before


def recorded(run, change):
    """Record the answers of v1 on task one again, each changed by `change`."""
    scores = Scores(run / "eval")
    cell = scores.cells["v1"]["one"]
    samples = [json.loads(line) for line in scores.samples("v1", "one").read_text().splitlines()]
    score = TaskScore(
        task="one", metric=cell["metric"], score=cell["score"], rows=cell["rows"], samples=[*map(change, samples)]
    )
    scores.add("v1", score, cell["key"], cell["conditions"])


def test_a_target_that_answers_otherwise_than_recorded_is_refused(project):
    recorded(project / "run", lambda s: s | {"answer": "something else"} if s["index"] == 0 else s)
    with pytest.raises(CheckpointError, match=r"no longer answers as recorded: 1 of 6.*'something else' then"):
        rollback(project / "run")
    assert Workspace(project / "run").current().name == "v2"


def test_damaged_answers_are_not_compared_and_that_is_said(project):
    path = project / "run/eval/samples/v1-one.jsonl"
    path.write_text("{" + path.read_text())
    found = rollback(project / "run", dry_run=True)
    assert found["answers"] == 0 and found["not_asked"] == ["one"]


def test_a_version_that_a_killed_process_published_is_entered_first(project):
    # As after a kill between the rename of v2 and the last lines of `settle`.
    run = project / "run"
    lines = (run / "ledger.jsonl").read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["event"] == "version"
    (run / "ledger.jsonl").write_text("".join(lines[:-1]))
    assert [version.name for version in Workspace(run).unsettled()] == ["v2"]
    rollback(run)
    names = [version.name for version in Workspace(run).versions()]
    assert names == ["v0", "v1", "v2"] and Workspace(run).current().name == "v1"


def test_on_the_command_line(project):
    before = tree_hash(project / "run")
    dry = gorp("rollback", project / "run.yaml", "--dry-run")
    assert dry.exit_code == 0 and "would go back from v2 to v1" in dry.stdout
    assert tree_hash(project / "run") == before
    done = gorp("rollback", project / "run", "v1", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["version"] == "v1"
    shown = gorp("status", project / "run")
    assert shown.exit_code == 0 and shown.stdout.lstrip().startswith("v1")
    assert gorp("rollback", project / "run", "v9").exit_code == 2
    assert gorp("rollback", project / "nowhere").exit_code == 1


def test_help_says_what_is_checked():
    assert "still answers as it did" in " ".join(gorp("rollback", "--help").stdout.split())


def test_a_lock_that_another_process_holds_leaves_the_pointer(project):
    store = Workspace(project / "run")
    with store.writing(), pytest.raises(CheckpointError, match="another"):
        rollback(Path(store.root))
    assert store.current().name == "v2"
