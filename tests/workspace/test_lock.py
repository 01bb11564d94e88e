"""One writer per workspace; a process that has ended holds no lock."""

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


def test_a_second_writer_is_refused_and_the_first_is_named(tmp_path, holder):
    with pytest.raises(CheckpointError) as caught, locked(tmp_path):
        raise AssertionError
    message = str(caught.value)
    assert f"process {holder.pid} on {socket.gethostname()} since 20" in message and "Wait until it ends" in message
    assert holder.poll() is None and (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_writer_holds_no_lock(tmp_path, holder, number):
    os.kill(holder.pid, number)
    holder.wait()
    assert (tmp_path / LOCK).is_file()  # it still names the killed process, but does not lock
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / LOCK).exists()


def test_a_child_that_outlives_the_writer_does_not_hold_its_lock(tmp_path):
    """Data loader workers are forked and end some seconds after a trainer that was killed."""
    fork = "    import os\n    child = os.fork()\n    print('child', child) if child else 0\n"
    code = HOLD.replace("    time", f"{fork}    time")
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    child = int(next(line for line in process.stdout if line.startswith("child")).split()[1])
    process.kill()
    process.wait()
    process.stdout.close()
    try:
        os.kill(child, 0)  # raises if the child has ended
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)


def test_exactly_one_of_many_simultaneous_writers_gets_the_lock(tmp_path):
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
            assert "another gorp process writes there" in process.communicate()[1]
    assert not (tmp_path / LOCK).exists()


def test_the_same_process_cannot_lock_twice(tmp_path):
    with locked(tmp_path):
        with pytest.raises(CheckpointError, match="this process is already writing there"), locked(tmp_path):
            raise AssertionError
        assert (tmp_path / LOCK).is_file()


def leave_lock(tmp_path, **changes):
    about = {"host": "other", "boot": "b", "pid": 1, "started": "7", "since": "2026-01-01", "command": "gorp train x"}
    (tmp_path / LOCK).write_text(json.dumps(about | changes))


def test_a_lock_of_another_computer_must_be_removed_by_the_user(tmp_path):
    leave_lock(tmp_path)
    with pytest.raises(CheckpointError, match=rf"gorp train x.*another computer.*remove .*{LOCK}"), locked(tmp_path):
        raise AssertionError
    assert (tmp_path / LOCK).is_file()


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"host": 3, "boot": null}'])
def test_a_lock_file_without_a_valid_record_does_not_lock(tmp_path, content):
    (tmp_path / LOCK).write_text(content)
    if "host" in content:
        with pytest.raises(CheckpointError, match="remove"), locked(tmp_path):
            raise AssertionError
        return
    with locked(tmp_path):
        pass


def test_a_lock_from_before_a_restart_of_this_computer_does_not_lock(tmp_path):
    leave_lock(tmp_path, host=socket.gethostname(), boot="before")
    with locked(tmp_path):
        pass


def test_on_a_file_system_without_locks_the_record_decides(tmp_path, monkeypatch):
    """As on some cluster file systems: only a running process, identified by id and start time, holds the lock."""

    def none(*_):
        raise OSError(lock.WITHOUT_LOCKS[0], "no locks")

    monkeypatch.setattr("fcntl.lockf", none)
    alive = {"host": socket.gethostname(), "boot": lock._boot(), "pid": os.getpid()}
    leave_lock(tmp_path, **alive, started=lock._started(os.getpid()))
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"), locked(tmp_path):
        raise AssertionError
    leave_lock(tmp_path, **alive, started="another process had this number")
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_removing_the_lock_file_stops_its_holder(tmp_path):
    with pytest.raises(CheckpointError, match="was removed while this process held it"), locked(tmp_path) as held:
        held.check()
        (tmp_path / LOCK).unlink()
        (tmp_path / LOCK).write_text("another's")
        held.check()
    assert (tmp_path / LOCK).read_text() == "another's"


def test_a_link_instead_of_the_lock_file_is_not_followed(tmp_path):
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


def test_processes_that_replace_a_file_wait_for_each_other(tmp_path):
    code = """import pathlib, sys
from gorp.storage import write_atomic
from gorp.workspace.lock import alone
path = pathlib.Path(sys.argv[1]) / "n"
for _ in range(100):
    with alone(path):
        write_atomic(path, str(int(path.read_text()) + 1).encode())"""
    (tmp_path / "n").write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert (tmp_path / "n").read_text() == "300" and os.listdir(tmp_path) == ["n"]
