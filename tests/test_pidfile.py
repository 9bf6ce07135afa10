"""Pidfiles, with real files, locks and processes."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import pytest

from blackhole.process import pidfile
from blackhole.process.pidfile import Pidfile, pidfile_owner
from blackhole.process.processes import Process
from blackhole.settings import OperatorError
from tests.program import AS_NOBODY, as_root, children, environment, run_python


@contextmanager
def locked_by_another(path: Path, then: str = "file.write()") -> Iterator[subprocess.Popen[str]]:
    """Run a process that locks the pidfile, runs `then` and sleeps."""
    code = f"""
import os, signal, sys, time
from setproctitle import setproctitle
from blackhole.process.pidfile import Pidfile
from blackhole.process.processes import MASTER_TITLE
setproctitle(MASTER_TITLE)
file = Pidfile({str(path)!r})
{dedent(then)}
print("locked", flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            yield other
        finally:
            other.kill()


def test_pidfile_contains_the_pid_of_its_owner_and_is_removed_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    locked = Pidfile(str(path))
    assert pidfile_owner(str(path)) == 0  # the pid is not written yet
    locked.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert pidfile_owner(str(path)) == os.getpid()
    locked.remove()
    assert not path.exists()
    assert pidfile_owner(str(path)) is None


def test_pidfile_is_readable_by_every_user_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        locked = Pidfile(str(tmp_path / "pid"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644
    locked.remove()


def test_second_process_cannot_lock_a_pidfile_and_learns_the_pid_of_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with locked_by_another(path) as other:
        with pytest.raises(OperatorError, match=f"already running, pid {other.pid} ") as caught:
            Pidfile(str(path))
        assert caught.value.code == os.EX_TEMPFAIL
        assert path.read_text() == f"{other.pid}\n"


def test_pidfile_of_a_killed_process_can_be_locked_again(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with locked_by_another(path) as other:
        other.kill()
        other.wait()
        assert pidfile_owner(str(path)) is None
        locked = Pidfile(str(path))
    locked.write()
    assert pidfile_owner(str(path)) == os.getpid()
    locked.remove()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "garbage",
        "-1\n",
        "99999999999999999999",
        pytest.param(f"{os.getpid()}\n", id="pid of this process"),
        "1\n",
    ],
)
def test_content_of_an_unlocked_pidfile_is_ignored(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content)
    assert pidfile_owner(str(path)) is None
    assert pidfile.send(str(path), signal.SIGKILL) is False
    assert pidfile.stop(str(path), 1.0) is False
    Pidfile(str(path)).remove()


@pytest.mark.parametrize("content", ["", "garbage", "-1", "1"])
def test_process_named_in_a_pidfile_that_it_does_not_hold_is_never_signalled(
    tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held, but not by the process that the file names."""
    path = tmp_path / "pid"
    monkeypatch.setattr(pidfile, "WRITE_TIMEOUT", 0.1)
    with locked_by_another(path, f"os.pwrite(file.descriptor, {content.encode()!r}, 0)") as other:
        with pytest.raises(OperatorError, match="does not contain the pid") as caught:
            pidfile.send(str(path), signal.SIGCONT)
        assert caught.value.code == os.EX_UNAVAILABLE
        assert other.poll() is None


def test_symbolic_link_in_place_of_a_pidfile_is_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "pid", tmp_path / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)
    with pytest.raises(OperatorError, match="symbolic link") as caught:
        Pidfile(str(path))
    assert caught.value.code == os.EX_CANTCREAT
    with pytest.raises(OperatorError, match="cannot read "):
        pidfile_owner(str(path))
    assert precious.read_text() == "precious"


@as_root
@pytest.mark.parametrize(
    ("mode", "accepted"),
    [(0o755, True), (0o775, True), (0o1777, True), (0o777, False), (0o757, False)],
    ids=oct,
)
def test_root_refuses_a_world_writable_directory_that_is_not_sticky(
    tmp_path: Path, mode: int, accepted: bool
) -> None:
    """A sticky directory (/tmp) is accepted, and a group-writable one (/var/log on some systems)."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    if accepted:
        Pidfile(str(shared / "pid")).remove()
        return
    with pytest.raises(OperatorError, match=f"its directory is world-writable; chmod o-w {shared}") as caught:
        Pidfile(str(shared / "pid"))
    assert caught.value.code == os.EX_CANTCREAT
    assert not (shared / "pid").exists()


@as_root
def test_other_users_may_use_a_world_writable_directory(tmp_path: Path) -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        done = run_python(f"""
            {AS_NOBODY}
            pidfile.Pidfile({directory!r} + "/pid").remove()
        """)
        assert (done.returncode, done.stderr) == (0, "")


def test_pidfile_in_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file or directory"):
        Pidfile(str(tmp_path / "none" / "pid"))


def test_status_query_that_holds_the_lock_for_a_moment_does_not_prevent_a_start(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with open(f"{path}.lock", "w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        Pidfile(str(path)).remove()


def test_lock_on_a_removed_pidfile_does_not_count(tmp_path: Path) -> None:
    """A process that starts while another ends may open the old file just before it is removed."""
    path = tmp_path / "pid"
    first = Pidfile(str(path))
    path.unlink()
    (tmp_path / "pid.lock").unlink()
    second = Pidfile(str(path))
    first.remove()
    assert path.exists()
    assert pidfile_owner(str(path)) is not None
    second.remove()
    assert list(tmp_path.iterdir()) == []


def test_child_that_closed_the_pidfile_does_not_prolong_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    child = """
        file.write()
        read_end, write_end = os.pipe()
        if not os.fork():
            file.close()
            os.write(write_end, b".")
            time.sleep(5)
            os._exit(0)
        os.read(read_end, 1)
    """
    with locked_by_another(path, child) as other:
        other.kill()
        other.wait()
        assert pidfile_owner(str(path)) is None


def test_stop_waits_until_the_process_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with locked_by_another(
        path, "signal.signal(15, lambda *_: (time.sleep(0.2), sys.exit()))\nfile.write()"
    ) as other:
        assert pidfile.stop(str(path), 10.0) is True
        assert other.wait(1) == 0


def test_stop_kills_a_process_that_ignores_sigterm(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with locked_by_another(path, "signal.signal(15, signal.SIG_IGN)\nfile.write()") as other:
        assert pidfile.stop(str(path), 0.2) is True
        assert other.wait(1) == -signal.SIGKILL


def test_stop_removes_what_a_killed_master_left(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with locked_by_another(path) as other:
        other.kill()
        other.wait()
    assert pidfile.stop(str(path), 1.0) is False
    assert pidfile.clear(str(path)) == []
    assert list(tmp_path.iterdir()) == []


def test_stop_leaves_a_file_that_is_no_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "passwd"
    path.write_text("root:x:0:0:root:/root:/bin/sh\n")
    assert pidfile.stop(str(path), 1.0) is False
    assert pidfile.clear(str(path)) == []
    assert path.read_text() == "root:x:0:0:root:/root:/bin/sh\n"


@pytest.mark.parametrize("name", ["pid", "pid.lock"])
def test_file_that_is_no_pidfile_is_left_alone_at_the_start(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text("something that another program wrote\n")
    with pytest.raises(OperatorError, match=f"cannot use {tmp_path / 'pid'}: ") as caught:
        Pidfile(str(tmp_path / "pid"))
    assert caught.value.code == os.EX_CANTCREAT
    assert path.read_text() == "something that another program wrote\n"


def test_lock_file_can_be_opened_by_its_owner_alone(tmp_path: Path) -> None:
    umask = os.umask(0)
    try:
        locked = Pidfile(str(tmp_path / "pid"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "pid.lock").stat().st_mode) == 0o600
    locked.remove()


def test_lock_on_the_pidfile_itself_which_any_user_may_take_means_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with open(path, "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert pidfile_owner(str(path)) is None
        Pidfile(str(path)).remove()


@pytest.mark.parametrize(
    "line", ["1 {started} 2.0", "{pid} 5 2.0", "{pid}", "{pid} x 2.0", "999999999 5 2.0"]
)
def test_process_that_is_not_the_one_in_the_lock_file_is_never_signalled(
    tmp_path: Path, line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is another one if it belongs to another user, or did not start at that time."""
    path = tmp_path / "pid"
    monkeypatch.setattr(pidfile, "WRITE_TIMEOUT", 0.1)
    with locked_by_another(path) as other:
        started = Process.of(other.pid)
        assert started is not None
        text = line.format(pid=other.pid, started=started.started + 1)
        (tmp_path / "pid.lock").write_text(text + "\n")
        with pytest.raises(OperatorError, match="does not contain the pid"):
            pidfile.send(str(path), signal.SIGKILL)
        assert other.poll() is None


def test_children_are_found_after_their_master_was_killed(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    code = """
        file.write()
        for _ in range(3):
            pid = os.fork()
            if not pid:
                file.close()
                time.sleep(60)
            file.record_child(pid)
            if not _:
                os.kill(pid, 9)
                os.waitpid(pid, 0)
    """
    with locked_by_another(path, code) as other:
        alive = children(other.pid)
        other.kill()
        other.wait()
        locked = Pidfile(str(path))
        try:
            assert [child.pid for child in locked.left_behind] == alive
            assert len(alive) == 2
        finally:
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        locked.remove()


@as_root
def test_masters_of_other_users_are_not_believed() -> None:
    code = f"""
import os, time
from setproctitle import setproctitle
{AS_NOBODY}
setproctitle("blackhole: master")
print(flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"\n"
        assert other.pid not in pidfile.running_masters()
        other.kill()


def test_full_disk_is_reported_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "pid"

    def pwrite(descriptor: int, octets: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", pwrite)
        with pytest.raises(OperatorError, match=f"cannot write {path}: No space left on device") as caught:
            Pidfile(str(path))
        assert caught.value.code == os.EX_CANTCREAT
    assert list(tmp_path.iterdir()) == []
    locked = Pidfile(str(path))
    monkeypatch.setattr(os, "pwrite", pwrite)
    with pytest.raises(OperatorError, match=f"cannot write {path}: No space left on device"):
        locked.write()
    locked.remove()


@as_root
def test_user_cannot_stop_the_process_of_another_user() -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "pid"
        with locked_by_another(path) as other:
            done = run_python(f"""
                {AS_NOBODY}
                print(pidfile.pidfile_owner({str(path)!r}))
                try:
                    pidfile.stop({str(path)!r}, 1)
                except settings.OperatorError as error:
                    print(error.code)
            """)
            assert done.stdout == f"{other.pid}\n{os.EX_NOPERM}\n", done.stderr
