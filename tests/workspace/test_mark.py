"""A workspace may only be a new, an empty or a marked folder; other folders stay unchanged."""

import json
import os
import shutil
from pathlib import Path

import pytest

from gorp.errors import CheckpointError, ConfigError
from gorp.workspace import Workspace, load_config, plan, run_sequence
from gorp.workspace.mark import MARK, check_place, is_workspace, remove_folder, writing
from tests.workspace.project import make_project, tree_hash, without_digests, write_config
from tests.workspace.test_store import publish


def foreign(folder: Path, *files: str) -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"mine": 1}')
    return folder


FOREIGN = {
    "a model": ("config.json", "model.safetensors", "tokenizer.json"),
    "the names of a workspace": ("config.json", "CURRENT", "ledger.jsonl", "run/one/thesis.txt", "eval/matrix.csv"),
    "a record of something else": ("versions/v0/version.json", "ledger.jsonl"),
    "one hidden file": (".bashrc",),
}


@pytest.mark.parametrize("files", FOREIGN.values(), ids=FOREIGN)
def test_a_folder_with_other_files_is_refused_untouched(tmp_path, files):
    folder = foreign(tmp_path / "bot", *files)
    before = tree_hash(folder)
    with pytest.raises(ConfigError, match=r"bot: this folder is not a workspace and holds other files .* --workspace"):
        check_place(folder)
    with pytest.raises(ConfigError), writing(folder):
        raise AssertionError
    assert tree_hash(folder) == before


def test_a_folder_whose_mark_was_half_written_when_the_process_was_killed_becomes_a_workspace(tmp_path):
    folder = foreign(tmp_path / "bot", ".gorp-0123456789abcdef.tmp")
    with writing(folder):
        assert not list(folder.glob("*.tmp"))


def test_the_yaml_beside_a_model_of_its_name_leaves_the_model_alone(tmp_path):
    """The default workspace of `gorp train model.yaml` is the folder `model`."""
    path = make_project(tmp_path).rename(tmp_path / "model.yaml")
    before = tree_hash(tmp_path)
    for command in (run_sequence, plan):
        with pytest.raises(
            ConfigError, match=r"cannot be the workspace, because it contains .*model, which is an input"
        ):
            command(load_config(path), tmp_path / "model")
        with pytest.raises(ConfigError, match=r"because it contains .*(model|one\.jsonl), which is an input"):
            command(load_config(path), tmp_path)
    assert tree_hash(tmp_path) == before


@pytest.mark.parametrize("place", ["file", "file/below", "link", "n" * 300])
def test_a_path_that_cannot_be_a_folder_is_refused_with_advice(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"--workspace|wanted a folder"):
        check_place(tmp_path / place)
    with pytest.raises(CheckpointError), writing(Path("/proc/gorp")):
        raise AssertionError


def test_a_new_workspace_is_marked_first_and_a_refusal_leaves_nothing(tmp_path):
    root = tmp_path / "deep" / "bot"
    with pytest.raises(ZeroDivisionError), writing(root):
        assert is_workspace(root) and json.loads((root / MARK).read_text())["format"] == 1
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []
    with writing(root):
        (root / "config.json").write_text("{}")
    assert sorted(os.listdir(root)) == ["config.json", MARK]
    check_place(root)


def test_a_damaged_mark_and_a_later_format_are_refused(tmp_path):
    for content, message in (("{", "not a whole JSON file"), ("[]", "not the mark"), ('{"format": 2}', "newer gorp")):
        (tmp_path / MARK).write_text(content)
        with pytest.raises(CheckpointError, match=message):
            check_place(tmp_path)


def test_a_workspace_of_the_first_version_is_known_and_marked(tmp_path):
    store = Workspace(tmp_path / "work")
    with store.writing():
        publish(store, "v0")
        publish(store, "v1", parent="v0", task="one", contains=["one"])
        (store.root / "config.json").write_text(json.dumps({"source": "x.yaml", "config": {}}))
        (store.root / "eval").mkdir()
        (store.root / "eval/scores.json").write_text("{}")
    without_digests(store.root)
    assert store.current().name == "v1"
    with store.writing():
        pass
    assert (store.root / MARK).is_file()
    publish(store, "v2", parent="v1", task="two", contains=["one", "two"])
    assert [event["version"] for event in store.ledger() if event["event"] == "version"] == ["v0", "v1", "v2"]


@pytest.mark.parametrize("place", ["run", "versions", "eval/samples", "run/one", "run/one/checkpoint-2"])
def test_a_link_in_the_place_of_a_folder_leads_nowhere(tmp_path, place):
    store = Workspace(tmp_path / "work")
    with store.writing():
        publish(store, "v0")
    victim = foreign(tmp_path / "victim", "thesis.txt", "one/thesis.txt")
    if (store.root / place).exists():
        shutil.rmtree(store.root / place)
    (store.root / place).parent.mkdir(parents=True, exist_ok=True)
    (store.root / place).symlink_to(victim)
    before = tree_hash(victim)
    with pytest.raises(CheckpointError, match="this is a link"), store.writing():
        raise AssertionError
    remove_folder(store.root, store.root / "run" / "one") if place == "run/one" else None
    assert tree_hash(victim) == before


def test_the_lock_of_an_editor_is_no_link_of_the_workspace(tmp_path):
    store = Workspace(tmp_path / "work")
    with store.writing():
        publish(store, "v0")
    (store.root / ".#CURRENT").symlink_to("me@here.1234")
    with store.writing():
        pass


@pytest.mark.parametrize("place", ["run/../../victim", "run", "eval", "..", "versions/../run", "run/a/b"])
def test_nothing_but_a_folder_of_run_or_versions_is_removed(tmp_path, place):
    foreign(tmp_path / "victim", "thesis.txt")
    foreign(tmp_path / "work", "run/a/b/x", "eval/x", "versions/x")
    before = tree_hash(tmp_path)
    with pytest.raises(ValueError):
        remove_folder(tmp_path / "work", tmp_path / "work" / place)
    assert tree_hash(tmp_path) == before


def test_rows_inside_the_workspace_are_refused(tmp_path):
    path = make_project(tmp_path)
    store = Workspace(tmp_path / "work")
    with store.writing():
        publish(store, "v0")
    (tmp_path / "one.jsonl").rename(store.root / "one.jsonl")
    tasks = [{"name": "one", "train": "work/one.jsonl", "labels": ["true", "false"]}]
    with pytest.raises(ConfigError, match=r"because it contains .*one\.jsonl, which"):
        plan(load_config(write_config(path.parent, tasks=tasks)), store.root)
