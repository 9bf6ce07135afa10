"""The real program, started as an operator starts it, inspected through /proc, stopped by signals.

    with Program("--workers=2") as program:
        with socket.create_connection(program.address):
            os.kill(program.workers()[0], signal.SIGKILL)

`run` is for commands that end on their own: `run("status", f"--pid={pid}").returncode`.
"""

from __future__ import annotations

import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from textwrap import dedent
from typing import Final, Self, TypeVar

import pytest

from blackhole.metrics.counters import Counters
from blackhole.metrics.layout import CELL_INDEX
from blackhole.metrics.snapshot import Snapshot

ROOT = Path(__file__).resolve().parent.parent
# Tornado does not close a socket that it could not bind.
PYTHON = (sys.executable, "-W", "error", "-W", "ignore::ResourceWarning")
SCRIPT = (*PYTHON, str(ROOT / "bin" / "blackhole"))
MODULE = (*PYTHON, "-m", "blackhole")
READY = "All mail is thrown away."
"""The end of what the program prints once its workers accept connections."""

NOBODY = pwd.getpwnam("nobody")
AS_NOBODY = f"os.setgroups([]); os.setgid({NOBODY.pw_gid}); os.setuid({NOBODY.pw_uid})"
"""Code by which a process of root becomes that user."""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

Seen = TypeVar("Seen")


class PortBlock:
    """Ports that no other process of the tests hands out, and that the kernel gives to no client.

    A port that the kernel chose for a moment may be taken by another process of the tests, or by a client of
    one, before the program binds it. So each process has a block of its own, below the ports of clients
    (ip_local_port_range). A name in the abstract namespace of Unix sockets, which ends with the process,
    keeps the others out.
    """

    FIRST: Final = 10_000
    LAST: Final = 32_000
    SIZE: Final = 500

    def __init__(self) -> None:
        starts = range(self.FIRST, self.LAST, self.SIZE)
        self._claim = socket.socket(socket.AF_UNIX)
        self._start = next(filter(self._is_claimed, starts))
        self._given = 0

    def _is_claimed(self, start: int) -> bool:
        """Claim the block that begins there, and return whether it was free."""
        with suppress(OSError):
            self._claim.bind(f"\0blackhole test ports from {start}")
            return True
        return False

    def next_free(self) -> int:
        """Return the next port of the block on which nothing listens."""
        while True:
            port = self._start + self._given % self.SIZE
            self._given += 1
            with suppress(OSError), socket.create_server(("127.0.0.1", port)):
                return port


@cache
def port_block() -> PortBlock:
    """Return the block of this process."""
    return PortBlock()


def free_port() -> int:
    """Return a port on which nothing listens; 499 others are returned before this one again."""
    return port_block().next_free()


def free_ports(count: int) -> list[int]:
    """Return so many different ports on which nothing listens."""
    return [free_port() for _ in range(count)]


def environment(**more: str) -> dict[str, str]:
    """Return an environment in which `import blackhole` works and no option of the program is set.

    The dashboard is off: only one of several programs could have its default port.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BLACKHOLE_")}
    return inherited | {"PYTHONPATH": str(ROOT), "BLACKHOLE_DASHBOARD": "off"} | more


def wait_for(look: Callable[[], Seen], what: str, timeout: float = 20.0) -> Seen:
    """Call `look` until it returns something true, and return that."""
    until = time.monotonic() + timeout
    while not (seen := look()):
        assert time.monotonic() < until, f"not within {timeout:g} s: {what}"
        time.sleep(0.01)
    return seen


# Processes.


def state(pid: int) -> str:
    """Return the state of a process: R, S, T, Z ...; empty if there is no such process."""
    return _stat(pid)[0]


def parent(pid: int) -> int:
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    try:
        # The name in parentheses may contain any character.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return ["", "-1"]


def alive(pid: int) -> bool:
    return state(pid) not in ("", "Z")


def title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def children(pid: int) -> list[int]:
    """Return the pids of all children, zombies too, the oldest first."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return sorted(child for child in pids if parent(child) == pid)


def status(pid: int) -> dict[str, str]:
    """Return the fields of /proc/PID/status: status(pid)["Uid"] == "0 0 0 0"."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: " ".join(value.split()) for name, _, value in (line.partition(":") for line in lines)}


def descriptors(pid: int) -> list[str]:
    """Return the targets of open descriptors: "/a/file", "socket:[1234]", "anon_inode:[eventpoll]"."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def end(process: subprocess.Popen[bytes]) -> None:
    """End a master and its children: with SIGINT, then with SIGKILL."""
    pids = children(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(3)
    process.kill()
    process.wait()
    for pid in filter(alive, pids):
        if title(pid).startswith("blackhole: "):  # not another process that got the pid since
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


# The program.


def run(
    *options: str, command: Sequence[str] = SCRIPT, timeout: float = 60.0, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run the program until it ends, with `more` in its environment."""
    return subprocess.run(
        [*command, *options],
        env=environment(**more),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run some lines of Python in a process of its own, with the modules of `process` at hand."""
    imports = """
        import logging, os, resource, signal, sys, time
        from blackhole import settings
        from blackhole.process import daemonizer, logs, pidfile, privileges
    """
    return subprocess.run(
        [*PYTHON, "-c", dedent(imports) + dedent(code)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


class Program:
    """A master in the foreground: on 127.0.0.1, a free port, with two workers unless `options` differ."""

    def __init__(
        self,
        *options: str,
        command: Sequence[str] = SCRIPT,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
    ) -> None:
        values = dict(option.split("=", 1) for option in options if "=" in option)
        self.port = int(values.get("--port") or free_port())
        """Of the first listener, unless --listen or --conf says otherwise."""
        self.address = ("127.0.0.1", self.port)
        given = [*options]
        if values.keys().isdisjoint({"--listen", "--conf"}):
            given += ["--host=127.0.0.1", f"--port={self.port}"]
            if "--ssl_cert" in values and "--ssl_port" not in values:
                given.append("--ssl_port=0")
        if values.keys().isdisjoint({"--workers", "--conf"}):
            given.append("--workers=2")
        if "--ssl_cert" in values and values.keys().isdisjoint({"--ssl_port", "--listen", "--conf"}):
            given.append("--ssl_port=0")  # port 465 needs root, and only one program can have it
        with tempfile.NamedTemporaryFile(prefix="blackhole-", delete=False) as self._output:
            self.process = subprocess.Popen(
                [*command, *given],
                env=environment(**(env or {})),
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                start_new_session=True,  # so that `interrupt` reaches this program alone
            )
        self.pid = self.process.pid

    def __enter__(self) -> Self:
        try:
            wait_for(
                lambda: READY in self.output() or self.process.poll() is not None, "the program is ready"
            )
            assert self.process.poll() is None, self.output()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def _end(self) -> None:
        end(self.process)
        os.unlink(self._output.name)

    def output(self) -> str:
        """Return all that was written to standard output and standard error so far."""
        return Path(self._output.name).read_text()

    def workers(self) -> list[int]:
        """Return the pids of the workers that have their title already."""
        return [pid for pid in children(self.pid) if title(pid).startswith("blackhole: worker")]

    def snapshot(self) -> Snapshot:
        """Return the program's shared counters as they are now."""
        return Counters.of(self.pid).snapshot()

    def is_accepting(self, workers: int) -> bool:
        """Whether exactly so many workers run, and all of them accept connections."""
        return len(self.workers()) == workers == self.snapshot().cells[CELL_INDEX["accepting"]]

    def wait_until_accepting(self, workers: int, without: int = 0) -> None:
        """Wait until exactly so many workers accept connections, none of them with the pid `without`."""
        wait_for(
            lambda: without not in self.workers() and self.is_accepting(workers),
            f"{workers} workers accept connections",
            30,
        )

    def wait_until_idle(self, timeout: float = 20.0) -> None:
        """Wait until no connection is open."""
        wait_for(lambda: self.snapshot().open == 0, "all connections are closed", timeout)

    def stop(self, number: signal.Signals = signal.SIGTERM, timeout: float = 40.0) -> int:
        """Signal the master, wait for its end and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def interrupt(self) -> None:
        """Send SIGINT to the master and all its children, as Ctrl-C does."""
        os.killpg(self.pid, signal.SIGINT)


def scenario_option(folder: Path, text: str) -> str:
    """Write a scenario file into `folder` and return the option that loads it."""
    path = folder / "rules.toml"
    path.write_text(text)
    return f"--scenario={path}"
