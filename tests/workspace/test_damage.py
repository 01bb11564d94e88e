"""A changed bit in any file that influences a result is reported when the file is read, or has no effect."""

import json
import shutil
from pathlib import Path

import pytest

from gorp.errors import CheckpointError, ConfigError, GorpError
from gorp.evaluation import TaskScore
from gorp.storage import file_sha256, write_json
from gorp.workspace import Workspace, status
from gorp.workspace.accepted import keep_configuration
from gorp.workspace.scores import Scores
from gorp.workspace.seal import is_whole, sealed
from gorp.workspace.version import check_prepared, record_sha256
from tests.workspace.test_store import RECORD, publish


TASKS = ("one", "two")
CONFIG = {
    "model": {"path": "m"},
    "method": {"name": "gorp"},
    "tasks": [{"name": name, "train": f"{name}.jsonl", "eval": None} for name in TASKS],
}


def make(root: Path) -> Workspace:
    """A workspace that has learned two tasks, with all its files except the model."""
    store = Workspace(root)
    with store.writing():
        keep_configuration(root, CONFIG, None)
        facts = {"config": CONFIG, "tasks": {name: {"notes": ["a note"]} for name in TASKS}, "leak": 7.4e-8}
        for number in range(3):
            scores = Scores(root / "eval")
            for name, score in zip(TASKS, (100 / 3, 50.0), strict=True):
                samples = [{"index": 0, "prompt": "p", "answer": "a"}]
                found = TaskScore(task=name, metric="m", score=score, rows=6, samples=samples)
                scores.add(f"v{number}", found, "k", "c")
            parent, task = (f"v{number - 1}", TASKS[number - 1]) if number else (None, None)
            publish(store, f"v{number}", **facts, parent=parent, task=task, contains=list(TASKS[:number]))
    return store


@pytest.fixture
def store(tmp_path):
    return make(tmp_path / "work")


FILES = (
    "CURRENT",
    "ledger.jsonl",
    "config.json",
    "eval/scores.json",
    "versions/v1/version.json",
    "versions/v2/version.json",
)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", FILES)
def test_a_changed_bit_is_reported_or_has_no_effect(store, name, step):
    """One bit of every byte (or every seventh byte), a different bit from byte to byte."""
    path, before = store.root / name, status(store.root)
    content = path.read_bytes()
    noticed = 0
    places = range(0, len(content), step)
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            state = status(store.root)
        except GorpError as error:
            noticed += 1
            assert path.name in str(error), (place, error)
        else:
            assert state == before, (place, content[place - 20 : place + 5], damaged[place])
    assert noticed > 0.8 * len(places)


def test_changed_answers_are_reported(store):
    path = store.root / "eval/samples/v1-two.jsonl"
    path.write_text(path.read_text().replace('"a"', '"b"'))
    assert status(store.root)["remarks"] == [f"{path} was changed after it was written; `gorp eval` writes it again"]
    path.unlink()
    assert status(store.root)["remarks"] == []


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


NAMES = ["../../victim", "/etc", "..", ".", "", "a/b", "a\x1b[2J", "a\n", None, 3, ["x"]]


@pytest.mark.parametrize("name", NAMES[:-3])
@pytest.mark.parametrize("key", ["task", "contains", "tasks", "parent", "sha256"])
def test_every_name_in_a_record_is_checked_when_it_is_read(tmp_path, key, name):
    """As in a malicious workspace: every digest is right, the names are not."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/thesis.txt").write_text("mine")
    store = Workspace(tmp_path / "work")
    publish(store, "v0")
    value = {"task": name, "contains": [name], "tasks": {name: {}}, "parent": name, "sha256": {name: "0" * 64}}[key]
    folder = store.root / "versions/v1"
    record = RECORD | {"version": "v1", "parent": "v0", "task": "one", "contains": ["one"], "sha256": {}} | {key: value}
    write_json(folder / "version.json", record)
    store.log("prepared", version="v1", sha256=record_sha256(folder))
    for ask in (store.current, store.versions, store.unsettled, store.lineage):
        with pytest.raises(CheckpointError, match="not the record of a version"):
            ask()
    assert (tmp_path / "victim/thesis.txt").read_text() == "mine"


@pytest.mark.parametrize("parent", ["v2", "v1", "v7"])
def test_parents_in_a_circle_are_an_error(store, parent):
    edit(store.root / "versions/v1/version.json", parent=parent)
    ledger = store.root / "ledger.jsonl"  # without digests, as gorp 0.1.0 wrote it
    kept = ("time", "event", "version")
    events = [{key: event[key] for key in kept} for event in store.ledger() if event["event"] == "version"]
    ledger.write_text("".join(json.dumps(event) + "\n" for event in events))
    (store.root / "CURRENT").write_text("v2\n")
    with pytest.raises(CheckpointError, match="not an earlier version"):
        status(store.root)


@pytest.mark.parametrize("key", ["event", "version"])
@pytest.mark.parametrize("value", [None, 3, [], "v1/../v2", "\x1b"])
def test_wrong_values_in_the_ledger_are_reported(store, key, value):
    line = json.loads((store.root / "ledger.jsonl").read_text().splitlines()[0]) | {key: value}
    del line["chain"]
    (store.root / "ledger.jsonl").write_text(json.dumps(line) + "\n")
    if key == "event" and isinstance(value, str):
        assert store.ledger()[0]["event"] == value  # an event that this version does not know
        return
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 1: damaged"):
        store.ledger()


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_a_missing_line_of_the_ledger_is_reported(store, lost):
    path = store.root / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:lost] + lines[lost + 1 :]))
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line \d: damaged"):
        status(store.root)


def test_a_current_version_set_by_hand_is_used_and_reported(store):
    (store.root / "CURRENT").write_text("v1")
    state = status(store.root)
    assert state["current"] == "v1"
    assert state["remarks"] == ["CURRENT was set to v1 by hand; the newest version is v2"]


def test_a_copied_version_does_not_become_current(store):
    shutil.copytree(store.root / "versions/v1", store.root / "versions/v9")
    assert store.current().name == "v2" and store.next_name() == "v10"
    assert status(store.root)["remarks"] == [
        "versions/v9 was not created by this workspace (not in ledger.jsonl) and is ignored"
    ]
    with pytest.raises(ConfigError, match="was not created by this workspace"):
        store.version("v9")


@pytest.mark.parametrize("gone", ["versions/v0", "versions/v1", "versions"])
def test_what_is_gone_is_not_begun_anew(store, gone):
    shutil.rmtree(store.root / gone)
    assert store.exists()
    with pytest.raises(CheckpointError, match=r"versions/v[012]/version\.json: missing, although ledger\.jsonl has"):
        store.lineage()


def test_a_version_that_is_gone_and_that_no_other_needs_is_reported(store):
    """A version on a branch that was left, for example one that the gate held."""
    store.move(store.version("v1"), event="rollback", before="v2")
    assert status(store.root)["remarks"] == []
    path = store.root / "versions/v2/version.json"
    path.unlink()
    line = f"{path}: missing, although ledger.jsonl has v2. Restore it from a copy."
    assert status(store.root)["remarks"] == [line]
    with pytest.raises(CheckpointError, match=r"v2/version\.json: missing"):
        store.version("v2")


def test_a_ledger_that_ends_before_the_current_version_is_reported(store):
    assert store.history()[1] is None
    path = store.root / "ledger.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:3]))
    assert "ledger.jsonl: has no line on v2, the version in CURRENT" in (store.history()[1] or "")


def test_a_table_of_scores_that_is_gone_is_reported(store):
    edit_record(store, metrics={"scores": {"one": {"score": 50.0}}})
    path = store.root / "eval/scores.json"
    path.unlink()
    assert any(line.startswith(f"{path}: missing, so there are no scores") for line in status(store.root)["remarks"])
    with pytest.raises(CheckpointError, match=r"eval/scores\.json: missing: v2 has no recorded answers on two"):
        Scores(store.root / "eval").answers("v2", "two")


def test_answers_that_are_gone_are_named_where_they_are_needed(store):
    scores = Scores(store.root / "eval")
    path = scores.samples("v2", "two")
    path.unlink()
    assert scores.removed() == [path] and scores.changed() == []
    with pytest.raises(CheckpointError, match=r"samples/v2-two\.jsonl: missing: v2 has no recorded answers on two"):
        scores.answers("v2", "two")


def edit_record(store: Workspace, **facts) -> None:
    """Publish one more version whose record has other facts."""
    facts = {"config": CONFIG, "tasks": {name: {"notes": []} for name in TASKS}, **facts}
    with store.writing():
        publish(store, "v3", parent="v2", task="two", contains=list(TASKS), **facts)


def test_a_ledger_that_is_gone_is_named(store):
    (store.root / "ledger.jsonl").unlink()
    assert store.exists()
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl: missing"):
        store.lineage()


def test_only_known_files_become_part_of_a_version(store):
    folder = store.prepared("v3")
    folder.mkdir()
    (folder / ".version.json.123.tmp").write_text('{"half')
    (folder / "notes.txt").write_text("left by somebody")
    publish(store, "v3", parent="v2", task="three", contains=[*TASKS, "three"])
    version = store.current()
    assert version.name == "v3" and set(version.record["sha256"]) == {p.name for p in version.folder.iterdir()} - {
        "version.json"
    }


def test_a_temporary_file_that_gorp_0_1_0_listed_does_not_damage_a_version(store):
    path = store.root / "versions/v2/version.json"
    digests = json.loads(path.read_text())["sha256"] | {".version.json.14959.tmp": "0" * 64}
    edit(path, sha256=digests)
    store._ledger.path.write_text('{"event": "version", "version": "v2"}\n')
    (store.root / "CURRENT").write_text("v2")
    store.current().verify("b" * 64)


@pytest.mark.parametrize("name", ["delta.safetensors", "memory.safetensors", "method.safetensors", "training.json"])
def test_a_damaged_prepared_version_is_not_published(store, name):
    folder = store.prepared("v3")
    shutil.copytree(store.root / "versions/v2", folder)
    (folder / "version.json").unlink()
    digests = {path.name: file_sha256(path) for path in folder.iterdir()}
    write_json(folder / "training.json", sealed({"identity": {}, "steps": 7, "sha256": digests}))
    check_prepared(folder)
    content = bytearray((folder / name).read_bytes())
    content[-10] ^= 1
    (folder / name).write_bytes(content)
    for use in (lambda: check_prepared(folder), lambda: store.publish("v3", RECORD)):
        with pytest.raises(CheckpointError, match=rf"{name}.*--restart"):
            use()
    assert store.current().name == "v2"


def test_a_seal_covers_value_and_place():
    cell = sealed({"score": 1.5, "rows": 6}, "v1", "one")
    assert is_whole(json.loads(json.dumps(cell)), "v1", "one") and is_whole(dict(reversed(cell.items())), "v1", "one")
    assert not is_whole(cell, "v1", "two") and not is_whole(cell | {"rows": 7}, "v1", "one")
    assert is_whole({"score": 1.5})
