"""One run at a time in a work directory: on one host, across hosts, after a death."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from samon_jax.errors import UserError
from samon_jax.workdir import lock
from samon_jax.workdir.lock import LOCK, locked

HOLD = """
import sys, time
from pathlib import Path
from samon_jax.workdir.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_names_the_process_that_runs_there(tmp_path, other_process):
    with pytest.raises(UserError) as error, locked(tmp_path):
        pass
    text = str(error.value)
    assert f"process {other_process.pid} on {socket.gethostname()} since " in text
    assert "\n" not in text
    assert str(tmp_path) in text


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_takes_the_lock_of_a_dead_process_over(tmp_path, other_process, number):
    other_process.send_signal(number)
    other_process.wait()
    assert (tmp_path / LOCK).exists()  # it could not tidy up
    with locked(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_refuses_a_second_run_of_the_same_process(tmp_path):
    with locked(tmp_path):
        with pytest.raises(UserError, match="in use"), locked(tmp_path):
            pass
        assert (tmp_path / LOCK).exists()  # the refused one leaves it alone
    with locked(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_is_released_by_an_exception(tmp_path):
    with pytest.raises(ZeroDivisionError), locked(tmp_path):
        1 / 0  # noqa: B018
    with locked(tmp_path):
        pass


def of_other_host(directory, age):
    """A lock as another host leaves it on a shared file system: no kernel holds it here."""
    path = directory / LOCK
    path.write_text(json.dumps({"host": "node7", "process": 42, "since": "yesterday"}))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_waits_for_a_sign_of_life_from_another_host(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "DEAD_SECONDS", 10.0)
    path, said = of_other_host(tmp_path, age=2), []
    threading.Timer(0.5, lambda: os.utime(path)).start()
    with pytest.raises(UserError, match="process 42 on node7"), locked(tmp_path, said.append):
        pass
    assert len(said) == 1
    assert "node7" in said[0]


@pytest.mark.parametrize("age", [0.0, 100.0])
def test_takes_the_lock_of_a_dead_host_over(tmp_path, monkeypatch, age):
    monkeypatch.setattr(lock, "DEAD_SECONDS", 1.5)
    of_other_host(tmp_path, age)
    begin = time.monotonic()
    with locked(tmp_path, lambda line: None):
        waited = time.monotonic() - begin
        assert json.loads((tmp_path / LOCK).read_text())["host"] == socket.gethostname()
    assert waited > 1.0 if age == 0 else waited < 1.0


def test_a_lock_that_a_file_server_still_holds_for_a_dead_host(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLED_SECONDS", 0.1)
    with of_other_host(tmp_path, age=100).open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with locked(tmp_path):
            assert json.loads((tmp_path / LOCK).read_text())["process"] == os.getpid()


def test_of_two_that_take_a_lock_over_at_once_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "_SETTLED_SECONDS", 0.1)
    path = of_other_host(tmp_path, age=100)
    other = json.dumps({"host": "node8", "process": 7, "since": "now"})
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: path.write_text(other))
    with path.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="process 7 on node8"), locked(tmp_path):
            pass


def test_touches_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    with locked(tmp_path):
        first = (tmp_path / LOCK).stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while (tmp_path / LOCK).stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_damaged_lock_of_nobody_is_taken_over(tmp_path, text):
    (tmp_path / LOCK).write_text(text)
    with locked(tmp_path):
        pass


def test_where_nothing_can_be_written_nothing_is_guarded(tmp_path):
    (tmp_path / "file").write_text("")
    with locked(tmp_path / "file"):
        pass


def test_a_full_disk_is_for_whoever_writes_to_say(tmp_path, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lock.os, "pwrite", full)
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="in use by another run"),
        locked(tmp_path),
    ):
        pass


def test_without_locks_of_the_file_system_the_sign_of_life_counts(tmp_path, monkeypatch):
    def refuse(descriptor, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT_SECONDS", 0.05)
    monkeypatch.setattr(lock, "DEAD_SECONDS", 2.0)
    with (
        locked(tmp_path),
        pytest.raises(UserError, match="is in use by process"),
        locked(tmp_path),
    ):
        pass


def test_the_lock_of_another_user(tmp_path, monkeypatch):
    def refuse(path, flags, mode=0):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(lock.os, "open", refuse)
    said = r"\.lock cannot be opened \(Permission denied\): it is another user's"
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pass
