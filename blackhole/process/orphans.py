"""Orphans: children of a master that was killed. They finish their sessions and end by themselves,
unless they hang or are stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from typing import Final

from blackhole.process import processes
from blackhole.process.processes import MASTER_TITLE, Process

CHILD_TITLES: Final = ("blackhole: worker", "blackhole: dashboard")
"""Beginnings of the titles of children that have ports."""

PORT_RELEASE_TIMEOUT: Final = 1.5
"""Seconds that an orphan may take to close its listening sockets."""

ORPHAN_KILL_TIMEOUT: Final = 2.0
"""Seconds from SIGKILL until an orphan must have ended."""

ORPHAN_POLL: Final = 0.02
"""Seconds between two looks at the orphans."""


def search(port: int, users: Collection[int]) -> list[Process]:
    """Return the orphans of these users that listen on a port. Their master had perhaps no pidfile.

    A process whose parent is a master is none.
    """
    return [
        process
        for pid in processes.pids()
        if processes.title(pid).startswith(CHILD_TITLES)
        and processes.owner(pid) in users
        and processes.title(processes.parent(pid)) != MASTER_TITLE
        and processes.is_listening(pid, port)
        and (process := Process.of(pid)) is not None
    ]


def end_listening(recorded: Iterable[Process]) -> list[str]:
    """End the orphans that keep a port; return a line for each.

    An orphan that finishes its sessions has closed its listening sockets, and is left alone.
    """
    orphans = [one for one in recorded if one.is_alive() and processes.title(one.pid).startswith("blackhole")]
    for orphan in orphans:
        _signal(orphan, signal.SIGCONT)
    listening = _wait_released(orphans, PORT_RELEASE_TIMEOUT)
    lines = [
        f"{processes.title(orphan.pid)} (pid {orphan.pid}) of a server that was killed kept its port;"
        " it is killed, too"
        for orphan in listening
    ]
    for orphan in listening:
        _signal(orphan, signal.SIGKILL)
    _wait_released(listening, ORPHAN_KILL_TIMEOUT)
    return lines


def _is_listening(orphan: Process) -> bool:
    return orphan.is_alive() and processes.is_listening(orphan.pid)


def _wait_released(orphans: list[Process], timeout: float) -> list[Process]:
    """Return the orphans that still keep a port after `timeout` seconds, or none before."""
    deadline = time.monotonic() + timeout
    while (left := [one for one in orphans if _is_listening(one)]) and time.monotonic() < deadline:
        time.sleep(ORPHAN_POLL)
    return left


def _signal(orphan: Process, number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(orphan.pid, number)
