"""Pidfiles, detaching and privileges, with real files, locks and processes."""

from __future__ import annotations

import fcntl
import os
import pwd
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import dedent

import pytest
from program import environment, wait_for

from blackhole.process import daemonizer
from blackhole.settings import OperatorError

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has privileges to drop")
NOBODY = pwd.getpwnam("nobody")


def script(body: str) -> subprocess.CompletedProcess[str]:
    """Run some lines in a process of its own."""
    imports = "import os, resource, signal, sys, time\nfrom blackhole import settings\n"
    imports += "from blackhole.process import daemonizer"
    code = f"{imports}\n{dedent(body)}"
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})"


@contextmanager
def held(path: Path, then: str = "file.write()") -> Iterator[subprocess.Popen[str]]:
    """Another process has the lock."""
    code = f"""
import os, signal, sys, time
from setproctitle import setproctitle
from blackhole.process import daemonizer
setproctitle(daemonizer.TITLE)
file = daemonizer.Pidfile({str(path)!r})
{dedent(then)}
print("held", flush=True)
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        try:
            yield other
        finally:
            other.kill()


# The pidfile


def test_a_pidfile_says_who_holds_it_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    pidfile = daemonizer.Pidfile(str(path))
    assert daemonizer.pidfile_owner(str(path)) == 0  # it does not say yet
    pidfile.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert daemonizer.pidfile_owner(str(path)) == os.getpid()
    pidfile.remove()
    assert not path.exists()
    assert daemonizer.pidfile_owner(str(path)) is None


def test_anybody_may_read_it_whatever_the_umask(tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        pidfile = daemonizer.Pidfile(str(tmp_path / "pid"))
    finally:
        os.umask(umask)
    assert stat.S_IMODE((tmp_path / "pid").stat().st_mode) == 0o644
    pidfile.remove()


def test_a_second_program_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held(path) as other:
        with pytest.raises(OperatorError, match=f"already running, pid {other.pid} ") as caught:
            daemonizer.Pidfile(str(path))
        assert caught.value.code == os.EX_TEMPFAIL
        assert path.read_text() == f"{other.pid}\n"


def test_after_a_crash_there_is_nothing_to_clean_up(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held(path) as other:
        other.kill()
        other.wait()
        assert daemonizer.pidfile_owner(str(path)) is None
        pidfile = daemonizer.Pidfile(str(path))
    pidfile.write()
    assert daemonizer.pidfile_owner(str(path)) == os.getpid()
    pidfile.remove()


@pytest.mark.parametrize(
    "content",
    ["", "garbage", "-1\n", "99999999999999999999", pytest.param(f"{os.getpid()}\n", id="our own"), "1\n"],
)
def test_what_stands_in_a_file_nobody_holds_means_nothing(tmp_path: Path, content: str) -> None:
    path = tmp_path / "pid"
    path.write_text(content)
    assert daemonizer.pidfile_owner(str(path)) is None
    assert daemonizer.send(str(path), signal.SIGKILL) is False
    assert daemonizer.stop(str(path), 1.0) is False
    daemonizer.Pidfile(str(path)).remove()


@pytest.mark.parametrize("content", ["", "garbage", "-1", "1"])
def test_a_stranger_is_never_signalled(tmp_path: Path, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is held, but not by the process that the file names."""
    path = tmp_path / "pid"
    monkeypatch.setattr(daemonizer, "PATIENCE", 0.1)
    with held(path, f"os.pwrite(file.descriptor, {content.encode()!r}, 0)") as other:
        with pytest.raises(OperatorError, match="does not name") as caught:
            daemonizer.send(str(path), signal.SIGCONT)
        assert caught.value.code == os.EX_UNAVAILABLE
        assert other.poll() is None


def test_links_are_not_followed(tmp_path: Path) -> None:
    path, precious = tmp_path / "pid", tmp_path / "precious"
    precious.write_text("precious")
    path.symlink_to(precious)
    with pytest.raises(OperatorError, match="symbolic link") as caught:
        daemonizer.Pidfile(str(path))
    assert caught.value.code == os.EX_CANTCREAT
    with pytest.raises(OperatorError, match="cannot be read"):
        daemonizer.pidfile_owner(str(path))
    assert precious.read_text() == "precious"


@as_root
@pytest.mark.parametrize(
    ("mode", "taken"), [(0o755, True), (0o775, True), (0o1777, True), (0o777, False), (0o757, False)], ids=oct
)
def test_root_does_not_share_a_directory_with_all(tmp_path: Path, mode: int, taken: bool) -> None:
    """But where it is sticky, as /tmp, or where a group may write, as in some /var/log."""
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)
    if taken:
        daemonizer.Pidfile(str(shared / "pid")).remove()
        return
    with pytest.raises(
        OperatorError, match=f"anybody may write to its directory; chmod o-w {shared}"
    ) as caught:
        daemonizer.Pidfile(str(shared / "pid"))
    assert caught.value.code == os.EX_CANTCREAT
    assert not (shared / "pid").exists()


@as_root
def test_others_share_what_they_like(tmp_path: Path) -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o777)
        done = script(f"""
            {AS_NOBODY}
            daemonizer.Pidfile({directory!r} + "/pid").remove()
        """)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_directory_that_is_not_there_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="No such file or directory"):
        daemonizer.Pidfile(str(tmp_path / "none" / "pid"))


def test_somebody_who_asks_does_not_keep_us_from_starting(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with open(path, "w") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN)).start()
        daemonizer.Pidfile(str(path)).remove()


def test_a_file_that_was_removed_is_no_lock(tmp_path: Path) -> None:
    """One who starts while another ends may have opened the old file just before that was removed."""
    path = tmp_path / "pid"
    first = daemonizer.Pidfile(str(path))
    path.unlink()
    second = daemonizer.Pidfile(str(path))
    first.remove()
    assert path.exists()
    second.remove()


def test_a_child_that_forgets_does_not_prolong_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    child = """
        file.write()
        answer, told = os.pipe()
        if not os.fork():
            file.forget()
            os.write(told, b".")
            time.sleep(5)
            os._exit(0)
        os.read(answer, 1)
    """
    with held(path, child) as other:
        other.kill()
        other.wait()
        assert daemonizer.pidfile_owner(str(path)) is None


def test_stop_waits_until_it_is_gone(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held(path, "signal.signal(15, lambda *_: (time.sleep(0.2), sys.exit()))\nfile.write()") as other:
        assert daemonizer.stop(str(path), 10.0) is True
        assert other.wait(1) == 0


def test_stop_kills_what_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with held(path, "signal.signal(15, signal.SIG_IGN)\nfile.write()") as other:
        assert daemonizer.stop(str(path), 0.2) is True
        assert other.wait(1) == -signal.SIGKILL


@as_root
def test_what_is_not_ours_is_not_ours_to_stop() -> None:
    with TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "pid"
        with held(path) as other:
            done = script(f"""
                {AS_NOBODY}
                print(daemonizer.pidfile_owner({str(path)!r}))
                try:
                    daemonizer.stop({str(path)!r}, 1)
                except settings.OperatorError as error:
                    print(error.code)
            """)
            assert done.stdout == f"{other.pid}\n{os.EX_NOPERM}\n", done.stderr


# Detaching


def test_the_shell_waits_until_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "done"
    began = time.monotonic()
    done = script(f"""
        print("a reason", file=sys.stderr)
        shell = daemonizer.detach([])
        print("another", file=sys.stderr, flush=True)
        time.sleep(0.3)
        shell.tell(42)
        print("never seen", file=sys.stderr, flush=True)
        with open({str(path)!r} + "~", "w") as file:
            print(os.getpid(), os.getsid(0), os.getcwd(), oct(os.umask(0)), file=file)
        os.rename({str(path)!r} + "~", {str(path)!r})
    """)
    assert time.monotonic() - began >= 0.3
    assert (done.returncode, done.stderr) == (42, "a reason\nanother\n")
    wait_for(path.exists, "the daemon goes on")
    pid, session, directory, umask = path.read_text().split()
    assert session != pid  # it cannot take a terminal again
    assert (directory, umask) == ("/", "0o27")


def test_it_goes_on_when_nobody_waits_any_longer(tmp_path: Path) -> None:
    done, wait = tmp_path / "done", tmp_path / "wait"
    wait.touch()
    code = f"""
import os, sys, time
from blackhole.process import daemonizer
shell = daemonizer.detach([])
print("detached", file=sys.stderr, flush=True)
while os.path.exists({str(wait)!r}):
    time.sleep(0.01)
shell.tell(0)
os.mkdir({str(done)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE) as shell:
        assert shell.stderr is not None
        assert shell.stderr.readline() == b"detached\n"
        shell.send_signal(signal.SIGINT)
        assert shell.wait(10) == -signal.SIGINT
        wait.unlink()
        wait_for(done.exists, "the daemon goes on")
        assert shell.stderr.read() == b""


def test_a_daemon_that_dies_is_a_failure() -> None:
    done = script("daemonizer.detach([])\nos._exit(0)")
    assert (done.returncode, done.stderr) == (os.EX_SOFTWARE, "blackhole: it died before it was ready\n")


def test_only_what_is_to_be_kept_stays_open() -> None:
    done = script("""
        kept, other = os.open("/", 0), os.open("/usr", 0)
        shell = daemonizer.detach([kept])
        fd = "/proc/self/fd"
        links = [os.readlink(f"{fd}/{name}") for name in os.listdir(fd) if os.path.lexists(f"{fd}/{name}")]
        print("/" in links, "/usr" in links, file=sys.stderr, flush=True)
        shell.tell(0)
    """)
    assert (done.returncode, done.stderr) == (0, "True False\n")


# systemd


def test_systemd_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address, name in (
        (str(tmp_path / "s"), str(tmp_path / "s")),
        (f"@bh{os.getpid()}", f"\0bh{os.getpid()}"),
    ):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(name)
            manager.settimeout(5)
            monkeypatch.setenv("NOTIFY_SOCKET", address)
            daemonizer.notify("READY=1")
            assert manager.recv(99) == b"READY=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    daemonizer.notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere")
    daemonizer.notify("READY=1")


# Who the workers are


def refusal(user: str, group: str = "") -> tuple[str, int]:
    with pytest.raises(OperatorError) as caught:
        daemonizer.resolve(user, group)
    return str(caught.value), caught.value.code


def test_nobody_has_such_a_name() -> None:
    assert refusal("no-such-user") == ("there is no user no-such-user", os.EX_NOUSER)
    assert refusal("4000000001") == ("there is no user 4000000001", os.EX_NOUSER)
    assert refusal("root", "no-such-group") == ("there is no group no-such-group", os.EX_NOUSER)
    assert refusal("9" * 30)[1] == os.EX_NOUSER


@as_root
def test_root_becomes_whom_it_is_told_to() -> None:
    nobody = NOBODY.pw_uid, NOBODY.pw_gid
    assert daemonizer.resolve("nobody", "") == nobody
    assert daemonizer.resolve(str(nobody[0]), "") == nobody
    assert daemonizer.resolve("nobody", "root") == (nobody[0], 0)
    assert daemonizer.resolve("4000000001", "4000000002") == (4000000001, 4000000002)
    assert daemonizer.resolve("root", "") == (0, 0)
    try:
        pwd.getpwnam("blackhole")
    except KeyError:
        assert daemonizer.resolve("", "") == nobody
        assert daemonizer.resolve("", "root") == (nobody[0], 0)


def test_everybody_else_stays_who_they_are() -> None:
    done = script(f"""
        if os.geteuid() == 0:
            {AS_NOBODY}
        def ask(*names):
            try:
                print(daemonizer.resolve(*names) == (os.getuid(), os.getgid()))
            except settings.OperatorError as error:
                print(error.code)
        ask("", "")
        ask(str(os.getuid()), str(os.getgid()))
        ask("root", "")
        ask("", "root")
        daemonizer.drop_privileges("", "")
        print(os.getresuid() == (os.getuid(),) * 3 != (0,) * 3)
    """)
    assert done.stdout.split() == ["True", "True", "77", "77", "True"], done.stderr


@as_root
def test_root_is_dropped_for_good() -> None:
    done = script("""
        os.setgroups([0, 4, 27])
        daemonizer.drop_privileges("nobody", "")
        print(open("/proc/self/status").read())
        print("CoreLimit:", *resource.getrlimit(resource.RLIMIT_CORE))
        print("Mask:", oct(os.umask(0)))
        for step in (os.setuid, os.seteuid, os.setgid, os.setegid, lambda gid: os.setgroups([gid])):
            try:
                step(0)
            except PermissionError:
                print("Refused:", step)
    """)
    lines = [line.partition(":") for line in done.stdout.splitlines()]
    seen = {name: " ".join(value.split()) for name, _, value in lines}
    uid, gid = str(NOBODY.pw_uid), str(NOBODY.pw_gid)
    assert seen["Uid"] == " ".join([uid] * 4), done.stderr
    assert seen["Gid"] == " ".join([gid] * 4)
    assert seen["Groups"] == gid
    assert int(seen["CapEff"], 16) == int(seen["CapPrm"], 16) == 0
    assert seen["NoNewPrivs"] == "1"
    assert seen["CoreLimit"] == "0 0"
    assert seen["Mask"] == "0o27"
    assert done.stdout.count("Refused:") == 5


@as_root
def test_root_may_stay_root_but_in_no_group_but_its_own() -> None:
    done = script("""
        os.setgroups([4, 27])
        daemonizer.drop_privileges("root", "")
        print(os.getresuid(), os.getgroups())
    """)
    assert done.stdout == "(0, 0, 0) [0]\n", done.stderr


@as_root
def test_a_root_that_may_not_leave_says_so() -> None:
    """As in a container without CAP_SETUID."""
    done = script("""
        import ctypes
        for capability in (6, 7):  # PR_CAPBSET_DROP: CAP_SETGID, CAP_SETUID
            ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
        code = "from blackhole.process import daemonizer; daemonizer.drop_privileges('nobody', '')"
        os.execv(sys.executable, [sys.executable, "-c", code])
    """)
    reason = f"cannot become user {NOBODY.pw_uid}, group {NOBODY.pw_gid}: Operation not permitted"
    assert done.stderr.endswith(f"OperatorError: {reason}\n")


@as_root
@pytest.mark.parametrize("step", ["setgroups", "setresgid", "setresuid"])
def test_a_step_that_was_not_taken_is_noticed(step: str) -> None:
    """Exim did not look (CVE-2011-0017)."""
    done = script(f"""
        os.setgroups([0, 4])
        os.{step} = lambda *ids: None
        try:
            daemonizer.drop_privileges("nobody", "")
        except settings.OperatorError as error:
            print(error.code, error)
    """)
    reason = f"did not become user {NOBODY.pw_uid}, group {NOBODY.pw_gid}"
    assert done.stdout == f"{os.EX_SOFTWARE} {reason}\n", done.stderr


@as_root
def test_a_way_back_is_noticed() -> None:
    done = script("""
        os.setuid = lambda uid: None
        try:
            daemonizer.drop_privileges("nobody", "")
        except settings.OperatorError as error:
            print(error.code)
    """)
    assert done.stdout == f"{os.EX_SOFTWARE}\n", done.stderr


@as_root
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_groups_then_gid_then_uid(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    code = "from blackhole.process import daemonizer; daemonizer.drop_privileges('nobody', '')"
    subprocess.run(
        [
            "strace",
            "-o",
            str(trace),
            "-e",
            "trace=/set.*[gu]id.*,setgroups,prctl",
            sys.executable,
            "-c",
            code,
        ],
        env=environment(),
        check=True,
    )
    calls = re.findall(r"^(set\w+)\(.*= (\S+)", trace.read_text(), re.MULTILINE)
    assert calls == [("setgroups", "0"), ("setresgid", "0"), ("setresuid", "0"), ("setuid", "-1")]
