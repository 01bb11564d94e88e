"""The workspace on disk: a version is complete or absent, an incomplete ledger line is ignored, damage is named."""

import json

import pytest
import torch

from gorp.errors import CheckpointError, ConfigError
from gorp.storage import file_sha256, write_json, write_tensors
from gorp.workspace import Workspace
from gorp.workspace.state import DELTA, MEMORY, METHOD, read_state


BASE = "b" * 64
RECORD = {
    "parent": None,
    "task": None,
    "contains": [],
    "base": {"path": "m", "revision": None, "sha256": BASE},
    "config": {},
    "tasks": {},
}


def publish(store: Workspace, name: str, **changes) -> None:
    """Publish a version with small files of the right kinds; v0 has none."""
    folder = store.prepared(name)
    if name != "v0":
        header = {"side": "input", "base_sha256": BASE}
        write_tensors(folder / DELTA, {"w": torch.ones(2, 2)}, {})
        write_tensors(folder / MEMORY, {"w": torch.eye(2)}, header)
        write_tensors(folder / METHOD, {"step": torch.tensor(1)}, {})
    store.publish(name, RECORD | changes)


@pytest.fixture
def store(tmp_path) -> Workspace:
    store = Workspace(tmp_path / "work")
    publish(store, "v0")
    publish(store, "v1", parent="v0", task="one", contains=["one"])
    return store


def test_a_part_of_the_base_model_is_compared_if_the_record_has_its_digest(store):
    version = store.version("v1")
    version.check_base(
        {"path": "m", "config_sha256": "1", "generation_sha256": "2", "code_sha256": "3"}
    )  # the record has no such digests, like an older one
    publish(store, "v2", parent="v1", base=RECORD["base"] | {"config_sha256": "1", "generation_sha256": "2"})
    version = store.version("v2")
    version.check_base({"path": "m", "config_sha256": "1", "generation_sha256": "2", "code_sha256": "3"})
    with pytest.raises(CheckpointError, match=r"but its generation_config\.json has changed"):
        version.check_base({"path": "m", "config_sha256": "1", "generation_sha256": "9", "code_sha256": "3"})


def test_opening_a_workspace_writes_nothing(tmp_path):
    store = Workspace(tmp_path / "none")
    assert (store.exists(), store.versions(), store.ledger(), store.unsettled()) == (False, [], [], [])
    assert not store.root.exists()


def test_empty_and_unpublished_folders_are_not_versions(store):
    (store.root / "versions" / "v2").mkdir()
    (store.prepared("v3")).mkdir()
    assert [version.name for version in store.versions()] == ["v0", "v1"]
    assert store.current().name == "v1" and [v.name for v in store.lineage()] == ["v0", "v1"]
    assert store.next_name() == "v2"


def test_versions_are_ordered_by_number(store):
    for number in range(2, 12):
        publish(store, f"v{number}", parent=f"v{number - 1}")
    assert [version.name for version in store.versions()] == [f"v{number}" for number in range(12)]
    assert store.next_name() == "v12"


def test_the_state_read_is_the_state_written(store):
    state = store.current().method_state(BASE)
    assert torch.equal(state["delta/w"], torch.ones(2, 2)) and int(state["step"]) == 1
    assert store.version("v0").method_state(BASE) == {}


@pytest.mark.parametrize("name", [DELTA, MEMORY, METHOD])
def test_a_flipped_bit_is_found_and_the_file_named(store, name):
    path = store.current().folder / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=name):
        store.current().method_state(BASE)


def test_a_missing_file_is_named(store):
    (store.current().folder / DELTA).unlink()
    with pytest.raises(CheckpointError, match=DELTA):
        store.current().verify(BASE)


def test_another_base_model_is_refused(store):
    with pytest.raises(CheckpointError, match="another base model"):
        store.current().verify("c" * 64)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"side": "output", "base_sha256": BASE}, "the output side of the weights"),
        ({"side": "input", "base_sha256": "c" * 64}, "another model"),
        ({}, "wanted the input side"),
    ],
)
def test_a_memory_of_another_model_or_side_is_refused(store, header, message):
    folder = store.current().folder
    write_tensors(folder / MEMORY, {"w": torch.eye(2)}, header)
    with pytest.raises(CheckpointError, match=message):
        read_state(folder, BASE)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}"])
def test_a_damaged_record_is_named(store, content):
    path = store.current().folder / "version.json"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"version\.json"):
        store.versions()


def test_current_must_name_an_existing_version(store):
    (store.root / "CURRENT").write_text("v7\n")
    with pytest.raises(CheckpointError, match="CURRENT"):
        store.current()


def test_an_unknown_version_gets_the_nearest_name_as_a_hint(store):
    with pytest.raises(ConfigError, match=r"no version `v11`; there are v0, v1\. Did you mean `v1`\?"):
        store.version("v11")
    with pytest.raises(ConfigError, match="no version"):
        store.version("../versions/v1")


@pytest.mark.parametrize("incomplete", [b"", b"{", b'{"event": "version", "version": "v9"}', b"\xff"])
def test_an_incomplete_last_line_of_the_ledger_is_ignored(store, incomplete):
    before = store.ledger()
    with open(store.root / "ledger.jsonl", "ab") as file:
        file.write(incomplete)
    assert store.ledger() == before
    store.log("note", text="after")
    assert [event["event"] for event in store.ledger()] == ["prepared", "version", "prepared", "version", "note"]


def test_a_damaged_line_before_the_last_is_named(store):
    path = store.root / "ledger.jsonl"
    path.write_bytes(b"{\n" + path.read_bytes())
    with pytest.raises(CheckpointError, match=r"ledger\.jsonl, line 1"):
        store.ledger()


def test_a_version_that_the_ledger_does_not_know_yet_is_current(store):
    publish(store, "v2", parent="v1")
    lines = (store.root / "ledger.jsonl").read_text().splitlines(keepends=True)
    (store.root / "ledger.jsonl").write_text("".join(lines[:-1]))
    (store.root / "CURRENT").write_text("v1\n")
    assert [version.name for version in store.unsettled()] == ["v2"]
    assert store.current().name == "v2"
    store.settle(store.current())
    assert (store.root / "CURRENT").read_text().split()[0] == "v2" and store.unsettled() == []


def test_the_record_holds_the_digest_of_every_other_file(store):
    folder = store.current().folder
    digests = json.loads((folder / "version.json").read_text())["sha256"]
    assert digests == {p.name: file_sha256(p) for p in folder.iterdir() if p.name != "version.json"}
    assert set(digests) == {DELTA, MEMORY, METHOD}


def test_publishing_removes_the_checkpoints_of_the_task(store):
    write_json(store.run_folder("two") / "checkpoint-2" / "x.json", {})
    publish(store, "v2", parent="v1", task="two")
    assert not store.run_folder("two").exists()
