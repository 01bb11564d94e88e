"""One writer a workspace; a process that is gone holds nothing."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from gorp.errors import CheckpointError
from gorp.workspace import lock
from gorp.workspace.lock import LOCK, briefly, locked


HOLD = """import pathlib, sys, time
from gorp.workspace.lock import locked
with locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_a_second_writer_is_refused_and_told_who_writes(tmp_path, holder):
    with pytest.raises(CheckpointError) as caught, locked(tmp_path):
        raise AssertionError
    message = str(caught.value)
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in message and "Wait until it ends" in message
    assert holder.poll() is None and (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_holds_nothing(tmp_path, holder, number):
    os.kill(holder.pid, number)
    holder.wait()
    assert (tmp_path / LOCK).is_file()  # it says who was killed, and binds nobody
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_child_that_outlives_the_writer_does_not_hold_its_lock(tmp_path):
    """The workers of a data loader are forked, and end some seconds after a killed trainer."""
    fork = "    import os\n    child = os.fork()\n    print('child', child) if child else 0\n"
    code = HOLD.replace("    time", f"{fork}    time")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(next(line for line in process.stdout if line.startswith("child")).split()[1])
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        os.kill(child, 0)  # it lives
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_of_many_that_begin_at_once_one_writes(tmp_path):
    code = HOLD.replace("time.sleep(600)", "sys.stdin.read()")
    command = [sys.executable, "-c", code, str(tmp_path)]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    limit = time.monotonic() + 120
    while sum(process.poll() is not None for process in processes) < 3:
        assert time.monotonic() < limit
        time.sleep(0.01)
    writer = next(process for process in processes if process.poll() is None)
    assert writer.communicate("")[0] == "held\n" and writer.returncode == 0
    for process in processes:
        if process is not writer:
            assert "another gorp writes there" in process.communicate()[1]
    assert not (tmp_path / LOCK).exists()


def test_one_process_is_one_writer_too(tmp_path):
    with locked(tmp_path):
        with pytest.raises(CheckpointError, match="this process is writing there already"), locked(tmp_path):
            raise AssertionError
        assert (tmp_path / LOCK).is_file()


def left_by(tmp_path, **changes):
    about = {"host": "other", "boot": "b", "pid": 1, "started": "7", "since": "2026-01-01", "command": "gorp train x"}
    (tmp_path / LOCK).write_text(json.dumps(about | changes))


def test_a_holder_on_another_computer_is_not_judged(tmp_path):
    left_by(tmp_path)
    with pytest.raises(CheckpointError, match=rf"gorp train x.*cannot be seen.*remove .*{LOCK}"), locked(tmp_path):
        raise AssertionError
    assert (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": 3, "boot": null}'])
def test_a_lock_that_says_nothing_binds_nobody(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    if "host" in content:
        with pytest.raises(CheckpointError, match="remove"), locked(tmp_path):
            raise AssertionError
        return
    with locked(tmp_path):
        pass


def test_a_computer_that_was_started_anew_has_no_old_processes(tmp_path):
    left_by(tmp_path, host=socket.gethostname(), boot="before")
    with locked(tmp_path):
        pass


def test_without_locks_of_the_system_the_file_decides(tmp_path, monkeypatch):
    """As on some file systems of clusters: a live process, by number and start, holds; a dead one does not."""

    def none(*_):
        raise OSError(lock.WITHOUT_LOCKS[0], "no locks")

    monkeypatch.setattr("fcntl.lockf", none)
    alive = {"host": socket.gethostname(), "boot": lock._boot(), "pid": os.getpid()}
    left_by(tmp_path, **alive, started=lock._started(os.getpid()))
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"), locked(tmp_path):
        raise AssertionError
    left_by(tmp_path, **alive, started="another process had this number")
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_was_taken_away_stops_its_holder(tmp_path):
    with pytest.raises(CheckpointError, match="was removed while this process held it"), locked(tmp_path) as held:
        held.check()
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
        held.check()
    assert (tmp_path / LOCK).read_text() == "another's"


def test_a_link_in_the_place_of_the_lock_is_not_followed(tmp_path):
    (tmp_path / "victim").write_text("mine")
    (tmp_path / LOCK).symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError), locked(tmp_path):
        raise AssertionError
    assert (tmp_path / "victim").read_text() == "mine"


def test_brief_writers_wait_for_each_other(tmp_path):
    code = """import pathlib, sys
from gorp.workspace.lock import briefly
folder = pathlib.Path(sys.argv[1])
for _ in range(200):
    with briefly(folder / "x.lock"):
        number = int((folder / "n").read_text())
        (folder / "n").write_text(str(number + 1))"""
    (tmp_path / "n").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "600" and sorted(os.listdir(tmp_path)) == ["n"]
    with briefly(tmp_path / "x.lock"):
        pass
