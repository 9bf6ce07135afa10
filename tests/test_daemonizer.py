"""Detaching, with real processes: what the launcher shows and what the daemon keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.program import environment, run_python, wait_for


def test_launcher_waits_until_the_daemon_sends_an_exit_code(tmp_path: Path) -> None:
    path = tmp_path / "done"
    began = time.monotonic()
    done = run_python(f"""
        print("a reason", file=sys.stderr)
        launcher = daemonizer.detach([])
        print("another", file=sys.stderr, flush=True)
        time.sleep(0.3)
        launcher.send_exit_code(42)
        print("never seen", file=sys.stderr, flush=True)
        with open({str(path)!r} + "~", "w") as file:
            print(os.getpid(), os.getsid(0), os.getcwd(), oct(os.umask(0)), file=file)
        os.rename({str(path)!r} + "~", {str(path)!r})
    """)
    assert time.monotonic() - began >= 0.3
    assert (done.returncode, done.stderr) == (42, "a reason\nanother\n")
    wait_for(path.exists, "the daemon continues")
    pid, session, directory, umask = path.read_text().split()
    assert session != pid  # not a session leader: it cannot acquire a terminal
    assert (directory, umask) == ("/", "0o27")


def test_daemon_continues_when_the_launcher_was_interrupted(tmp_path: Path) -> None:
    done, wait = tmp_path / "done", tmp_path / "wait"
    wait.touch()
    code = f"""
import os, sys, time
from blackhole.process import daemonizer
launcher = daemonizer.detach([])
print("detached", file=sys.stderr, flush=True)
while os.path.exists({str(wait)!r}):
    time.sleep(0.01)
launcher.send_exit_code(0)
os.mkdir({str(done)!r})
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], env=environment(), stderr=subprocess.PIPE
    ) as launcher:
        assert launcher.stderr is not None
        assert launcher.stderr.readline() == b"detached\n"
        launcher.send_signal(signal.SIGINT)
        assert launcher.wait(10) == -signal.SIGINT
        wait.unlink()
        wait_for(done.exists, "the daemon continues")
        assert launcher.stderr.read() == b""


def test_launcher_fails_when_the_daemon_dies_before_it_is_ready() -> None:
    done = run_python("daemonizer.detach([])\nos._exit(0)")
    assert (done.returncode, done.stderr) == (
        os.EX_SOFTWARE,
        "blackhole: the daemon died before it was ready\n",
    )


def test_detach_closes_descriptors_that_are_not_in_keep() -> None:
    done = run_python("""
        kept, other = os.open("/", 0), os.open("/usr", 0)
        launcher = daemonizer.detach([kept])
        fd = "/proc/self/fd"
        links = [os.readlink(f"{fd}/{name}") for name in os.listdir(fd) if os.path.lexists(f"{fd}/{name}")]
        print("/" in links, "/usr" in links, file=sys.stderr, flush=True)
        launcher.send_exit_code(0)
    """)
    assert (done.returncode, done.stderr) == (0, "True False\n")
