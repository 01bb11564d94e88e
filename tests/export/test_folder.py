"""An export appears complete or not at all, and replaces nothing but an earlier export."""

import os
from pathlib import Path

import pytest

from gorp.disk import LEFTOVER
from gorp.errors import CheckpointError, ConfigError
from gorp.export.folder import MARK, building, check_out, check_space, write_mark
from gorp.storage import read_json
from tests.workspace.project import tree_hash


def export(out, *, force=False, text="weights"):
    check_out(out, force=force, sources={})
    with building(out, force=force) as folder:
        assert LEFTOVER.fullmatch(folder.name) and folder.parent == out.parent
        (folder / "part").mkdir()
        (folder / "part" / "model").write_text(text)
        write_mark(folder, {"version": "v1"})


def test_a_new_folder_with_its_parents_is_made_with_the_digest_of_every_file(tmp_path):
    out = tmp_path / "a" / "b" / "out"
    export(out)
    mark = read_json(out / MARK)
    assert mark["version"] == "v1" and set(mark["files"]) == {"part/model"}
    assert mark["files"]["part/model"]["bytes"] == 7
    assert os.listdir(out.parent) == ["out"]
    assert (out / "part" / "model").stat().st_mode & 0o444 == out.stat().st_mode & 0o444


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    export(tmp_path / "out")
    assert (tmp_path / "out" / MARK).is_file()


def test_an_earlier_export_is_replaced_only_with_force(tmp_path):
    out = tmp_path / "out"
    export(out)
    before = tree_hash(out)
    with pytest.raises(ConfigError, match=r"there is an earlier export\. Replace it with --force"):
        export(out, text="other")
    assert tree_hash(out) == before
    export(out, force=True, text="other")
    assert (out / "part" / "model").read_text() == "other" and os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("force", [False, True])
def test_no_other_folder_is_ever_replaced(tmp_path, force):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"holds other files \(thesis.tex\).*not even with --force"):
        export(out, force=force)
    (out / MARK).write_text("{}")
    with pytest.raises(ConfigError, match="is not an export of gorp"):
        export(out, force=force)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_a_file_that_was_added_to_an_export_is_not_deleted(tmp_path):
    out = tmp_path / "out"
    export(out)
    (out / "part" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"holds `part/notes\.txt`, which the earlier export did not write"):
        export(out, force=True)
    assert (out / "part" / "notes.txt").exists()


def test_a_file_that_was_edited_after_an_export_is_not_deleted(tmp_path):
    out = tmp_path / "out"
    export(out)
    edited = next(path for path in out.rglob("*") if path.is_file() and path.name != MARK)
    edited.write_text(edited.read_text() + "license: mine")
    with pytest.raises(ConfigError, match=f"`.*{edited.name}` was changed after the earlier export wrote it"):
        export(out, force=True)
    assert edited.read_text().endswith("license: mine")


@pytest.mark.parametrize("earlier", [False, True])
def test_after_an_error_nothing_is_left_and_an_earlier_export_is_whole(tmp_path, earlier):
    out = tmp_path / "new" / "out"
    if earlier:
        export(out)
    before = tree_hash(tmp_path)
    with pytest.raises(RuntimeError), building(out, force=True) as folder:
        (folder / "half").write_text("half")
        raise RuntimeError
    assert tree_hash(tmp_path) == before


def test_a_folder_that_another_process_filled_meanwhile_is_not_replaced(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="holds other files"), building(out, force=True):
        out.mkdir()
        (out / "theirs").write_text("")
    assert os.listdir(tmp_path) == ["out"]


def test_if_the_rename_fails_the_earlier_export_is_back_in_its_place(tmp_path, monkeypatch):
    out = tmp_path / "out"
    export(out)
    before, rename = tree_hash(tmp_path), os.rename

    def fail(source, target):
        if (Path(source) / "part" / "model").read_text() == "other":
            raise PermissionError(13, "Permission denied", str(target))
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(CheckpointError, match="Permission denied"):
        export(out, force=True, text="other")
    assert tree_hash(tmp_path) == before


def test_places_that_cannot_be_an_export(tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    sources = {"the workspace": work}
    for out in (work, work / "x", tmp_path):
        with pytest.raises(ConfigError, match="inside the workspace"):
            check_out(out, force=True, sources=sources)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="this is a file"):
        check_out(tmp_path / "file", force=True, sources=sources)
    with pytest.raises(ConfigError, match=r"cannot be created, because .*file is a file"):
        check_out(tmp_path / "file" / "x", force=True, sources=sources)
    (tmp_path / "link").symlink_to(work)
    with pytest.raises(ConfigError, match="inside the workspace"):
        check_out(tmp_path / "link" / "x", force=True, sources=sources)
    with pytest.raises(ConfigError, match="this is a link"):
        check_out(tmp_path / "link", force=True, sources={})
    monkeypatch.chdir(work)
    with pytest.raises(ConfigError, match="the current folder"):
        check_out(Path("."), force=True, sources={})
    assert sorted(os.listdir(tmp_path)) == ["file", "link", "work"]


def test_a_disk_that_is_too_small_is_reported_before_writing(tmp_path):
    check_space(tmp_path / "a" / "b", 1000)
    with pytest.raises(CheckpointError, match=r"MB free\. Free some space"):
        check_space(tmp_path / "a" / "b", 10**18)
