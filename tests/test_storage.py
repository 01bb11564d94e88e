"""Files are written completely or not at all, and errors name a damaged file."""

import errno
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from gorp.disk import disk_errors
from gorp.errors import CheckpointError
from gorp.permissions import private_mode, restrict
from gorp.storage import (
    create_atomic,
    read_json,
    read_tensors,
    remove_leftovers,
    remove_leftovers_of,
    write_atomic,
    write_json,
    write_tensors,
)


def test_tensors_and_metadata_are_read_as_written(tmp_path):
    tensors = {
        "float": torch.randn(3, 4).mT,  # not contiguous
        "half": torch.randn(5).bfloat16(),
        "empty": torch.zeros(4, 0),
        "number": torch.tensor(7),
        "double": torch.randn(2).double(),
    }
    write_tensors(tmp_path / "deep" / "x.safetensors", tensors, {"mode": "strict", "eps": 0.97, "side": ["input"]})
    back, metadata = read_tensors(tmp_path / "deep" / "x.safetensors")
    assert metadata == {"mode": "strict", "eps": 0.97, "side": ["input"]}
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor), name


def test_tensors_that_share_memory_are_each_written_completely(tmp_path):
    whole = torch.arange(12.0).view(3, 4)
    tensors = {"one": whole, "same": whole, "rows": whole[:2], "column": whole[:, 1], "flat": whole.view(12)}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    back, _ = read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], x) for name, x in tensors.items())
    assert len({x.untyped_storage().data_ptr() for x in back.values()}) == len(tensors)


def test_json_is_read_as_written(tmp_path):
    value = {"name": "Größe", "values": [1, 2.5, None, True]}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value


def test_a_failed_write_leaves_only_the_old_file(tmp_path, monkeypatch):
    write_atomic(tmp_path / "x", b"old")

    def full_disk(descriptor):
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(CheckpointError, match=r"x: no space left on device \(disk .*, [\d.]+ MiB free\)"):
        write_atomic(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"score": float("nan")})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("read", [read_json, read_tensors])
class TestDamage:
    def test_the_error_names_a_missing_file(self, read, tmp_path):
        with pytest.raises(CheckpointError, match=r"gone: no such file"):
            read(tmp_path / "gone")

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe" + b"x" * 40])
    def test_the_error_names_a_damaged_file(self, read, content, tmp_path):
        (tmp_path / "torn").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"torn: not a whole"):
            read(tmp_path / "torn")


def test_read_tensors_are_aligned_like_new_ones(tmp_path):
    """Torch aligns memory to 64 bytes; a file does not, and products of unaligned matrices differ in the last bits."""
    tensors = {f"t{i}": torch.randn(3, 7 + i) for i in range(6)}
    write_tensors(tmp_path / "x.safetensors", tensors, {})
    assert all(x.data_ptr() % 64 == 0 for x in read_tensors(tmp_path / "x.safetensors")[0].values())


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    """Rust orders the keys of a map at random in every process and for every map."""
    keys = [f"key{i}" for i in range(12)]
    metadata = {key: key for key in random.Random(0).sample(keys, len(keys))}
    for number in range(8):
        write_tensors(tmp_path / f"{number}", {"b": torch.ones(3), "a": torch.arange(5)}, metadata)
    assert len({(tmp_path / f"{number}").read_bytes() for number in range(8)}) == 1
    assert read_tensors(tmp_path / "0")[1] == metadata
    write_tensors(tmp_path / "none", {"a": torch.ones(1)}, {})
    assert read_tensors(tmp_path / "none")[1] == {}


def test_a_file_error_names_the_file_and_the_disk(tmp_path):
    (tmp_path / "file").write_text("a user's own")
    for path in (tmp_path / "file" / "x.json", tmp_path / ("n" * 300), tmp_path):
        with pytest.raises(CheckpointError, match=r"\(disk /.*\)\. Files that were written before are complete"):
            write_json(path, {})
    assert os.listdir(tmp_path) == ["file"] and (tmp_path / "file").read_text() == "a user's own"


def test_a_network_error_is_not_reported_as_a_disk_error(monkeypatch, tmp_path):
    for error in (ConnectionResetError(errno.ECONNRESET, "reset"), OSError("cannot reach the hub")):

        def fail(*_, error=error):
            raise error

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(type(error)):
            write_atomic(tmp_path / "x", b"")


@pytest.mark.parametrize("count", [1, 100_000])
@pytest.mark.parametrize(("free", "message"), [(0, "No space left on device"), (2**30, "Input/output error")])
def test_what_torch_cannot_write_is_reported_as_a_disk_error(monkeypatch, tmp_path, count, free, message):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    full = tmp_path / "optimizer.pt"
    full.symlink_to("/dev/full")
    with pytest.raises(CheckpointError, match=rf"optimizer\.pt: {message} \(disk .*Free some space or allow"):
        with disk_errors(full):
            torch.save({"a": torch.zeros(count)}, full)
    with pytest.raises(RuntimeError, match="another reason"), disk_errors(full):
        raise RuntimeError("another reason")


def test_what_safetensors_cannot_write_is_reported_as_a_disk_error(tmp_path):
    (tmp_path / "file").touch()
    for path, message in ((tmp_path / "none" / "x", "No such file"), (tmp_path / "file" / "x", "Not a directory")):
        with pytest.raises(CheckpointError, match=rf"x: {message}.* \(disk .*Free some space or allow"):
            with disk_errors(path):
                save_file({"a": torch.zeros(9)}, path)
    with pytest.raises(SafetensorError, match="another reason"), disk_errors(tmp_path):
        raise SafetensorError("another reason")


def test_leftover_files_of_killed_processes_are_removed(tmp_path):
    """A process that is killed while writing leaves its temporary file, with another name each time."""
    code = """import os, signal, sys, pathlib
from gorp.storage import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(pathlib.Path(sys.argv[1]) / "x.json", b"half")"""
    for _ in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (tmp_path / f".x.json.{os.getpid()}.tmp").write_text("left by an older version")
    left = os.listdir(tmp_path)
    assert len(left) == 3
    (tmp_path / "x.json").write_text("{}")
    (tmp_path / ".hidden").write_text("a user's own")
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "x.json"]
    remove_leftovers(tmp_path / "no such folder")


def test_what_is_left_of_one_file_is_removed_and_what_is_left_of_another_is_not(tmp_path):
    """In a folder of the user another process may be writing another file."""
    code = """import os, signal, sys, pathlib
from gorp.storage import write_atomic
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomic(pathlib.Path(sys.argv[1]), b"half")"""
    for name in ("bot.yaml", "bot.yaml", "report.html"):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / name)], check=False)
    left = sorted(os.listdir(tmp_path))
    assert len(left) == 3
    remove_leftovers_of(tmp_path / "bot.yaml")
    [other] = os.listdir(tmp_path)
    assert other in left
    remove_leftovers_of(tmp_path / "report.html")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_takes_the_place_of_another(tmp_path, monkeypatch, links):
    def without_links(*_):
        raise OSError(errno.EPERM, "operation not permitted")

    if not links:
        monkeypatch.setattr(os, "link", without_links)
    assert create_atomic(tmp_path / "x", b"new", b"er") and (tmp_path / "x").read_bytes() == b"newer"
    assert not create_atomic(tmp_path / "x", b"other") and (tmp_path / "x").read_bytes() == b"newer"
    assert os.listdir(tmp_path) == ["x"]


def test_of_two_that_create_a_file_the_later_one_finds_it_although_its_own_temporary_file_is_gone(
    tmp_path, monkeypatch
):
    link = os.link

    def late(source, target):
        Path(target).write_text("the first")  # another process was faster, and has removed what looked left over
        remove_leftovers_of(Path(target))
        link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert not create_atomic(tmp_path / "x", b"the second")
    assert (tmp_path / "x").read_text() == "the first" and os.listdir(tmp_path) == ["x"]


@pytest.fixture
def usual_umask():
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


@pytest.mark.parametrize(
    ("root", "folder", "file"), [(0o700, 0o700, 0o600), (0o750, 0o750, 0o640), (0o755, 0o755, 0o644)]
)
def test_what_is_written_has_at_most_the_permissions_of_its_folder(tmp_path, usual_umask, root, folder, file):
    (tmp_path / "r").mkdir()
    (tmp_path / "r").chmod(root)
    write_json(tmp_path / "r/a/b/c.json", 1)
    assert [mode(tmp_path / "r/a"), mode(tmp_path / "r/a/b"), mode(tmp_path / "r/a/b/c.json")] == [folder, folder, file]


def test_the_umask_takes_more(tmp_path, usual_umask):
    os.umask(0o077)
    write_json(tmp_path / "a/b.json", 1)
    assert (mode(tmp_path / "a"), mode(tmp_path / "a/b.json")) == (0o700, 0o600)


def test_files_of_a_library_are_restricted_like_those_of_gorp(tmp_path, usual_umask):
    tmp_path.chmod(0o700)
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/c").write_text("x")
    restrict(tmp_path / "a")
    assert [mode(path) for path in (tmp_path / "a", tmp_path / "a/b", tmp_path / "a/b/c")] == [0o700, 0o700, 0o600]


def test_a_folder_that_a_group_shares_keeps_the_bit_that_passes_the_group_on(tmp_path):
    tmp_path.chmod(0o750)
    (tmp_path / "a").mkdir()
    (tmp_path / "a").chmod(0o2777)
    restrict(tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o7777 == 0o2750


def test_a_page_keeps_the_permissions_that_somebody_gave_it(tmp_path):
    assert private_mode(tmp_path / "new.html") == 0o600
    (tmp_path / "old.html").write_text("x")
    (tmp_path / "old.html").chmod(0o644)
    assert private_mode(tmp_path / "old.html") == 0o644
