"""The live rate: a line a second, in a terminal of its own or beside a server in the foreground."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from typing import TextIO

from blackhole.metrics import report
from blackhole.metrics.counters import Counters
from blackhole.metrics.snapshot import Snapshot
from blackhole.settings import OperatorError

AWAITED = frozenset((signal.SIGINT, signal.SIGALRM))
"""What ends `blackhole top`, and the next second."""


def watch(pid: int) -> int:
    """`blackhole top`: until Ctrl-C, or until the server has ended."""
    stats = Counters.of(pid)
    # Waited for, and not met anywhere: an interrupt in the middle of a __del__ would be lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, AWAITED)

    def pause() -> bool:
        signal.setitimer(signal.ITIMER_REAL, 1)
        if signal.sigwait(AWAITED) == signal.SIGINT:
            raise KeyboardInterrupt
        return os.path.exists(f"/proc/{pid}")

    try:
        _lines(stats.snapshot, pause, sys.stdout)
    except KeyboardInterrupt:
        print()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    else:
        raise OperatorError(f"pid {pid} has ended", os.EX_UNAVAILABLE)
    return os.EX_OK


def progress(stats: Counters, row: int, master_alive_fd: int) -> None:
    """Write the live rate to standard error until the master ends: the process of `--progress`.

    `row` takes its heartbeats. `master_alive_fd` is readable once the master is gone.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_DFL)

    def pause() -> bool:
        stats.heartbeat(row)
        return not select.select([master_alive_fd], [], [], 1)[0]

    _lines(stats.snapshot, pause, sys.stderr)


def _lines(look: Callable[[], Snapshot], pause: Callable[[], bool], out: TextIO) -> None:
    """Write a line after each pause, until one says that it was the last."""
    earlier = look()
    while pause():
        later = look()
        print(report.pace(later - earlier), file=out, flush=True)
        earlier = later
