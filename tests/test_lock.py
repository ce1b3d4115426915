import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jaxft import lock
from jaxft.lock import RunLock
from jaxft.registry import UserError

HOLD = """
import sys, time
from jaxft.lock import RunLock
with RunLock(sys.argv[1], say=print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    child = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    yield child
    child.kill()
    child.wait()
    child.stdout.close()


def test_a_second_process_is_refused_with_pid_and_host(tmp_path, holder):
    said = []
    expected = rf"in use by pid {holder.pid} on host {socket.gethostname()} since .*another --workdir"
    with pytest.raises(UserError, match=expected) as caught, RunLock(tmp_path / "run", say=said.append):
        pass
    assert caught.value.code == 2 and not said
    assert json.loads((tmp_path / "run" / "run.lock").read_text())["pid"] == holder.pid


def test_the_lock_of_a_killed_process_is_taken_over_aloud(tmp_path, holder):
    said = []
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with RunLock(tmp_path / "run", say=said.append):
        assert json.loads((tmp_path / "run" / "run.lock").read_text())["pid"] == os.getpid()
    assert len(said) == 1 and f"pid {holder.pid}" in said[0]


def test_a_lock_given_back_is_free_and_silent(tmp_path):
    said = []
    for _ in range(2):
        with RunLock(tmp_path, say=said.append), pytest.raises(UserError), RunLock(tmp_path, say=said.append):
            pass
    assert not said


def test_an_error_inside_gives_the_lock_back(tmp_path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path, say=print):
        raise ZeroDivisionError
    with RunLock(tmp_path, say=pytest.fail):
        pass


def test_a_reused_pid_does_not_keep_a_dead_lock_alive(tmp_path):
    # The first process is always alive, but it does not hold this file.
    record = {"pid": 1, "host": socket.gethostname(), "started": "2026-01-01 00:00:00"}
    (tmp_path / "run.lock").write_text(json.dumps(record))
    said = []
    with RunLock(tmp_path, say=said.append):
        pass
    assert "pid 1" in said[0]


ELSEWHERE = {"pid": 7, "host": "elsewhere", "started": "2026-01-01 00:00:00"}


def mounted(monkeypatch, tmp_path, kind):
    """As if `tmp_path` were a file system of that type, its name with a blank in it, on a local disk."""
    run = tmp_path / "a run"
    run.mkdir()
    place = str(run).replace(" ", r"\040")
    lines = ("/ rw - ext4", f"{tmp_path} rw - xfs", f"{place} rw shared:1 master:2 - {kind}")
    (tmp_path / "mountinfo").write_text("".join(f"22 1 8:1 / {line} /dev/a rw\n" for line in lines))
    monkeypatch.setattr(lock, "MOUNTS", tmp_path / "mountinfo")
    assert (lock.file_system(run / "file"), lock.file_system(tmp_path / "other")) == (kind, "xfs")
    return run


@pytest.mark.parametrize("kind", ["ext4", "overlay", "btrfs", "tmpfs", "fuseblk"])
def test_on_a_local_file_system_the_lock_of_a_container_that_is_gone_is_taken_over(tmp_path, monkeypatch, kind):
    run, said = mounted(monkeypatch, tmp_path, kind), []
    (run / "run.lock").write_text(json.dumps(ELSEWHERE))
    with RunLock(run, say=said.append):
        assert json.loads((run / "run.lock").read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="wait for it"), RunLock(run, say=print):
            pass
    assert len(said) == 1 and "pid 7" in said[0]


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "smb3", "lustre", "gpfs", "fuse.sshfs", "ceph", "9p", ""])
def test_where_a_lock_may_not_reach_other_hosts_that_of_another_host_is_never_taken_over(tmp_path, monkeypatch, kind):
    record = ELSEWHERE
    if kind:
        tmp_path = mounted(monkeypatch, tmp_path, kind)
    else:
        monkeypatch.setattr(lock, "MOUNTS", tmp_path / "absent")  # no Linux: nobody can tell
    (tmp_path / "run.lock").write_text(json.dumps(record))
    with pytest.raises(UserError, match=r"pid 7 on host elsewhere.*remove .*run\.lock"), RunLock(tmp_path, say=print):
        pass
    assert json.loads((tmp_path / "run.lock").read_text()) == record


@pytest.mark.parametrize("text", ["", '{"pid": 12', "[]", "{}"])
def test_a_half_written_lock_file_of_a_dead_process_is_no_obstacle(tmp_path, text):
    (tmp_path / "run.lock").write_text(text)
    with RunLock(tmp_path, say=pytest.fail):
        pass


def test_a_file_system_without_locks_is_used_and_said(tmp_path, monkeypatch):
    def refuse(_file, _operation):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said = []
    with RunLock(tmp_path, say=said.append):
        pass
    assert len(said) == 1 and "nothing keeps a second run out" in said[0]


def test_a_run_folder_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be used"), RunLock(tmp_path / "file", say=print):
        pass
